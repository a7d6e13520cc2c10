package hf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// weightFiles decides which files hold the weights: model.safetensors, else those of the
// index, else the only *.safetensors there is.
func (c *Checkpoint) weightFiles() ([]string, error) {
	entries, err := os.ReadDir(c.path)
	if err != nil {
		return nil, fault.IOf("reading %q: %w", c.path, err)
	}
	var found []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".safetensors") {
			found = append(found, e.Name())
		}
	}
	if _, err := os.Lstat(filepath.Join(c.path, indexName)); err == nil && !slices.Contains(found, singleName) {
		return c.indexedFiles()
	} else if err == nil {
		if err := c.beside(); err != nil {
			return nil, err
		}
	}
	switch {
	case slices.Contains(found, singleName):
		found = []string{singleName}
	case len(found) == 1 && found[0] == "adapter_model.safetensors", len(found) == 0:
		return nil, c.noWeights(entries)
	case len(found) > 1:
		return nil, fault.WithHint(
			errorf("reading %q: %d weight files (%s, %s...) and no %s", c.path, len(found), found[0], found[1], indexName),
			"fetch the index that belongs to them, or give one file by its name")
	}
	return []string{filepath.Join(c.path, found[0])}, nil
}

// beside judges an index next to model.safetensors, of which transformers (5.23 and 4.57)
// reads the single file and never the index. It is an error where the index counts that
// file among several.
func (c *Checkpoint) beside() error {
	wm, err := c.weightMap()
	if err != nil {
		return err
	}
	own, others := 0, 0
	for _, name := range wm {
		if name == singleName {
			own++
		} else {
			others++
		}
	}
	switch {
	case own > 0 && others > 0:
		return errorf("reading %q: %s names %s and other files: transformers would read %s alone", c.path, indexName, singleName, singleName)
	case others > 0:
		c.warnings = append(c.warnings, fmt.Sprintf(
			"%q: %s and %s are both there; the single file is read, as transformers does, and the files that the index names are not", c.path, singleName, indexName))
	}
	return nil
}

// indexedFiles reads the index and returns the files it names.
func (c *Checkpoint) indexedFiles() ([]string, error) {
	wm, err := c.weightMap()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range wm {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var paths []string
	for _, name := range names {
		path := filepath.Join(c.path, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, fault.WithHint(
				errorf("reading %q: %s names %q, which does not exist", c.path, indexName, name),
				"the download is not complete; fetch the missing file")
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// weightMap is the index's weight_map, checked.
func (c *Checkpoint) weightMap() (map[string]string, error) {
	path := filepath.Join(c.path, indexName)
	b, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	return parseIndex(path, b)
}

// parseIndex reads the text of an index: the file of every tensor. Names of files have no
// directories in them, so that none lies outside the checkpoint.
func parseIndex(path string, b []byte) (map[string]string, error) {
	cfg, err := ParseConfig(b)
	if err != nil {
		return nil, errorf("reading %q: %w", path, err)
	}
	v, _ := cfg.Get("weight_map")
	m, ok := v.(map[string]any)
	if ok && len(m) == 0 {
		return nil, errorf("reading %q: weight_map: expected an object with file names, found an empty one", path)
	}
	if !ok {
		return nil, errorf("reading %q: weight_map: expected an object with file names, found %s", path, kind(v))
	}
	wm := make(map[string]string, len(m))
	for tensor, file := range m {
		name, ok := file.(string)
		switch {
		case !ok:
			return nil, errorf("reading %q: weight_map: tensor %q: expected a file name, found %s", path, tensor, kind(file))
		case name != filepath.Base(name) || strings.ContainsAny(name, `/\`) || name == "." || name == "..":
			return nil, errorf("reading %q: weight_map: tensor %q: %q is no plain file name", path, tensor, name)
		case !strings.HasSuffix(name, ".safetensors"):
			return nil, errorf("reading %q: weight_map: tensor %q: %q is no .safetensors file", path, tensor, name)
		}
		wm[tensor] = name
	}
	return wm, nil
}

// checkIndex compares the index, where there is one, with what the files hold.
func (c *Checkpoint) checkIndex() error {
	if _, err := os.Lstat(filepath.Join(c.path, indexName)); err != nil || (len(c.files) == 1 && filepath.Base(c.files[0].Path()) == singleName) {
		return nil //nolint:nilerr // no index, nothing to compare
	}
	wm, err := c.weightMap()
	if err != nil {
		return err
	}
	for tensor, file := range wm {
		t, ok := c.Lookup(tensor)
		if !ok {
			return errorf("reading %q: %s says that %q holds tensor %q, which no file does", c.path, indexName, file, tensor)
		}
		if have := filepath.Base(t.File.Path()); have != file {
			return errorf("reading %q: %s says that %q holds tensor %q; it stands in %q", c.path, indexName, file, tensor, have)
		}
	}
	for _, t := range c.tensors {
		if _, ok := wm[t.Name]; !ok {
			return errorf("reading %q: tensor %q of %q is not in %s", c.path, t.Name, filepath.Base(t.File.Path()), indexName)
		}
	}
	return nil
}
