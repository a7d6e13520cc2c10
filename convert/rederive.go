package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// Difference is something of a checkpoint that the conversion its manifest describes does
// not write.
type Difference struct {
	File    string // of the checkpoint
	Tensor  string // physical; empty: the file itself
	Element int64  // the first that differs, flat; of packed codes an element is a nibble, the high one first; -1: all of it
	Bytes   int64  // how many differ; 0: it is missing, or has another dtype or shape
	Text    string // what was expected and what was found
}

// Rederived is what repeating a conversion found.
type Rederived struct {
	Tensors     int          // logical tensors that were converted again
	Of          int          // logical tensors of the checkpoint
	Bytes       int64        // of tensors, compared
	Differences []Difference // in the order of the plan
}

// Rederive carries out the plan that [PlanFromManifest] made and compares, instead of
// writing, every byte of the tensors that chosen tells of with those of candidate; nil: all
// of them. Headers, config.json and the files that were carried are compared in any case. Errors
// are of class fault.Input where a tensor of the source is not the one that the manifest
// names, because then nothing is said about the candidate.
func Rederive(ctx context.Context, p *Plan, m *Manifest, candidate *hf.Checkpoint, chosen func(tensor string) bool) (*Rederived, error) {
	c := &comparer{plan: p, candidate: candidate, found: map[string]*Difference{}, skip: map[string]bool{}, packed: map[string]bool{}}
	out := &Rederived{Of: len(p.Jobs)}
	r := &runner{plan: p, opts: RunOptions{Progress: &Progress{}}, engine: CPU{}, sink: c, log: slog.New(slog.DiscardHandler), records: make([]Record, len(p.Jobs))}
	redo := make([]bool, len(p.Jobs))
	for i := range p.Jobs {
		j := &p.Jobs[i]
		if redo[i] = chosen == nil || chosen(j.Name); !redo[i] {
			r.records[i].Name = j.Name // counts as done
			continue
		}
		out.Tensors++
	}
	c.headers()
	if err := r.convert(ctx); err != nil {
		return nil, err
	}
	for i := range p.Jobs {
		if !redo[i] {
			continue
		}
		if err := c.job(&p.Jobs[i], &m.Tensors[i], &r.records[i]); err != nil {
			return nil, err
		}
	}
	if err := checkUnchanged(p); err != nil {
		return nil, err
	}
	if !candidate.IsFile() {
		if err := c.sideFiles(m); err != nil {
			return nil, err
		}
	}
	out.Bytes, out.Differences = c.bytes, c.inOrder()
	return out, nil
}

// comparer is a sink that compares.
type comparer struct {
	plan      *Plan
	candidate *hf.Checkpoint
	mu        sync.Mutex
	bytes     int64
	found     map[string]*Difference // by tensor
	skip      map[string]bool        // tensors that cannot be compared byte by byte
	packed    map[string]bool        // tensors of two codes a byte
	files     []Difference
}

// headers compares what the headers say of every planned tensor, and looks for others.
func (c *comparer) headers() {
	planned := map[string]bool{}
	for i := range c.plan.Jobs {
		j := &c.plan.Jobs[i]
		c.packed[j.Outputs[0].Tensor] = j.Quantized()
		for k := range j.Outputs {
			at := &j.Outputs[k]
			file := c.plan.Files[at.File].Name
			planned[at.Tensor] = true
			t, ok := c.candidate.Lookup(at.Tensor)
			var text string
			switch {
			case !ok:
				text = "it is missing"
			case t.DType != at.DType || at.Part != PartQuantState && !slices.Equal(t.Shape, at.Shape):
				text = fmt.Sprintf("%s %v; expected %s %v", t.DType, t.Shape, at.DType, at.Shape)
			case !c.candidate.IsFile() && filepath.Base(t.File.Path()) != file:
				text = fmt.Sprintf("it is in %q; expected %q", filepath.Base(t.File.Path()), file)
			default:
				continue
			}
			c.skip[at.Tensor] = true
			c.found[at.Tensor] = &Difference{File: file, Tensor: at.Tensor, Element: -1, Text: text}
		}
	}
	for _, t := range c.candidate.Tensors() {
		if !planned[t.Name] {
			c.files = append(c.files, Difference{File: filepath.Base(t.File.Path()), Tensor: t.Name, Element: -1, Text: "the conversion writes no such tensor"})
		}
	}
}

// write implements sink.
func (c *comparer) write(at *Placement, offset int64, p []byte) error {
	if c.skip[at.Tensor] || len(p) == 0 {
		return nil
	}
	t, _ := c.candidate.Lookup(at.Tensor)
	have := make([]byte, len(p))
	if err := t.ReadAt(have, offset); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes += int64(len(p))
	if bytes.Equal(p, have) {
		return nil
	}
	c.differ(at, offset, p, have)
	return nil
}

// differ notes the first difference of a tensor and counts all.
func (c *comparer) differ(at *Placement, offset int64, want, have []byte) {
	n, first := int64(0), -1
	for i := range want {
		if want[i] != have[i] {
			n++
			if first < 0 {
				first = i
			}
		}
	}
	d := c.found[at.Tensor]
	if d == nil {
		d = &Difference{File: c.plan.Files[at.File].Name, Tensor: at.Tensor, Element: -1}
		c.found[at.Tensor] = d
	}
	d.Bytes += n
	element, text := elementOf(at, c.packed[at.Tensor], offset, first, want, have)
	if d.Element < 0 || element < d.Element {
		d.Element, d.Text = element, text
	}
}

