package convert

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/internal/units"
)

// paths are the names that a run uses beside the final one.
type paths struct {
	out     string // final name
	partial string // directory in which the output grows
	journal string
	old     string // where the replaced output waits on systems that cannot exchange names
	file    string // in single-file mode: name of the file within partial; else empty
}

func makePaths(out, fileName string) paths {
	out = filepath.Clean(out)
	return paths{out: out, partial: out + ".partial", journal: out + ".partial.journal", old: out + ".partial.old", file: fileName}
}

// manifestPath is where the manifest ends up: within the directory, or beside a single file.
func (p *paths) manifestPath() string {
	if p.file != "" {
		return p.out + "." + ManifestName
	}
	return filepath.Join(p.out, ManifestName)
}

// output is the growing output directory.
type output struct {
	paths paths
	plan  *Plan
	files []*os.File
	turns []sync.Mutex                  // one per file
	wrap  func(io.WriterAt) io.WriterAt // tests put faults here
}

// open creates or reopens the weight files at their planned size.
func (o *output) open() error {
	o.turns = make([]sync.Mutex, len(o.plan.Files))
	if err := os.MkdirAll(o.paths.partial, 0o777); err != nil {
		return fault.IOf("creating the output: %w", err)
	}
	for i := range o.plan.Files {
		f := &o.plan.Files[i]
		fh, err := os.OpenFile(filepath.Join(o.paths.partial, f.Name), os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			return fault.IOf("creating the output: %w", err)
		}
		o.files = append(o.files, fh)
		if err := reserve(fh, f.HeaderSize+f.DataSize); err != nil {
			return spaceError(fmt.Errorf("reserving %d bytes for %q: %w", f.HeaderSize+f.DataSize, f.Name, err))
		}
	}
	return nil
}

func (o *output) close() error {
	var errs []error
	for _, f := range o.files {
		errs = append(errs, f.Close())
	}
	o.files = nil
	return errors.Join(errs...)
}

// longWrite is the size of a write from which workers queue for their turn. A file system
// lets one writer of a file in at a time, and the others spin: their cores have better to do.
// Short writes change hands too often for a queue to pay.
const longWrite = 512 << 10

// write puts p at byte offset of a placement.
func (o *output) write(at *Placement, offset int64, p []byte) error {
	f := &o.plan.Files[at.File]
	if len(p) >= longWrite {
		o.turns[at.File].Lock()
		defer o.turns[at.File].Unlock()
	}
	if _, err := o.writer(at.File).WriteAt(p, f.HeaderSize+at.Offset+offset); err != nil {
		return spaceError(fmt.Errorf("writing %q: tensor %q: %w", f.Name, at.Tensor, err))
	}
	return nil
}

func (o *output) writer(file int) io.WriterAt {
	if o.wrap != nil {
		return o.wrap(o.files[file])
	}
	return o.files[file]
}

func spaceError(err error) error {
	return fault.WithHint(fault.IOf("%w", err), "what is done is kept: free some space and give the same command again")
}

// digest reads back size bytes of a placement.
func (o *output) digest(at *Placement) (treehash.Digest, error) {
	const piece = 1 << 18
	tree := treehash.New(at.Size, piece)
	buf := make([]byte, min(piece, at.Size))
	base := o.plan.Files[at.File].HeaderSize + at.Offset
	for off := int64(0); off < at.Size; off += piece {
		p := buf[:min(piece, at.Size-off)]
		if _, err := o.files[at.File].ReadAt(p, base+off); err != nil {
			return treehash.Digest{}, fault.IOf("reading back %q: tensor %q: %w", o.plan.Files[at.File].Name, at.Tensor, err)
		}
		tree.AddRange(off, p)
	}
	return tree.Sum(), nil
}

// sealed is a finished weight file: what its header says.
type sealed struct {
	File
	tensors []safetensors.Tensor
	size    int64
}

// seal writes the quant-state JSON and the headers, cuts the files to size and syncs
// them. records are aligned with the plan's jobs.
func (o *output) seal(records []Record) ([]sealed, error) {
	done := make([]sealed, len(o.plan.Files))
	next := make([]int64, len(o.plan.Files))
	for i, f := range o.plan.Files {
		done[i].File, next[i] = f, f.StateBegin
	}
	for i := range o.plan.Jobs {
		for k := range o.plan.Jobs[i].Outputs {
			at := o.plan.Jobs[i].Outputs[k]
			if at.Part == PartQuantState {
				state := []byte(records[i].State)
				at.Offset, at.Size, at.Shape = next[at.File], int64(len(state)), []int64{int64(len(state))}
				next[at.File] += at.Size
				if err := o.write(&at, 0, state); err != nil {
					return nil, err
				}
			}
			done[at.File].tensors = append(done[at.File].tensors, at.entry())
		}
	}
	for i := range done {
		s := &done[i]
		slices.SortFunc(s.tensors, func(a, b safetensors.Tensor) int { return compareBegin(&a, &b) })
		header, err := safetensors.EncodeHeader(metadata, s.tensors, s.HeaderSize)
		if err != nil {
			return nil, fmt.Errorf("writing the header of %q: %w", s.Name, err)
		}
		s.size = s.HeaderSize + next[i]
		f := o.files[i]
		if _, err := o.writer(i).WriteAt(header, 0); err != nil {
			return nil, spaceError(fmt.Errorf("writing the header of %q: %w", s.Name, err))
		}
		if err := f.Truncate(s.size); err != nil {
			return nil, fault.IOf("setting the length of %q: %w", s.Name, err)
		}
	}
	return done, nil
}

