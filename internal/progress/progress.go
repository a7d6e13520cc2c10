// Package progress works out from byte counts how fast work goes and how long it will
// still take. It draws nothing: what it says is shown in cmd.
package progress

import (
	"sync"
	"time"
)

// Window is the time over which the rate is taken: long enough to be steady, short
// enough to follow a disk that slows down.
const Window = 15 * time.Second

// Meter follows a count on its way to a total. Its methods may be called concurrently.
type Meter struct {
	mu      sync.Mutex
	total   int64
	samples []sample // rising in time; the first is at most one step older than Window
}

type sample struct {
	at   time.Time
	done int64
}

// NewMeter starts to measure at now; done bytes of total do not count for the rate,
// because an earlier run did them.
func NewMeter(now time.Time, done, total int64) *Meter {
	m := &Meter{total: total}
	m.Restart(now, done)
	return m
}

// Restart forgets the rate: from here on another kind of work is done.
func (m *Meter) Restart(now time.Time, done int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.samples = append(m.samples[:0], sample{now, done})
}

// Add takes a reading.
func (m *Meter) Add(now time.Time, done int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.samples = append(m.samples, sample{now, done})
	drop := 0
	for drop+2 < len(m.samples) && now.Sub(m.samples[drop+1].at) >= Window {
		drop++
	}
	m.samples = append(m.samples[:0], m.samples[drop:]...)
}

// Rate is in bytes per second, 0 while nothing is known.
func (m *Meter) Rate() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	first, last := m.samples[0], m.samples[len(m.samples)-1]
	d := last.at.Sub(first.at).Seconds()
	if d <= 0 || last.done <= first.done {
		return 0
	}
	return float64(last.done-first.done) / d
}

// Left is the time to go at the present rate; ok is false while there is none.
func (m *Meter) Left() (d time.Duration, ok bool) {
	r := m.Rate()
	if r == 0 {
		return 0, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	todo := float64(max(0, m.total-m.samples[len(m.samples)-1].done)) / r
	const most = 1000 * time.Hour // beyond it the number says nothing, and might overflow
	return time.Duration(min(todo, most.Seconds()) * float64(time.Second)), true
}

// Percent is the share done, rounded down, so that 100 means all of it.
func (m *Meter) Percent() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.total <= 0 {
		return 100
	}
	done := m.samples[len(m.samples)-1].done
	return int(min(100, 100*float64(done)/float64(m.total)))
}
