package convert

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// sumsName is the file of SHA-256 sums, in the form that sha256sum -c reads.
const sumsName = "SHA256SUMS"

// finish seals the files, writes everything around them and gives the output its name.
func (r *runner) finish(ctx context.Context, res *Result) error {
	if err := checkUnchanged(r.plan); err != nil {
		return err
	}
	if err := r.checkMerged(res); err != nil {
		return err
	}
	files, err := r.out.seal(r.records)
	if err != nil {
		return err
	}
	m := r.manifest(files)
	sync := !r.opts.NoSync
	if r.out.paths.file == "" {
		if err := r.writeSide(files, m, sync); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if sync {
		if err := r.out.sync(); err != nil {
			return err
		}
	}
	if r.opts.SHA256 {
		if err := r.addSHA256(m, sync); err != nil {
			return err
		}
	}
	if err := r.out.writeFile(ManifestName, sync, m.write); err != nil {
		return err
	}
	if err := r.out.close(); err != nil {
		return fault.IOf("closing the output: %w", err)
	}
	if err := r.sweep(m); err != nil {
		return err
	}
	if err := r.complete(sync); err != nil {
		return err
	}
	r.summarize(files, res)
	return nil
}

// writeSide writes and carries everything that is not weights.
func (r *runner) writeSide(files []sealed, m *Manifest, sync bool) error {
	for i := range r.plan.Side {
		s := &r.plan.Side[i]
		d, err := r.out.copySide(s, sync)
		if err != nil {
			return err
		}
		m.Carried = append(m.Carried, ManifestFile{Name: s.Name, Size: s.Size, BLAKE3: &d})
	}
	for _, t := range r.plan.Texts {
		if err := r.out.writeText(t.Name, []byte(t.Content), sync); err != nil {
			return err
		}
		d := treehash.Sum([]byte(t.Content))
		m.Written = append(m.Written, ManifestFile{Name: t.Name, Size: int64(len(t.Content)), BLAKE3: &d})
	}
	if len(files) > 1 {
		text, err := indexText(files, r.plan.Totals.Params)
		if err != nil {
			return fmt.Errorf("encoding the index: %w", err)
		}
		const name = "model.safetensors.index.json"
		if err := r.out.writeText(name, text, sync); err != nil {
			return err
		}
		d := treehash.Sum(text)
		m.Written = append(m.Written, ManifestFile{Name: name, Size: int64(len(text)), BLAKE3: &d})
	}
	if r.opts.Card {
		return r.writeCard(files, m, sync)
	}
	return nil
}

// sweep removes what an interrupted run wrote and this one did not: its --card and
// --sha256 may have been other ones.
func (r *runner) sweep(m *Manifest) error {
	keep := map[string]bool{ManifestName: true, sumsName: r.opts.SHA256}
	for _, f := range slices.Concat(m.Files, m.Written, m.Carried) {
		keep[f.Name] = true
	}
	dir := r.out.paths.partial
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err == nil && !keep[filepath.ToSlash(name)] {
			err = os.Remove(path)
		}
		return err
	})
	if err != nil {
		return fault.IOf("clearing the output: %w", err)
	}
	return nil
}

// complete records that nothing is missing but the name, and gives the name.
func (r *runner) complete(sync bool) error {
	ps := &r.out.paths
	if sync {
		err := filepath.WalkDir(ps.partial, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = syncDir(path)
			}
			return err
		})
		if err != nil {
			return fault.IOf("syncing the output: %w", err)
		}
	}
	end := journalEnd{Complete: true}
	if err := checkFree(ps, r.opts.Overwrite); err != nil { // something may have appeared meanwhile
		return err
	}
	taken, err := exists(ps.out)
	if err != nil {
		return err
	}
	if taken && ps.file == "" {
		if end.Replaces, err = occupant(ps.out); err != nil {
			return err
		}
	}
	if err := r.journal.append(&end); err != nil {
		return err
	}
	if sync {
		if err := r.journal.sync(); err != nil {
			return err
		}
	}
	return publish(ps, end.Replaces, r.journal)
}

// occupant identifies the directory that a new one replaces; an empty one is just
// removed and has no identity.
func occupant(dir string) (fileID, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fileID{}, fault.IOf("looking at the output: %w", err)
	}
	if len(entries) == 0 {
		return fileID{}, nil
	}
	id, err := identify(dir)
	if err != nil {
		return fileID{}, fault.IOf("looking at the output: %w", err)
	}
	return id, nil
}

// checkUnchanged refuses to finish when a source file was written to meanwhile.
func checkUnchanged(p *Plan) error {
	for _, f := range p.weightFiles() {
		then := f.Stat()
		now, err := os.Stat(f.Path())
		if err != nil {
			return fault.Inputf("reading %q: it is gone: %w", f.Path(), err)
		}
		if now.Size() != then.Size() || !now.ModTime().Equal(then.ModTime()) || !os.SameFile(now, then) {
			return fault.WithHint(
				fault.Inputf("reading %q: it was changed while it was read: %d bytes of %v then, %d bytes of %v now",
					f.Path(), then.Size(), then.ModTime(), now.Size(), now.ModTime()),
				"the output would mix two versions; convert again when the source is at rest")
		}
	}
	return nil
}

// addSHA256 takes the SHA-256 of every weight file and writes SHA256SUMS.
func (r *runner) addSHA256(m *Manifest, sync bool) error {
	sums := make([]string, len(m.Files))
	var g errgroup.Group
	g.SetLimit(r.plan.Schedule.Workers)
	for i := range m.Files {
		g.Go(func() error {
			f := r.out.files[i]
			h := sha256.New()
			if _, err := io.Copy(h, bufio.NewReaderSize(io.NewSectionReader(f, 0, m.Files[i].Size), 1<<18)); err != nil {
				return fault.IOf("hashing %q: %w", m.Files[i].Name, err)
			}
			sums[i] = hex.EncodeToString(h.Sum(nil))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var text []byte
	for i := range m.Files {
		m.Files[i].SHA256 = sums[i]
		text = fmt.Appendf(text, "%s  %s\n", sums[i], m.Files[i].Name)
	}
	if r.out.paths.file != "" {
		return nil // the manifest beside the file holds it
	}
	return r.out.writeText(sumsName, text, sync)
}

// summarize fills in what people want to know.
func (r *runner) summarize(files []sealed, res *Result) {
	res.Out, res.Manifest = r.out.paths.out, r.out.paths.manifestPath()
	res.BytesIn = r.plan.Totals.BytesIn
	for _, f := range files {
		res.Files = append(res.Files, f.Name)
		res.BytesOut += f.size
	}
	if r.plan.Totals.Params > 0 {
		res.Bits = 8 * float64(res.BytesOut) / float64(r.plan.Totals.Params)
	}
	var sum float64
	for i := range r.records {
		if r.plan.Jobs[i].Quantized() {
			res.Worst = append(res.Worst, TensorError{Tensor: r.records[i].Name, RelError: r.records[i].Rel})
			sum += r.records[i].Rel
		}
	}
	if n := len(res.Worst); n > 0 {
		res.MeanError = sum / float64(n)
	}
	slices.SortStableFunc(res.Worst, func(a, b TensorError) int { return cmp.Compare(b.RelError, a.RelError) })
	res.Worst = res.Worst[:min(5, len(res.Worst))]
}
