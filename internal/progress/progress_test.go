package progress

import (
	"math"
	"testing"
	"time"
)

func TestRateFollowsTheWindow(t *testing.T) {
	at := time.Unix(1000, 0)
	m := NewMeter(at, 500, 10_000)
	if _, ok := m.Left(); ok || m.Rate() != 0 {
		t.Error("a rate before anything was measured")
	}
	// 100 a second; the 500 of an earlier run do not count.
	for i := 1; i <= 10; i++ {
		m.Add(at.Add(time.Duration(i)*time.Second), 500+int64(i)*100)
	}
	if got := m.Rate(); got != 100 {
		t.Errorf("rate %v, want 100", got)
	}
	if d, ok := m.Left(); !ok || d != 85*time.Second {
		t.Errorf("left %v %v, want 85s", d, ok)
	}
	if got := m.Percent(); got != 15 {
		t.Errorf("%d %%, want 15", got)
	}
	// Then ten times as slow for longer than the window: the past is forgotten.
	for i := 1; i <= 40; i++ {
		m.Add(at.Add(time.Duration(10+i)*time.Second), 1500+int64(i)*10)
	}
	if got := m.Rate(); got != 10 {
		t.Errorf("rate %v, want 10", got)
	}
	if n := len(m.samples); n > 18 {
		t.Errorf("%d samples are kept", n)
	}
}

func TestRestart(t *testing.T) {
	at := time.Unix(1000, 0)
	m := NewMeter(at, 0, 100)
	m.Add(at.Add(time.Second), 50)
	m.Restart(at.Add(time.Second), 50)
	if m.Rate() != 0 {
		t.Error("the rate survived a restart")
	}
	m.Add(at.Add(3*time.Second), 60)
	if m.Rate() != 5 {
		t.Errorf("rate %v, want 5", m.Rate())
	}
}

func TestExtremes(t *testing.T) {
	at := time.Unix(1000, 0)
	m := NewMeter(at, 0, math.MaxInt64)
	m.Add(at.Add(time.Second), 1)
	if d, ok := m.Left(); !ok || d != 1000*time.Hour {
		t.Errorf("left %v %v", d, ok)
	}
	if p := m.Percent(); p != 0 {
		t.Errorf("%d %%", p)
	}
	m = NewMeter(at, 0, 1000)
	m.Add(at.Add(time.Second), 999)
	if p := m.Percent(); p != 99 {
		t.Errorf("%d %%, want 99: 100 means all", p)
	}
	m.Add(at.Add(time.Second), 2000)
	if d, _ := m.Left(); d != 0 || m.Percent() != 100 {
		t.Errorf("past the total: %v, %d %%", d, m.Percent())
	}
	if NewMeter(at, 0, 0).Percent() != 100 {
		t.Error("nothing to do is all done")
	}
}
