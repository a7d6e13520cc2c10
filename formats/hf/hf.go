// Package hf opens checkpoints in the layout of the Hugging Face hub: a directory with
// config.json and model.safetensors, or shards with model.safetensors.index.json; the
// snapshot directories of the hub's cache, whose files are links; or one .safetensors
// file alone. A [Checkpoint] is an immutable, lazy view: opening it reads headers and
// configuration, never weights.
package hf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// Checkpoint is an open checkpoint.
type Checkpoint struct {
	path     string
	isFile   bool
	config   *Config
	files    []*safetensors.File
	tensors  []Tensor
	byName   map[string]int
	side     []SideFile
	left     []SideFile
	warnings []string
}

// Tensor is a tensor in one of the checkpoint's files.
type Tensor struct {
	*safetensors.Tensor
	File *safetensors.File
}

// ReadAt fills p with the tensor's bytes from off on.
func (t Tensor) ReadAt(p []byte, off int64) error { return t.File.ReadTensorAt(p, t.Tensor, off) }

// SideFile is a file that is not weights.
type SideFile struct {
	Name string // relative to the checkpoint, with slashes
	Path string
	Size int64
	Why  string // for files that are not carried to an output: the reason
}

// Open opens a checkpoint. Errors are of class fault.Input for everything that a retry
// will not mend, with a hint where people commonly try something else.
func Open(path string) (*Checkpoint, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, statError(path, err)
	}
	c := &Checkpoint{path: filepath.Clean(path), byName: map[string]int{}}
	switch {
	case fi.IsDir():
		err = c.openDir()
	case strings.HasSuffix(path, ".safetensors"):
		c.isFile = true
		err = c.openFiles([]string{path})
	default:
		err = notSafetensors(path)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close closes the files.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Path is the name under which the checkpoint was opened.
func (c *Checkpoint) Path() string { return c.path }

// IsFile tells whether the checkpoint is one .safetensors file without a directory.
func (c *Checkpoint) IsFile() bool { return c.isFile }

// Config is config.json, or nil where there is none.
func (c *Checkpoint) Config() *Config { return c.config }

// Files are the weight files in the order of their names.
func (c *Checkpoint) Files() []*safetensors.File { return c.files }

// Tensors are all tensors: files in order, tensors by their place in the file.
func (c *Checkpoint) Tensors() []Tensor { return c.tensors }

// Lookup finds a tensor by name.
func (c *Checkpoint) Lookup(name string) (Tensor, bool) {
	i, ok := c.byName[name]
	if !ok {
		return Tensor{}, false
	}
	return c.tensors[i], true
}

// Side are the files that belong to the model beside weights, config.json and index.
func (c *Checkpoint) Side() []SideFile { return c.side }

// NotCarried are files of the directory that do not belong to an output, with reasons.
func (c *Checkpoint) NotCarried() []SideFile { return c.left }

// Warnings are oddities that do not make the checkpoint unusable.
func (c *Checkpoint) Warnings() []string { return c.warnings }

const (
	configName = "config.json"
	singleName = "model.safetensors"
	indexName  = "model.safetensors.index.json"
)

func (c *Checkpoint) openDir() error {
	if err := c.readConfig(); err != nil {
		return err
	}
	names, err := c.weightFiles()
	if err != nil {
		return err
	}
	if err := c.openFiles(names); err != nil {
		return err
	}
	if err := c.checkIndex(); err != nil {
		return err
	}
	return c.findSide()
}

func (c *Checkpoint) readConfig() error {
	path := filepath.Join(c.path, configName)
	b, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // told apart by weightFiles
	}
	if err != nil {
		return err
	}
	cfg, err := ParseConfig(b)
	if err != nil {
		return fault.Inputf("reading %q: %w", path, err)
	}
	c.config = cfg
	return checkTypes(path, cfg)
}

// checkTypes refuses values of the wrong type where this program depends on them.
func checkTypes(path string, cfg *Config) error {
	for _, key := range []string{"model_type", "dtype", "torch_dtype"} {
		if v, ok := cfg.Get(key); ok && v != nil {
			if _, isString := v.(string); !isString {
				return fault.Inputf("reading %q: %s: expected a string, found %s", path, key, kind(v))
			}
		}
	}
	if v, ok := cfg.Get("architectures"); ok && v != nil {
		list, isList := v.([]any)
		if !isList {
			return fault.Inputf("reading %q: architectures: expected a list of strings, found %s", path, kind(v))
		}
		for _, e := range list {
			if _, isString := e.(string); !isString {
				return fault.Inputf("reading %q: architectures: expected a list of strings, found a list with %s in it", path, kind(e))
			}
		}
	}
	for _, key := range []string{"text_config", "quantization_config", "vision_config"} {
		if v, ok := cfg.Get(key); ok && v != nil {
			if _, isMap := v.(map[string]any); !isMap {
				return fault.Inputf("reading %q: %s: expected an object, found %s", path, key, kind(v))
			}
		}
	}
	if v, ok := cfg.Get("tie_word_embeddings"); ok && v != nil {
		if _, isBool := v.(bool); !isBool {
			return fault.Inputf("reading %q: tie_word_embeddings: expected true or false, found %s", path, kind(v))
		}
	}
	return nil
}

