//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package cudatest

import (
	"runtime"
	"testing"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// Fake is a loaded copy of the fake driver.
type Fake struct {
	driver.Library
	tb       testing.TB
	count    uintptr
	careless bool
}

// Open loads a copy of the fake driver with settings such as "FAKECUDA_DEVICES=2"
// (driver/fake/README.md lists them). When the test ends, nothing may be left alive in
// it and no misuse may have been found. It sets the environment, so the test must not
// be parallel.
func Open(tb testing.TB, settings ...string) *Fake {
	tb.Helper()
	path := Copy(tb)
	Set(tb, path, settings...)
	lib, err := driver.Open()
	if err != nil {
		tb.Fatal(err)
	}
	runtime.LockOSThread() // dlerror answers for the thread
	defer runtime.UnlockOSThread()
	handle, err := purego.Dlopen(path, purego.RTLD_NOW)
	if err != nil {
		tb.Fatal(err)
	}
	count, err := purego.Dlsym(handle, "fakecuda_count")
	if err != nil {
		tb.Fatal(err)
	}
	f := &Fake{Library: lib, tb: tb, count: count}
	tb.Cleanup(f.check)
	return f
}

// Count reads a counter: "violations" and "leaks" so far, "launches" so far; alive now
// are "memory" (allocations), "host", "streams", "events", "modules", "contexts"
// (references to primary contexts).
func (f *Fake) Count(what string) int {
	name := append([]byte(what), 0)
	n, _, _ := purego.SyscallN(f.count, uintptr(unsafe.Pointer(&name[0])))
	if n == ^uintptr(0) {
		f.tb.Fatalf("the fake driver counts no %q", what)
	}
	return int(n)
}

// Careless says that the test misuses the driver or leaves things behind on purpose.
func (f *Fake) Careless() { f.careless = true }

func (f *Fake) check() {
	if f.careless {
		return
	}
	for _, what := range []string{"violations", "leaks", "memory", "host", "streams", "events", "modules", "contexts"} {
		if n := f.Count(what); n != 0 {
			f.tb.Errorf("the fake driver counts %d %s at the end of the test (its messages are on standard error)", n, what)
		}
	}
}