// elementOf is the element at byte i of a piece, and what both sides have there.
func elementOf(at *Placement, packed bool, offset int64, i int, want, have []byte) (element int64, text string) {
	if packed {
		w, h, half := want[i]>>4, have[i]>>4, int64(0)
		if w == h {
			w, h, half = want[i]&15, have[i]&15, 1
		}
		return 2*(offset+int64(i)) + half, fmt.Sprintf("code %d; expected %d", h, w)
	}
	size := 1
	if bits, ok := at.DType.Bits(); ok && bits >= 8 {
		size = bits / 8
	}
	i -= i % size
	end := min(len(want), i+size)
	return (offset + int64(i)) / int64(size), fmt.Sprintf("bytes %x; expected %x", have[i:end], want[i:end])
}

// job compares what is known at the end of a job: the quant state, and the digests of the
// manifest, those of the source first.
func (c *comparer) job(j *Job, t *ManifestTensor, rec *Record) error {
	for k := range rec.Source {
		if k >= len(t.Source) || t.Source[k].BLAKE3 != rec.Source[k] {
			return fault.WithHint(
				fault.Inputf("repeating the conversion: %q: tensor %q is not the one that the manifest says was converted: its BLAKE3 is %v", j.Inputs[k].File, j.Inputs[k].Name, rec.Source[k]),
				"give the checkpoint (and adapters) that the candidate was made from")
		}
	}
	for k := range j.Outputs {
		at := &j.Outputs[k]
		if at.Part == PartQuantState && !c.skip[at.Tensor] {
			text, err := c.state(at)
			if err != nil {
				return err
			}
			c.bytes += int64(len(text))
			if text != rec.State {
				c.found[at.Tensor] = &Difference{File: c.plan.Files[at.File].Name, Tensor: at.Tensor, Bytes: 1, Text: fmt.Sprintf("%q; expected %q", text, rec.State)}
			}
		}
		if c.found[at.Tensor] == nil && (k >= len(t.Outputs) || t.Outputs[k].BLAKE3 != rec.Outputs[k]) {
			c.found[at.Tensor] = &Difference{File: ManifestName, Tensor: at.Tensor, Element: -1, Text: fmt.Sprintf("the manifest's digest is not that of the tensor, %v", rec.Outputs[k])}
		}
	}
	return nil
}

// maxState bounds the JSON of a quant state.
const maxState = 1 << 16

func (c *comparer) state(at *Placement) (string, error) {
	t, _ := c.candidate.Lookup(at.Tensor)
	b := make([]byte, min(t.Bytes(), maxState))
	return string(b), t.ReadAt(b, 0)
}

// sideFiles compares config.json, which the plan knows, and files that were carried.
func (c *comparer) sideFiles(m *Manifest) error {
	for _, t := range c.plan.Texts {
		if err := c.file(t.Name, int64(len(t.Content)), strings.NewReader(t.Content)); err != nil {
			return err
		}
	}
	for i := range c.plan.Side {
		s := &c.plan.Side[i]
		if slices.ContainsFunc(m.Written, func(f ManifestFile) bool { return f.Name == s.Name }) {
			continue // a model card was added to it
		}
		f, err := os.Open(s.path)
		if err != nil {
			return fault.IOf("repeating the conversion: %w", err)
		}
		if err := errors.Join(c.file(s.Name, s.Size, f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// file compares a file beside the weights with what it should be.
func (c *comparer) file(name string, size int64, want io.Reader) error {
	differ := func(element int64, format string, a ...any) {
		c.files = append(c.files, Difference{File: name, Element: element, Text: fmt.Sprintf(format, a...)})
	}
	f, err := os.Open(filepath.Join(c.candidate.Path(), filepath.FromSlash(name)))
	if errors.Is(err, os.ErrNotExist) {
		differ(-1, "it is missing")
		return nil
	}
	if err != nil {
		return fault.IOf("repeating the conversion: %w", err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() != size {
		differ(-1, "another size than the %d bytes expected", size)
		return err
	}
	x, y := make([]byte, 1<<16), make([]byte, 1<<16)
	for at := int64(0); at < size; {
		n := min(int64(len(x)), size-at)
		if _, err := io.ReadFull(want, x[:n]); err != nil {
			return fault.IOf("repeating the conversion: %q: %w", name, err)
		}
		if _, err := io.ReadFull(f, y[:n]); err != nil {
			return fault.IOf("repeating the conversion: %q: %w", name, err)
		}
		for i := range n {
			if x[i] != y[i] {
				differ(at+i, "byte %d is %#x; expected %#x", at+i, y[i], x[i])
				return nil
			}
		}
		at += n
	}
	return nil
}

// inOrder lists the differences in the order of the plan, files last.
func (c *comparer) inOrder() []Difference {
	var out []Difference
	for i := range c.plan.Jobs {
		for k := range c.plan.Jobs[i].Outputs {
			if d := c.found[c.plan.Jobs[i].Outputs[k].Tensor]; d != nil {
				out = append(out, *d)
			}
		}
	}
	return append(out, c.files...)
}
