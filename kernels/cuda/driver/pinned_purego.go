//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package driver

import (
	"slices"
	"sync"
	"unsafe"
)

// pinned knows the page-locked memory of the process, to tell asynchronous copies
// from those that must be waited for.
type pinned struct {
	mu     sync.RWMutex
	ranges []hostRange // by address
}

type hostRange struct {
	start, size uintptr
	device      int
}

func (p *pinned) add(b []byte, device int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := hostRange{address(b), uintptr(len(b)), device}
	i, _ := p.find(r.start)
	p.ranges = slices.Insert(p.ranges, i, r)
}

// find returns the index of the range that starts at a, or where it would stand.
func (p *pinned) find(a uintptr) (int, bool) {
	return slices.BinarySearchFunc(p.ranges, a, func(r hostRange, a uintptr) int {
		if r.start < a {
			return -1
		} else if r.start > a {
			return 1
		}
		return 0
	})
}

// remove forgets the range that starts where b does.
func (p *pinned) remove(b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, ok := p.find(address(b))
	if ok {
		p.ranges = slices.Delete(p.ranges, i, i+1)
	}
	return ok
}

// removeDevice forgets what was allocated through a device whose context is gone.
func (p *pinned) removeDevice(device int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ranges = slices.DeleteFunc(p.ranges, func(r hostRange) bool { return r.device == device })
}

// holds reports whether all of b is page-locked.
func (p *pinned) holds(b []byte) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	at := address(b)
	i, ok := p.find(at)
	if !ok {
		i--
	}
	return i >= 0 && at+uintptr(len(b)) <= p.ranges[i].start+p.ranges[i].size
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
