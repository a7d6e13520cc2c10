//go:build unix

package guardtest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func guarded(t testing.TB, n int, front bool) []byte {
	t.Helper()
	page := os.Getpagesize()
	inner := max(1, (n+page-1)/page) * page
	all, err := unix.Mmap(-1, 0, inner+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatalf("mapping memory: %v", err)
	}
	t.Cleanup(func() { _ = unix.Munmap(all) })
	for _, guard := range [][]byte{all[:page], all[page+inner:]} {
		if err := unix.Mprotect(guard, unix.PROT_NONE); err != nil {
			t.Fatalf("protecting memory: %v", err)
		}
	}
	if front {
		return all[page : page+n : page+n]
	}
	return all[page+inner-n : page+inner : page+inner]
}
