package main

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
)

// BenchmarkStartup is a whole process: `nf4conv version`.
func BenchmarkStartup(b *testing.B) {
	for b.Loop() {
		if err := program(context.Background(), "version").Run(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPlan is the whole process of a dry run over 10,000 tensors in 100 files.
func BenchmarkPlan(b *testing.B) {
	dir := fixtures.Synthetic(b, filepath.Join(b.TempDir(), "wide"), fixtures.Spec{Layers: 1111, Hidden: 16, Intermediate: 16, Heads: 2, Vocab: 16, Shards: 100})
	for b.Loop() {
		if r := nf4conv(b, "quantize", dir, filepath.Join(b.TempDir(), "out"), "--dry-run"); r.code != 0 {
			b.Fatal(r.stderr)
		}
	}
}
