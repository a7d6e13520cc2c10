package convert

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/bnb"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/nf4"
)

// The layout's rules on random plans: no overlap, no gap, alignment, a weight and its
// state in one file, files no larger than asked unless one job alone is.
func TestLayout(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for range 60 {
		spec := fixtures.Spec{
			Arch: []string{"llama", "mixtral", "gpt2"}[r.IntN(3)], Hidden: 16 * (1 + r.IntN(5)), Heads: 4, Vocab: 10 + r.IntN(50),
			Layers: 1 + r.IntN(3), Shards: 1 + r.IntN(3), DType: []string{"BF16", "F16", "F32"}[r.IntN(3)], Seed: r.Uint64(),
		}
		o := options(func(o *QuantizeOptions) {
			o.MaxShardSize = 1 + r.Int64N(200_000)
			o.BlockSize, o.DoubleQuant = 32<<r.IntN(8), r.IntN(2) == 0
		})
		p := mustPlan(t, fixtures.Synthetic(t, filepath.Join(t.TempDir(), "s"), spec), o)
		checkLayout(t, p, o.MaxShardSize)
		out := mustRun(t, p, RunOptions{})
		checkIndex(t, p, out)
		if t.Failed() {
			t.Fatalf("%+v %+v", spec, o)
		}
	}
}

func checkLayout(t *testing.T, p *Plan, maxShard int64) {
	t.Helper()
	type span struct{ begin, end int64 }
	spans := make([][]span, len(p.Files))
	jobs := make([]int, len(p.Files))
	sizes := make([]int64, len(p.Files))
	last := 0
	for i := range p.Jobs {
		j := &p.Jobs[i]
		file := j.Outputs[0].File
		if file < last {
			t.Errorf("%s goes back to file %d", j.Name, file)
		}
		last = file
		jobs[file]++
		for _, o := range j.Outputs {
			if o.File != file {
				t.Errorf("%s is in file %d, its weight in %d", o.Tensor, o.File, file)
			}
			if bits, _ := o.DType.Bits(); (p.Files[file].HeaderSize+o.Offset)%int64(max(1, bits/8)) != 0 {
				t.Errorf("%s (%s) begins at %d", o.Tensor, o.DType, p.Files[file].HeaderSize+o.Offset)
			}
			spans[file] = append(spans[file], span{o.Offset, o.Offset + o.Size})
			sizes[file] += o.Size
		}
	}
	for f := range spans {
		slices.SortFunc(spans[f], func(a, b span) int { return int(a.begin - b.begin) })
		at := int64(0)
		for _, s := range spans[f] {
			if s.begin != at {
				t.Errorf("file %d: a gap or an overlap at %d: the next tensor begins at %d", f, at, s.begin)
			}
			at = s.end
		}
		if at != p.Files[f].DataSize {
			t.Errorf("file %d: %d bytes planned, %d placed", f, p.Files[f].DataSize, at)
		}
		if jobs[f] > 1 && sizes[f] > maxShard {
			t.Errorf("file %d: %d bytes of %d jobs, at most %d were asked for", f, sizes[f], jobs[f], maxShard)
		}
	}
}

