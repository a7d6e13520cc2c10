package driver

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// layout is where the arguments of a block lie, from the first byte of the block.
func layout(a *Args) (at []int) {
	for _, p := range a.ptr[:a.Len()] {
		at = append(at, int(uintptr(p)-uintptr(unsafe.Pointer(&a.buf[0]))))
	}
	return at
}

func TestArgsLayout(t *testing.T) {
	a := NewArgs()
	for _, c := range []struct {
		args *Args
		at   []int
		size []int
	}{
		{NewArgs(), nil, []int{}},
		{NewArgs().U8(1).U16(2).U32(3).U64(4), []int{0, 2, 4, 8}, []int{1, 2, 4, 8}},
		{NewArgs().U8(1).U64(2).U8(3).F32(4).U8(5).U16(6), []int{0, 8, 16, 20, 24, 26}, []int{1, 8, 1, 4, 1, 2}},
		{NewArgs().I32(-1).I64(-1).Ptr(9), []int{0, 8, 16}, []int{4, 8, 8}},
		{NewArgs().U8(1).TensorMap(&TensorMap{}).U8(2), []int{0, 64, 192}, []int{1, 128, 1}},
		{NewArgs().U8(1).Bytes(make([]byte, 12), 4).Bytes(make([]byte, 3), 1), []int{0, 4, 16}, []int{1, 12, 3}},
		{NewArgs().Bytes(make([]byte, 4096), 1), []int{0}, []int{4096}},
		{a.U64(1).U64(2).Reset().U8(3), []int{0}, []int{1}},
	} {
		if at := layout(c.args); !slices.Equal(at, c.at) || !slices.Equal(c.args.size, c.size) || c.args.err != nil {
			t.Errorf("at %v, sizes %v, %v: want %v, %v", at, c.args.size, c.args.err, c.at, c.size)
		}
		if uintptr(unsafe.Pointer(&c.args.buf[0]))%64 != 0 || c.args.ptr[c.args.Len()] != nil {
			t.Error("the block is not at a multiple of 64, or old pointers follow")
		}
	}
}

func TestArgsLimits(t *testing.T) {
	many := NewArgs()
	for range maxArgs {
		many.U8(1)
	}
	if many.err != nil {
		t.Fatal(many.err)
	}
	if many.U8(1); many.check("k", nil) == nil || many.Len() != maxArgs {
		t.Errorf("%d arguments are fine", maxArgs+1)
	}
	if err := NewArgs().Bytes(make([]byte, 4090), 1).U64(1).check("k", nil); err == nil || !strings.Contains(err.Error(), "offset 4096") {
		t.Errorf("more than 4096 bytes: %v", err)
	}
	if err := many.Reset().U8(1).check("k", []int{1}); err != nil {
		t.Errorf("after Reset: %v", err)
	}
	if err := many.check("k", []int{}); err == nil {
		t.Error("an argument for a kernel that takes none is fine")
	}
}

func TestErrors(t *testing.T) {
	for code, class := range map[int]error{
		1: nil, 2: ErrOutOfMemory, 100: ErrNoDevice, 200: nil, 214: ErrDeviceLost, 600: nil, 700: ErrDeviceLost, 701: nil, 702: ErrDeviceLost,
		710: ErrDeviceLost, 719: ErrDeviceLost, 801: ErrUnsupported, 999: ErrDeviceLost,
	} {
		var err error = &Error{Code: code, Name: "CUDA_ERROR_X", Text: "some text", Call: "cuCall", Device: 3}
		for _, target := range []error{ErrOutOfMemory, ErrNoDevice, ErrDeviceLost, ErrUnsupported, ErrNoDriver, ErrTooOld, ErrClosed} {
			want := class != nil && errors.Is(class, target)
			if errors.Is(err, target) != want {
				t.Errorf("code %d: errors.Is(%v) is %v", code, target, !want)
			}
		}
		if !errors.Is(err, &Error{Code: code}) || errors.Is(err, &Error{Code: code + 1}) {
			t.Errorf("code %d: wrong equality", code)
		}
	}
	err := &Error{Code: 719, Name: "CUDA_ERROR_LAUNCH_FAILED", Text: "unspecified launch failure", Call: "cuStreamSynchronize", Device: 2}
	if got, want := err.Error(), "cuda: device 2: cuStreamSynchronize: unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED, 719)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	err.Device = -1
	if got, want := err.Error(), "cuda: cuStreamSynchronize: unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED, 719)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestInfo(t *testing.T) {
	i := Info{Major: 9, Minor: 0, MemoryKHz: 2619000, MemoryBits: 5120}
	for n := range i.UUID {
		i.UUID[n] = byte(n)
	}
	if s := i.UUIDString(); s != "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f" {
		t.Error(s)
	}
	if b := i.PeakBandwidth(); b != 3352.32e9 {
		t.Error(b)
	}
	if i.ComputeCapability() != 90 || MinVersion.String() != "12.0" || Version(11080).String() != "11.8" {
		t.Error(i.ComputeCapability(), MinVersion, Version(11080))
	}
}