func kind(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return "a number"
}

// readSmall reads a regular file of at most maxConfig bytes.
func readSmall(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return nil, fault.Inputf("reading %q: it is a link to a file that does not exist", path)
		}
		return nil, err
	}
	if err != nil {
		return nil, statError(path, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fault.Inputf("reading %q: expected a regular file, found %v", path, fi.Mode().Type())
	}
	if fi.Size() > maxConfig {
		return nil, fault.Inputf("reading %q: %d bytes are more than such a file has (at most %d)", path, fi.Size(), maxConfig)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.IOf("reading %q: %w", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fault.IOf("reading %q: %w", path, err)
	}
	return b, nil
}

func (c *Checkpoint) openFiles(paths []string) error {
	for _, p := range paths {
		f, err := safetensors.Open(p)
		if err != nil {
			return err
		}
		c.files = append(c.files, f)
		ts := f.Header().Tensors
		for i := range ts {
			if k, dup := c.byName[ts[i].Name]; dup {
				return fault.Inputf("reading %q: tensor %q stands in %q and in %q", c.path, ts[i].Name,
					filepath.Base(c.tensors[k].File.Path()), filepath.Base(p))
			}
			c.byName[ts[i].Name] = len(c.tensors)
			c.tensors = append(c.tensors, Tensor{&ts[i], f})
		}
	}
	if len(c.tensors) == 0 {
		return fault.Inputf("reading %q: there is not one tensor in it", c.path)
	}
	return nil
}

func statError(path string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, fs.ErrPermission) {
		return fault.IOf("reading %q: %w", path, err)
	}
	e := fault.Inputf("reading %q: %w", path, err)
	if errors.Is(err, fs.ErrNotExist) && strings.Count(path, "/") == 1 && !strings.HasPrefix(path, ".") && !strings.HasPrefix(path, "/") && !strings.HasSuffix(path, "/") {
		return fault.WithHint(e, "this looks like the name of a model on a hub; fetch it first, for example with `hf download %s --local-dir DIR`, and give DIR", path)
	}
	return e
}

// notSafetensors explains what to do with other kinds of files.
func notSafetensors(path string) error {
	base := filepath.Base(path)
	err := fault.Inputf("reading %q: expected a checkpoint directory or a .safetensors file", path)
	if hint := foreignHint(base); hint != "" {
		return fault.WithHint(err, "%s", hint)
	}
	if slices.Contains([]string{configName, indexName}, base) {
		return fault.WithHint(err, "give the directory %q", filepath.Dir(path))
	}
	return err
}

// foreignHint is what to do with a weight file in another format.
func foreignHint(base string) string {
	switch ext := strings.ToLower(filepath.Ext(base)); {
	case base == "adapter_model.bin":
		return "this is a PEFT adapter saved by torch; save it again as safetensors"
	case ext == ".gguf":
		return "GGUF files are quantized by llama.cpp; start from the original safetensors checkpoint"
	case slices.Contains([]string{".bin", ".pt", ".pth", ".ckpt"}, ext):
		return "this is saved by torch.save (pickle), which can run code when it is read; save it as safetensors: model.save_pretrained(DIR, safe_serialization=True)"
	case slices.Contains([]string{".h5", ".msgpack", ".onnx"}, ext):
		return "save the model as safetensors first"
	}
	return ""
}

// noWeights explains a directory without a checkpoint.
func (c *Checkpoint) noWeights(entries []fs.DirEntry) error {
	err := fault.Inputf("reading %q: found neither %s nor %s", c.path, singleName, indexName)
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	switch {
	case names["adapter_config.json"]:
		return fault.WithHint(err, "this is a PEFT adapter, not a model")
	case names["model_index.json"]:
		return fault.WithHint(err, "this is a diffusers pipeline; give the directory of one of its models, such as %q", filepath.Join(c.path, "transformer"))
	case names["snapshots"] && names["blobs"]:
		return fault.WithHint(err, "this is an entry of the hub's cache; give one of the directories in %q", filepath.Join(c.path, "snapshots"))
	case len(entries) == 0:
		return fault.WithHint(err, "the directory is empty")
	}
	for _, e := range entries {
		if hint := foreignHint(e.Name()); hint != "" {
			return fault.WithHint(err, "%s: %s", e.Name(), hint)
		}
	}
	return err
}

func errorf(format string, a ...any) error { return fault.Inputf("%w", fmt.Errorf(format, a...)) }
