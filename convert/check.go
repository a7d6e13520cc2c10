package convert

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// Check tells whether [Run] would take up the plan with these options: whether the output
// may have that name, whether something is in the way, whether it fits on the disk, and
// whether an interrupted run is one that this plan continues. It changes nothing. Run checks
// all of it again.
func Check(p *Plan, o RunOptions) error {
	if err := CheckName(o.Out); err != nil {
		return err
	}
	r := &runner{plan: p, opts: o}
	ps := makePaths(o.Out, singleFile(p))
	if err := checkNames(p, &ps); err != nil {
		return err
	}
	switch haveJournal, err := exists(ps.journal); {
	case err != nil:
		return err
	case haveJournal:
		if unnamed, err := r.checkJournal(&ps); unnamed || err != nil {
			return err
		}
	default:
		if havePartial, err := exists(ps.partial); havePartial || err != nil {
			return errors.Join(err, strangePartial(&ps))
		}
	}
	if err := checkFree(&ps, o.Overwrite); err != nil {
		return err
	}
	if err := mayWrite(filepath.Dir(ps.out)); err != nil {
		return fault.WithHint(fault.IOf("writing %q: %w", ps.out, err), "OUT.partial and OUT.partial.journal stand beside OUT; you need the right to write there")
	}
	return checkSpace(p, &ps)
}

// checkJournal refuses what an interrupted run of another plan left. unnamed is true when
// that run had done everything but give the output its name, which Run does first.
func (r *runner) checkJournal(ps *paths) (unnamed bool, err error) {
	j, err := openJournal(ps.journal, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, j.close()) }()
	c, ok, err := j.read()
	if err != nil || c.end != nil || !ok || r.opts.Restart {
		return c.end != nil, err
	}
	head, err := r.head()
	if err == nil && c.head.Plan != head.Plan {
		err = changedError(ps, &c.head, &head)
	}
	return false, err
}

// CheckName refuses output names under which nothing can be made: an empty one, and ones
// that say where a directory is rather than what it is called.
func CheckName(out string) error {
	if out == "" {
		return fault.WithHint(fault.Usagef("the name of the output is empty"), "give it a name, as in model-nf4")
	}
	// filepath.Base would drop a trailing separator and clean nothing else.
	switch base := filepath.Base(out); base {
	case ".", "..", string(filepath.Separator):
		return fault.WithHint(
			fault.Usagef("writing %q: the output grows beside its name and takes it at the end, so it needs a name of its own, not %q", out, base),
			"give it a name, as in %s", filepath.Join(out, "model-nf4"))
	}
	return nil
}

func strangePartial(ps *paths) error {
	return fault.WithHint(
		fault.Inputf("writing %q: %q is in the way and has no journal, so nf4conv did not make it or cannot continue it", ps.out, ps.partial),
		"look at it, and remove it if nobody needs it")
}

// changedError says in what two runs differ.
func changedError(ps *paths, then, now *journalHead) error {
	what := "the source's headers, configuration or side files, or the version of nf4conv"
	var changed []string
	if then.Verb != now.Verb {
		changed = append(changed, fmt.Sprintf("the verb was %s, now it is %s", then.Verb, now.Verb))
	} else {
		changed = changedOptions(then.Options, now.Options)
	}
	if !slices.Equal(then.Sources, now.Sources) {
		changed = append(changed, "the source files are not the same")
	}
	if len(changed) > 0 {
		what = strings.Join(changed, "; ")
	}
	return fault.WithHint(
		fault.Inputf("resuming %q: the interrupted run was another one: %s", ps.out, what),
		"--restart throws away what was done; the former command continues it")
}

// changedOptions names the options that differ, with both values: "block_size 64 -> 128".
func changedOptions(then, now json.RawMessage) []string {
	var a, b map[string]json.RawMessage
	if json.Unmarshal(then, &a) != nil || json.Unmarshal(now, &b) != nil {
		return []string{"the options are not the same"}
	}
	value := func(m map[string]json.RawMessage, key string) string {
		if v, ok := m[key]; ok {
			return string(v)
		}
		return "none"
	}
	all := maps.Clone(a)
	maps.Copy(all, b)
	var out []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if x, y := value(a, key), value(b, key); x != y {
			out = append(out, fmt.Sprintf("%s %s -> %s", key, x, y))
		}
	}
	return out
}

// checkNames refuses outputs that would touch the source.
func checkNames(p *Plan, ps *paths) error {
	out, err := identify(ps.out)
	if err != nil {
		return fault.IOf("looking at the output: %w", err)
	}
	for _, path := range p.sourcePaths() {
		src, err := identify(path)
		if err != nil {
			return fault.IOf("looking at the source: %w", err)
		}
		if out == src && out != (fileID{}) {
			return fault.WithHint(
				fault.Usagef("writing %q: the output is the source %q itself", ps.out, path),
				"give another name; the source is never written to")
		}
		for _, name := range []string{ps.out, ps.partial} {
			if err := checkApart(path, name); err != nil {
				return err
			}
		}
	}
	for _, f := range p.weightFiles() {
		id, err := identify(f.Path())
		if err != nil {
			return fault.IOf("looking at the source: %w", err)
		}
		if id == out {
			return fault.Usagef("writing %q: the output is the source file %q itself", ps.out, f.Path())
		}
	}
	return nil
}