// compareBegin orders tensors by place; empty ones stand before what starts there.
func compareBegin(a, b *safetensors.Tensor) int {
	switch {
	case a.Begin != b.Begin && a.Begin < b.Begin, a.Begin == b.Begin && a.End < b.End:
		return -1
	case a.Begin == b.Begin && a.End == b.End:
		return 0
	}
	return 1
}

// sync makes the weight files durable.
func (o *output) sync() error {
	for i, f := range o.files {
		if err := f.Sync(); err != nil {
			return spaceError(fmt.Errorf("syncing %q: %w", o.plan.Files[i].Name, err))
		}
	}
	return nil
}

// writeText writes a small file into the output and syncs it.
func (o *output) writeText(name string, content []byte, sync bool) error {
	return o.writeFile(name, sync, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// writeFile writes a file that is no weights into the output and syncs it.
func (o *output) writeFile(name string, sync bool, write func(io.Writer) error) error {
	path := filepath.Join(o.paths.partial, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return fault.IOf("writing %q: %w", name, err)
	}
	f, err := os.Create(path)
	if err != nil {
		return fault.IOf("writing %q: %w", name, err)
	}
	b := bufio.NewWriter(f)
	if err = write(b); err == nil {
		err = b.Flush()
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return spaceError(fmt.Errorf("writing %q: %w", name, err))
	}
	return nil
}

// copySide carries a file of the source and returns its digest.
func (o *output) copySide(s *Side, sync bool) (treehash.Digest, error) {
	in, err := os.Open(s.path)
	if err != nil {
		return treehash.Digest{}, fault.IOf("carrying %q: %w", s.Name, err)
	}
	defer in.Close()
	path := filepath.Join(o.paths.partial, filepath.FromSlash(s.Name))
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return treehash.Digest{}, fault.IOf("carrying %q: %w", s.Name, err)
	}
	out, err := os.Create(path)
	if err != nil {
		return treehash.Digest{}, fault.IOf("carrying %q: %w", s.Name, err)
	}
	defer out.Close() // a second close after the checked one below
	const piece = 1 << 18
	tree := treehash.New(s.Size, piece)
	buf := make([]byte, min(piece, s.Size))
	for off := int64(0); off < s.Size; off += piece {
		p := buf[:min(piece, s.Size-off)]
		if _, err := io.ReadFull(in, p); err != nil {
			return treehash.Digest{}, fault.Inputf("carrying %q: it is shorter than the %d bytes it had: %w", s.Name, s.Size, err)
		}
		tree.AddRange(off, p)
		if _, err := out.Write(p); err != nil {
			return treehash.Digest{}, spaceError(fmt.Errorf("carrying %q: %w", s.Name, err))
		}
	}
	if sync {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return treehash.Digest{}, spaceError(fmt.Errorf("carrying %q: %w", s.Name, err))
	}
	return tree.Sum(), nil
}

// indexText is model.safetensors.index.json as transformers writes it: two spaces,
// sorted keys.
func indexText(files []sealed, params int64) ([]byte, error) {
	type meta struct {
		Parameters int64 `json:"total_parameters"`
		Size       int64 `json:"total_size"`
	}
	doc := struct {
		Metadata  meta              `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}{Metadata: meta{Parameters: params}, WeightMap: map[string]string{}}
	for i := range files {
		for k := range files[i].tensors {
			t := &files[i].tensors[k]
			doc.Metadata.Size += t.Bytes()
			doc.WeightMap[t.Name] = files[i].Name
		}
	}
	b, err := json.MarshalIndent(&doc, "", "  ")
	return append(b, '\n'), err
}

// checkSpace refuses before the first byte when the output cannot fit.
func checkSpace(p *Plan, ps *paths) error {
	dir := filepath.Dir(ps.out)
	free, err := freeSpace(dir)
	if err != nil {
		return fault.IOf("looking for space: %w", err)
	}
	need := int64(1 << 20) // journal, index, manifest
	for _, f := range p.Files {
		need += f.HeaderSize + f.DataSize
	}
	for _, s := range p.Side {
		need += s.Size
	}
	need -= usedBy(ps.partial)
	if need > free {
		return fault.WithHint(
			fault.IOf("writing %q: the output needs %s more, the disk has %s free", ps.out, units.Bytes(need), units.Bytes(free)),
			"free %s (%d bytes), or write to another disk", units.Bytes(need-free), need-free)
	}
	return nil
}

// usedBy is the size of the regular files below dir.
func usedBy(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				n += allocated(fi)
			}
		}
		return nil
	})
	return n
}