// checkIndex holds the files that were written against the plan and the index.
func checkIndex(t *testing.T, p *Plan, out string) {
	t.Helper()
	c := openSource(t, out) // reads by all rules: every tensor is in the file that the index names
	var planned, found []string
	for i := range p.Jobs {
		for _, o := range p.Jobs[i].Outputs {
			planned = append(planned, o.Tensor+" "+p.Files[o.File].Name)
		}
	}
	total := int64(0)
	for _, x := range c.Tensors() {
		found = append(found, x.Name+" "+filepath.Base(x.File.Path()))
		total += x.Bytes()
	}
	slices.Sort(planned)
	slices.Sort(found)
	if !slices.Equal(planned, found) {
		t.Errorf("planned tensors %q, found %q", planned, found)
	}
	if len(p.Files) == 1 {
		if _, err := os.Stat(filepath.Join(out, "model.safetensors.index.json")); err == nil {
			t.Error("one file and an index")
		}
		return
	}
	var index struct {
		Metadata struct {
			Size int64 `json:"total_size"`
		} `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}
	b, err := os.ReadFile(filepath.Join(out, "model.safetensors.index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	if index.Metadata.Size != total || len(index.WeightMap) != len(found) {
		t.Errorf("the index says %d bytes in %d tensors; there are %d in %d", index.Metadata.Size, len(index.WeightMap), total, len(found))
	}
}

// The manifest's digests are those of the bytes in the source and in the output.
func TestManifestDigests(t *testing.T) {
	for _, src := range fixtures.Models(t) {
		p := mustPlan(t, src, options(func(o *QuantizeOptions) { o.MaxShardSize = 2_000_000 }))
		out := mustRun(t, p, RunOptions{SHA256: true, Card: true})
		m := readManifest(t, out)
		a, b := openSource(t, src), openSource(t, out)
		if len(m.Tensors) != len(a.Tensors()) {
			t.Errorf("%s: %d tensors in the manifest, %d in the source", src, len(m.Tensors), len(a.Tensors()))
		}
		outputs := 0
		for _, x := range m.Tensors {
			for _, d := range x.Source {
				checkDigest(t, a, d)
			}
			for _, d := range x.Outputs {
				checkDigest(t, b, d)
			}
			outputs += len(x.Outputs)
		}
		if outputs != len(b.Tensors()) {
			t.Errorf("%s: %d outputs in the manifest, %d tensors in the files", src, outputs, len(b.Tensors()))
		}
		files := readTree(t, out)
		named := map[string]bool{ManifestName: true, "SHA256SUMS": true}
		for _, f := range slices.Concat(m.Files, m.Written, m.Carried) {
			if named[f.Name] {
				t.Errorf("%s: %s stands twice in the manifest", src, f.Name)
			}
			named[f.Name] = true
			content, there := files[f.Name]
			if !there || int64(len(content)) != f.Size {
				t.Errorf("%s: %s has %d bytes, the manifest says %d", src, f.Name, len(content), f.Size)
			}
			if f.BLAKE3 != nil && *f.BLAKE3 != treehash.Sum(content) {
				t.Errorf("%s: %s has another digest", src, f.Name)
			}
		}
		for name := range files {
			if !named[name] {
				t.Errorf("%s: the manifest does not name %s", src, name)
			}
		}
	}
}

func readManifest(t *testing.T, out string) *Manifest {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(out, ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return &m
}

func checkDigest(t *testing.T, c *hf.Checkpoint, d TensorDigest) {
	t.Helper()
	x, ok := c.Lookup(d.Tensor)
	if !ok || filepath.Base(x.File.Path()) != d.File {
		t.Errorf("%s in %s: in the manifest alone", d.Tensor, d.File)
		return
	}
	b := make([]byte, x.Bytes())
	if err := x.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if treehash.Sum(b) != d.BLAKE3 {
		t.Errorf("%s: the manifest has another digest", d.Tensor)
	}
}

// Sizes of the quant state are bounds: the offset's text is known last.
func TestStateBoundHolds(t *testing.T) {
	for _, typ := range []nf4.Type{nf4.NF4, nf4.FP4} {
		src := small(t)
		p := mustPlan(t, src, options(func(o *QuantizeOptions) { o.Type = typ }))
		out := openSource(t, mustRun(t, p, RunOptions{}))
		for i := range p.Jobs {
			for _, o := range p.Jobs[i].Outputs {
				if o.Part != PartQuantState {
					continue
				}
				if x, ok := out.Lookup(o.Tensor); !ok || x.Bytes() > o.Size {
					t.Errorf("%s: larger than planned, or missing", o.Tensor)
				}
				if !strings.HasSuffix(o.Tensor, bnb.StateSuffix(typ)) {
					t.Errorf("%s: expected the suffix %s", o.Tensor, bnb.StateSuffix(typ))
				}
			}
		}
	}
}
