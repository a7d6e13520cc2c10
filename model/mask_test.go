package model_test

import (
	"context"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/flash"
	"github.com/nf4conv/nf4conv/model"
)

// TestBlockMask: a model without a window, under a mask of blocks of one token that leaves
// 16 of them, is the model with a window of 16.
func TestBlockMask(t *testing.T) {
	dir := fixture(t, "arch/mistral")
	g := golden(t, dir)
	seqs, tokens, rows := g.batch(t)
	full := open(t, edited(t, dir, set(map[string]any{"sliding_window": nil})), model.Options{Threads: 2})
	want, shape := g.floats(t, "hidden_states")
	width := int(shape[len(shape)-1])
	last := want[full.Layers()*rows*width:]
	got, err := model.Forward(context.Background(), full, seqs, model.RunOptions{Mask: flash.Local(1, 48, 48, 15)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "hidden state under the mask", got, last, width, tokens)
}
