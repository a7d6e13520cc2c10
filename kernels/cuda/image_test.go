//go:build !nocuda

package cuda

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/nf4"
)

func TestImageName(t *testing.T) {
	for _, c := range []struct {
		major, minor int
		want         string
	}{
		{7, 5, "sm_75.cubin"}, {8, 0, "sm_80.cubin"}, {8, 6, "sm_86.cubin"}, {8, 7, "sm_86.cubin"}, {8, 9, "sm_89.cubin"},
		{9, 0, "sm_90a.cubin"}, {9, 1, "sm_90.cubin"}, {10, 0, "sm_100.cubin"}, {10, 3, "sm_100.cubin"},
		{11, 0, "compute_80.ptx"}, {12, 0, "sm_120.cubin"}, {12, 1, "sm_120.cubin"}, {13, 0, "compute_80.ptx"},
	} {
		image, name, err := Image(c.major, c.minor)
		if err != nil || name != c.want {
			t.Errorf("%d.%d: got %q, %v; want %q", c.major, c.minor, name, err, c.want)
			continue
		}
		manifest, err := os.ReadFile("MANIFEST")
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("bin/%s.zst %x raw", name, sha256.Sum256(image)); !strings.Contains(string(manifest), want) {
			t.Errorf("%s: MANIFEST has no %q", name, want)
		}
	}
	for cc, want := range map[[2]int]string{
		{8, 0}: "flash_sm_80.cubin", {8, 6}: "flash_sm_86.cubin", {8, 7}: "flash_sm_86.cubin", {8, 9}: "flash_sm_89.cubin", {9, 0}: "flash_sm_90.cubin",
		{10, 3}: "flash_sm_100.cubin", {11, 0}: "flash_compute_80.ptx", {12, 1}: "flash_sm_120.cubin", {13, 0}: "flash_compute_80.ptx",
	} {
		if _, name, err := FlashImage(cc[0], cc[1]); err != nil || name != want {
			t.Errorf("attention on %v: got %q, %v; want %q", cc, name, err, want)
		}
	}
	if _, name, err := FlashImage(7, 5); !errors.Is(err, ErrUnsupported) {
		t.Errorf("attention on 7.5: got %q, %v; want ErrUnsupported", name, err)
	}
	for _, c := range [][2]int{{0, 0}, {7, 0}, {7, 2}, {6, 1}, {-8, 0}, {8, -1}, {7, 10}} {
		if _, name, err := Image(c[0], c[1]); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%d.%d: got %q, %v; want ErrUnsupported", c[0], c[1], name, err)
		}
	}
}

// Every image has every kernel, and the emulator and the launches know no other.
func TestImagesHaveAllKernels(t *testing.T) {
	files, err := filepath.Glob("src/*.cu")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	emulated, err := os.ReadFile("emu/kernels.cpp")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`KERNEL\((\w+)\),`).FindAllSubmatch(emulated, -1) {
		names[string(m[1])] = true
	}
	kernel := regexp.MustCompile(`(?m)__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(|^(?:DE)?QUANTIZE\((\w+),|^CONVERT\((\w+),|^FLASH\((\w+), \w+, (\d+),`)
	found := map[string]bool{}
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range kernel.FindAllSubmatch(src, -1) {
			name := string(bytes.Join(m[1:], nil))
			if m[4] != nil {
				name = fmt.Sprintf("flash_sm80_%s_%s", m[4], m[5])
			}
			if name == "name" || name == "__launch_bounds__" {
				continue // of a macro
			}
			found[name] = true
			if !names[name] {
				t.Errorf("%s: the emulator does not know %s", f, name)
			}
		}
	}
	if len(found) != len(names) {
		t.Errorf("the sources have %d kernels, the emulator %d", len(found), len(names))
	}
	for _, l := range launches() {
		if !names[l.Name] {
			t.Errorf("no kernel is called %q", l.Name)
		}
	}
	for _, f := range []kernels.Float{kernels.BF16, kernels.F16} {
		for dim := int32(8); dim <= 256; dim += 8 {
			l, ok := FlashSM80("flash_sm_80.cubin", f, &FlashParams{Dim: dim, MaxQ: 1, QHeads: 1, Sequences: 1})
			if !ok || !names[l.Name] {
				t.Errorf("dimension %d: no kernel is called %q", dim, l.Name)
			}
		}
	}
	for _, cc := range [][2]int{{7, 5}, {8, 0}, {8, 6}, {8, 9}, {9, 0}, {9, 1}, {10, 0}, {12, 0}, {11, 0}} {
		image, file, err := Image(cc[0], cc[1])
		if err != nil {
			t.Fatal(err)
		}
		var flash []byte
		var flashFile string
		if cc[0] >= 8 {
			if flash, flashFile, err = FlashImage(cc[0], cc[1]); err != nil {
				t.Fatal(err)
			}
		}
		for name := range names {
			image, file := image, file
			if strings.HasPrefix(name, "flash_") {
				if image, file = flash, flashFile; flash == nil {
					continue
				}
			}
			if !bytes.Contains(image, []byte(name)) {
				t.Errorf("%s has no kernel %s", file, name)
			}
		}
	}
}

func launches() []Launch {
	list := []Launch{AbsmaxSumLaunch(1), AbsmaxFoldLaunch(1), QuantizeAbsmaxLaunch(1), DequantizeAbsmaxLaunch(1)}
	for _, a := range floats {
		list = append(list, FiniteLaunch(a, 1))
		for _, b := range floats {
			if a != b {
				list = append(list, ConvertLaunch(a, b, 1))
			}
			for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
				list = append(list, DequantizeLaunch(typ, b, 1))
				if l, ok := QuantizeLaunch(typ, a, b, 1); ok {
					list = append(list, l)
				} else if a == kernels.F32 || a == b {
					panic(fmt.Sprintf("no launch quantizes %v as %v", a, b))
				}
			}
		}
	}
	return list
}
