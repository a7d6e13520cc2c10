package verify_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/verify"
)

// TestMemory: less memory changes no figure, as long as it is enough; then it is refused,
// before anything is computed, with what is needed.
func TestMemory(t *testing.T) {
	base := fixture(t, "models/kjv-llama")
	var sides [2]*hf.Checkpoint
	for i, dir := range []string{base, quantized(t, base, nil)} {
		c, err := hf.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		sides[i] = c
	}
	var first []byte
	plans := 0
	for limit := int64(0); ; plans++ {
		planned, began := int64(0), false
		o := verify.Options{Text: ids(t, 12), Threads: 2, Memory: limit, Planned: func(n int64) { planned = n }, Begin: func(string) { began = true }}
		r, err := verify.Run(context.Background(), sides[0], sides[1], o)
		if err != nil {
			if fault.ClassOf(err) != fault.Usage || !strings.Contains(err.Error(), "they need at least") || len(fault.Hints(err)) == 0 || began || planned != 0 {
				t.Errorf("with %d bytes: %v; began: %v, planned: %d", limit, err, began, planned)
			}
			break
		}
		if planned == 0 || limit > 0 && planned > limit {
			t.Fatalf("with %d bytes: planned %d", limit, planned)
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if diff := cmp.Diff(string(first), string(b)); diff != "" {
			t.Errorf("with %d bytes: %s", limit, diff)
		}
		limit = planned - 1
	}
	if plans < 3 {
		t.Errorf("%d plans, want 3 or more", plans)
	}
}

// TestMemoryIsNoFinding: what is refused is the command, not the candidate.
func TestMemoryIsNoFinding(t *testing.T) {
	base := fixture(t, "models/kjv-llama")
	c, err := hf.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	_, err = verify.Run(context.Background(), c, c, verify.Options{Text: ids(t, 1), Memory: 1})
	if err := errors.Join(err, c.Close()); fault.ClassOf(err) != fault.Usage {
		t.Errorf("with one byte: %v, of class %v", err, fault.ClassOf(err))
	}
}