// checkApart refuses an output inside the source directory or around it.
func checkApart(src, out string) error {
	if fi, err := os.Stat(src); err != nil || !fi.IsDir() {
		src = filepath.Dir(src)
		if inside(src, out) {
			if !isCheckpointDir(src) { // beside a file that stands alone is fine
				return nil
			}
			return fault.WithHint(
				fault.Usagef("writing %q: the output lies inside the checkpoint directory %q of the source, which is never written to", out, src),
				"what is written there would be taken for a part of that checkpoint; write to another directory")
		}
	} else if inside(src, out) {
		return fault.Usagef("writing %q: the output lies inside the source directory %q, which is never written to", out, src)
	}
	if inside(out, src) {
		return fault.Usagef("writing %q: the source %q lies inside the output directory", out, src)
	}
	return nil
}

// inside tells whether path lies below dir, links resolved as far as they exist.
func inside(dir, path string) bool {
	rel, err := filepath.Rel(resolve(dir), resolve(path))
	return err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// resolve is an absolute path without links; the last elements need not exist.
func resolve(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if path, err := filepath.EvalSymlinks(abs); err == nil {
		return path
	}
	parent := filepath.Dir(abs)
	if parent == abs {
		return abs
	}
	return filepath.Join(resolve(parent), filepath.Base(abs))
}

// isCheckpointDir tells whether a directory is a checkpoint and not just a place where
// weight files lie.
func isCheckpointDir(dir string) bool {
	for _, name := range []string{"config.json", "model.safetensors.index.json"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err == nil && fi.Mode().IsRegular() {
			return true
		}
	}
	return false
}

// checkFree refuses to write over something unless that was asked for, and then over
// anything that is no model.
func checkFree(ps *paths, overwrite bool) error {
	fi, err := os.Lstat(ps.out)
	if errors.Is(err, fs.ErrNotExist) {
		if fi, err := os.Stat(filepath.Dir(ps.out)); err != nil || !fi.IsDir() {
			return fault.Usagef("writing %q: the directory %q does not exist", ps.out, filepath.Dir(ps.out))
		}
		return nil
	}
	if err != nil {
		return fault.IOf("looking at the output: %w", err)
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(ps.out)
		if err != nil {
			return fault.IOf("looking at the output: %w", err)
		}
		return fault.WithHint(
			fault.Usagef("writing %q: it is a symbolic link to %q, and a link is not replaced", ps.out, target),
			"name the place that the link points to, or remove the link")
	}
	var entries []fs.DirEntry
	if fi.IsDir() {
		if entries, err = os.ReadDir(ps.out); err != nil {
			return fault.IOf("looking at the output: %w", err)
		}
		if len(entries) == 0 && ps.file == "" {
			return nil
		}
	}
	switch isModel := !fi.IsDir() || looksLikeModel(entries); {
	case fi.IsDir() != (ps.file == ""):
		return fault.Usagef("writing %q: it exists already, and is %s; a directory can only replace a directory and a file a file", ps.out, kindOf(fi))
	case !isModel:
		return fault.WithHint(
			fault.Usagef("writing %q: it exists already, and nothing in it looks like a model (%s), so it is not replaced", ps.out, someNames(entries)),
			"choose another name, or remove the directory yourself")
	case !overwrite:
		return fault.WithHint(fault.Usagef("writing %q: it exists already", ps.out), "--overwrite replaces it, at the end and in one step")
	}
	return nil
}

func kindOf(fi fs.FileInfo) string {
	switch {
	case fi.IsDir():
		return "a directory"
	case fi.Mode().IsRegular():
		return "a file"
	}
	return "neither file nor directory"
}

// looksLikeModel tells whether a directory holds what a conversion or a download leaves,
// so that replacing it can only have been meant.
func looksLikeModel(entries []fs.DirEntry) bool {
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		name := e.Name()
		return name == ManifestName || strings.HasSuffix(name, ".safetensors") || strings.HasPrefix(name, "pytorch_model") || strings.HasSuffix(name, ".gguf")
	})
}

// someNames lists the first few entries of a directory.
func someNames(entries []fs.DirEntry) string {
	var names []string
	for i, e := range entries {
		if i == 3 {
			names = append(names, fmt.Sprintf("and %d more", len(entries)-i))
			break
		}
		names = append(names, fmt.Sprintf("%q", e.Name()))
	}
	return strings.Join(names, ", ")
}
