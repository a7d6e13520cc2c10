// Package peft reads LoRA adapters as PEFT writes them: a directory with
// adapter_config.json and adapter_model.safetensors. An [Adapter] is an immutable, lazy
// view: opening it reads the configuration and the header, never weights.
//
// The tensors in the file are the truth about what was trained; the configuration adds
// the scaling. Every tensor is classified by its name, and an adapter with one that is
// not understood is refused, as is every configuration whose merge is not an addition to
// the base checkpoint it names: weights trained against a changed base (PiSSA, OLoRA,
// CorDA, LoRA-GA, LoftQ, KaSA), effects that depend on tokens or on a router (aLoRA,
// Arrow), and keys this package does not know.
//
// # Names
//
// A key is "base_model.model." + module path + suffix. With r the rank:
//
//	m.lora_A.weight                    [r, in], of a convolution [r, in, kernel...]
//	m.lora_B.weight                    [out, r], of a convolution [out, r, 1...]
//	m.lora_B.bias                      [out], with lora_bias
//	m.lora_embedding_A, ..._B          [r, rows], [dim, r]
//	m.lora_magnitude_vector            DoRA: one factor per output, per dimension of an embedding
//	m.token_adapter.trainable_tokens_delta   rows that replace rows of the embedding
//	m.base_layer.weight, .bias         the base's own tensor, saved with the adapter
//	m.weight, m.bias, ...              a replacement: modules_to_save, biases, resized embeddings
//
// Parts that trainers leave in names (the adapter's own name, _orig_mod,
// _fsdp_wrapped_module, modules_to_save.NAME) are understood and dropped.
//
// Sources: PEFT 0.21 (tuners/lora/config.py, tuners/lora/layer.py, utils/save_and_load.py).
package peft

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// The files of an adapter.
const (
	ConfigName  = "adapter_config.json"
	WeightsName = "adapter_model.safetensors"
)

// Adapter is an open adapter.
type Adapter struct {
	path     string
	config   *Config
	digest   treehash.Digest
	file     *safetensors.File
	contents contents
}

// Target is a pair of factors and what belongs to it.
type Target struct {
	Module    string // path in the model that was trained
	Nested    int    // wrappers between this one and the module: of several target_parameters
	Embedding bool   // lora_embedding_A and B
	A, B      hf.Tensor
	Bias      *hf.Tensor // lora_B.bias
	Magnitude *hf.Tensor // DoRA
}

// Replacement is a tensor that takes the place of one of the base.
type Replacement struct {
	Module  string
	Param   string // weight, bias or a buffer's name
	Base    bool   // the base's own values, saved beside factors or for a trained bias
	Tensor  hf.Tensor
	Trained bool // the configuration says so: modules_to_save, or bias
}

// Name is the tensor's name in the model that was trained.
func (r *Replacement) Name() string { return r.Module + "." + r.Param }

// TokenRows are trained rows of an embedding.
type TokenRows struct {
	Module string
	Rows   []int64 // row i of Tensor takes the place of row Rows[i]
	Tensor hf.Tensor
}

// contents are the classified tensors, in the order of their names.
type contents struct {
	targets      []Target
	replacements []Replacement
	rows         []TokenRows
	ignored      []string
}

// maxConfigBytes bounds adapter_config.json: its longest lists name modules.
const maxConfigBytes = 16 << 20

// Open opens an adapter directory. Errors are of class fault.Input for everything that a
// retry will not mend, with a hint at what to do instead.
func Open(dir string) (*Adapter, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	a := &Adapter{path: filepath.Clean(dir)}
	path := filepath.Join(dir, ConfigName)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.IOf("reading %q: %w", path, err)
	}
	a.digest = treehash.Sum(b)
	if a.config, err = ParseConfig(b); err != nil {
		return nil, wrap(path, err)
	}
	if a.file, err = safetensors.Open(filepath.Join(dir, WeightsName)); err != nil {
		return nil, err
	}
	if a.contents, err = classify(a.file, a.config); err != nil {
		return nil, errors.Join(wrap(a.file.Path(), err), a.file.Close())
	}
	return a, nil
}

