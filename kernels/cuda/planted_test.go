package cuda

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPlantedBugs shows that the emulator finds what it is there to find.
func TestPlantedBugs(t *testing.T) {
	cxx := compiler(t)
	path := filepath.Join(scratch, "planted")
	args := []string{"-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o", path, "emu/emu.cpp", "emu/test/planted.cpp"}
	if out, err := exec.Command(cxx, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", cxx, strings.Join(args, " "), err, out)
	}
	for name, want := range map[string]string{
		"divergent":  "lanes of a warp meet in different collectives",
		"left":       "a lane left the kernel",
		"stuck":      "deadlock",
		"partial":    "a collective of a part of a warp",
		"overrun":    "heap-buffer-overflow",
		"misaligned": "misaligned address",
	} {
		out, err := exec.Command(path, name).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: got %v, want a failure with %q\n%s", name, err, want, out)
		}
	}
	for name, same := range map[string]bool{"sound": true, "race": false} {
		out, err := exec.Command(path, name).CombinedOutput()
		results := strings.Fields(string(out))
		if err != nil || len(results) != 4 {
			t.Errorf("%s: %v\n%s", name, err, out)
			continue
		}
		if got := len(slices.Compact(slices.Clone(results))) == 1; got != same {
			t.Errorf("%s: results of four orders are %q", name, results)
		}
	}
}
