package hf

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// maxSideFiles bounds what is taken for the files of a model.
const maxSideFiles = 10_000

// findSide sorts the other files of the directory into those that go with the model
// and those that do not.
func (c *Checkpoint) findSide() error {
	weights := map[string]bool{}
	for _, f := range c.files {
		weights[filepath.Base(f.Path())] = true
	}
	root, err := filepath.EvalSymlinks(c.path) // WalkDir does not follow a link at its root
	if err != nil {
		return statError(c.path, err)
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fault.IOf("reading %q: %w", path, err)
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "." {
			return err
		}
		name := filepath.ToSlash(rel)
		// Links: a file behind one belongs to the model, a directory behind one is not
		// followed, which also ends loops.
		fi, err := os.Stat(path)
		if err != nil {
			return errorf("reading %q: %w", path, pathCause(err))
		}
		if fi.IsDir() {
			if why := leaveDir(name); why != "" || !d.IsDir() {
				if why == "" {
					why = "a link to a directory"
				}
				c.left = append(c.left, SideFile{Name: name + "/", Path: path, Why: why})
				if d.IsDir() {
					return fs.SkipDir
				}
			}
			return nil
		}
		if weights[name] || name == configName || name == indexName {
			return nil
		}
		s := SideFile{Name: name, Path: path, Size: fi.Size(), Why: leaveFile(name)}
		switch {
		case !fi.Mode().IsRegular():
			s.Why = "not a regular file"
			fallthrough
		case s.Why != "":
			c.left = append(c.left, s)
		default:
			c.side = append(c.side, s)
		}
		if len(c.side)+len(c.left) > maxSideFiles {
			return errorf("reading %q: more than %d files beside the weights; this is no model directory", c.path, maxSideFiles)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(c.side, func(a, b SideFile) int { return strings.Compare(a.Name, b.Name) })
	return c.compareTemplates()
}

// leaveDir is why a directory is not carried, or empty.
func leaveDir(name string) string {
	base := name[strings.LastIndexByte(name, '/')+1:]
	switch {
	case base == "original":
		return "weights in the publisher's own format"
	case strings.HasPrefix(base, "."):
		return "a hidden directory"
	case strings.HasSuffix(base, ".partial"), strings.HasSuffix(base, ".partial.old"):
		return "an unfinished output"
	case strings.HasPrefix(base, "checkpoint-"), base == "runs", base == "wandb", base == "global_step":
		return "a record of training"
	case base == "onnx", base == "openvino", base == "coreml", base == "gguf":
		return "weights in another format"
	}
	return ""
}

// leaveFile is why a file is not carried, or empty.
func leaveFile(name string) string {
	base := strings.ToLower(name[strings.LastIndexByte(name, '/')+1:])
	has := func(suffixes ...string) bool {
		return slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(base, s) })
	}
	is := func(names ...string) bool { return slices.Contains(names, base) }
	switch {
	case has(".safetensors"):
		return "other weights"
	case has(".safetensors.index.json", ".bin.index.json", ".h5.index.json", ".msgpack.index.json"):
		return "an index of other weights"
	case is("optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json", "training_args.bin", "optimizer.bin") || strings.HasPrefix(base, "rng_state"):
		return "a state of training"
	case has(".bin", ".pth", ".pt", ".ckpt", ".gguf", ".ggml", ".msgpack", ".h5", ".onnx", ".onnx_data", ".npz", ".tflite", ".mlmodel"):
		return "weights in another format"
	case is("nf4conv.json", "sha256sums"):
		return "about the source's own files"
	case is(".gitattributes", ".gitignore", ".ds_store"):
		return "housekeeping"
	case has(".partial.journal"):
		return "an unfinished output"
	}
	return ""
}

// compareTemplates warns of two chat templates that say different things.
func (c *Checkpoint) compareTemplates() error {
	var file []byte
	for _, s := range c.side {
		if s.Name == "chat_template.jinja" {
			b, err := readSmall(s.Path)
			if err != nil {
				return err
			}
			file = b
		}
	}
	path := filepath.Join(c.path, "tokenizer_config.json")
	b, err := readSmall(path)
	if file == nil || err != nil {
		return nil //nolint:nilerr // without both there is nothing to compare
	}
	cfg, err := ParseConfig(b)
	if err != nil {
		return nil //nolint:nilerr // carried as it is; its contents are not our business
	}
	if inside, ok := cfg.String("chat_template"); ok && strings.TrimSpace(inside) != strings.TrimSpace(string(file)) {
		c.warnings = append(c.warnings, fmt.Sprintf(
			"%q: chat_template.jinja and the chat_template of tokenizer_config.json differ; both are carried, and transformers uses chat_template.jinja", c.path))
	}
	return nil
}

func pathCause(err error) error {
	if pe, ok := err.(*fs.PathError); ok { //nolint:errorlint // os returns it unwrapped
		return pe.Err
	}
	return err
}