// wrap adds the file to an error and keeps its class and hints.
func wrap(path string, err error) error { return fault.Inputf("reading %q: %w", path, err) }

// checkDir explains the directories that people try.
func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return fault.IOf("reading %q: %w", dir, err)
		}
		return fault.WithHint(fault.Inputf("reading the adapter %q: %w", dir, cause(err)), "give the directory that holds %s", ConfigName)
	}
	if !fi.IsDir() {
		return fault.WithHint(fault.Inputf("reading the adapter %q: it is a file, expected a directory with %s", dir, ConfigName), "give the directory %q", filepath.Dir(dir))
	}
	for _, name := range []string{ConfigName, WeightsName} {
		fi, err := os.Stat(filepath.Join(dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return missing(dir, name)
		case err != nil:
			return fault.IOf("reading %q: %w", filepath.Join(dir, name), cause(err))
		case !fi.Mode().IsRegular():
			return fault.Inputf("reading %q: expected a regular file, found %v", filepath.Join(dir, name), fi.Mode().Type())
		case name == ConfigName && fi.Size() > maxConfigBytes:
			return fault.Inputf("reading %q: %d bytes are more than such a file has (at most %d)", filepath.Join(dir, name), fi.Size(), int64(maxConfigBytes))
		}
	}
	return nil
}

func missing(dir, name string) error {
	err := fault.Inputf("reading the adapter %q: found no %s", dir, name)
	has := func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	subs, _ := filepath.Glob(filepath.Join(dir, "*", ConfigName))
	switch {
	case name == WeightsName && has("adapter_model.bin"):
		return fault.WithHint(err, "adapter_model.bin is saved by torch (pickle), which can run code when it is read; load it with PEFT and save it again: model.save_pretrained(DIR)")
	case name == ConfigName && len(subs) > 0:
		return fault.WithHint(err, "PEFT saves an adapter that has a name of its own into a directory of that name: give %q", filepath.Dir(subs[0]))
	case name == ConfigName && has("config.json"):
		return fault.WithHint(err, "this is a model, not an adapter")
	}
	return fault.WithHint(err, "an adapter is a directory as PEFT saves it: %s and %s", ConfigName, WeightsName)
}

func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Close closes the file.
func (a *Adapter) Close() error { return a.file.Close() }

// Path is the name under which the adapter was opened.
func (a *Adapter) Path() string { return a.path }

// Config is adapter_config.json.
func (a *Adapter) Config() *Config { return a.config }

// ConfigDigest is the BLAKE3-256 of adapter_config.json.
func (a *Adapter) ConfigDigest() treehash.Digest { return a.digest }

// File is adapter_model.safetensors.
func (a *Adapter) File() *safetensors.File { return a.file }

// Targets are the trained factors.
func (a *Adapter) Targets() []Target { return a.contents.targets }

// Replacements are tensors that take the place of tensors of the base.
func (a *Adapter) Replacements() []Replacement { return a.contents.replacements }

// TokenRows are the trained rows of embeddings.
func (a *Adapter) TokenRows() []TokenRows { return a.contents.rows }

// Ignored are tensors that have no effect on a merged model, such as projections of the
// backward pass.
func (a *Adapter) Ignored() []string { return a.contents.ignored }

// tokenizerFiles are what a trainer saves of its tokenizer beside an adapter.
var tokenizerFiles = []string{
	"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "spiece.model",
	"vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
}

// IsTokenizerFile tells whether a side file belongs to the tokenizer, chat template included.
func IsTokenizerFile(name string) bool { return slices.Contains(tokenizerFiles, name) }

// TokenizerFiles are the files of a tokenizer, chat template included, that stand beside
// the adapter.
func (a *Adapter) TokenizerFiles() []hf.SideFile {
	var out []hf.SideFile
	for _, name := range tokenizerFiles {
		path := filepath.Join(a.path, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() {
			out = append(out, hf.SideFile{Name: name, Path: path, Size: fi.Size()})
		}
	}
	slices.SortFunc(out, func(a, b hf.SideFile) int { return strings.Compare(a.Name, b.Name) })
	return out
}
