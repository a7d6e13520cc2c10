package peft

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// Key prefixes a name in the model as PEFT does.
func Key(name string) string { return prefix + name }

// Output is an adapter to be written.
type Output struct {
	Config  map[string]any              // adapter_config.json; written with sorted keys, as PEFT does
	Tensors map[string]safetensors.View // by their full keys, see [Key]
	Record  any                         // nf4conv.json
	Side    []hf.SideFile               // copied as they are
}

// NewConfig is adapter_config.json of a plain LoRA with that rank, whose scaling is 1.
// Callers add what differs.
func NewConfig(base, taskType string, rank int, targets []string) map[string]any {
	c := map[string]any{
		"alpha_pattern": map[string]any{}, "auto_mapping": nil, "base_model_name_or_path": base, "bias": "none", "fan_in_fan_out": false,
		"inference_mode": true, "init_lora_weights": true, "lora_alpha": rank, "lora_bias": false, "lora_dropout": 0.0, "modules_to_save": nil,
		"peft_type": "LORA", "r": rank, "rank_pattern": map[string]any{}, "revision": nil, "target_modules": targets, "task_type": nil,
		"use_dora": false, "use_rslora": false,
	}
	if taskType != "" {
		c["task_type"] = taskType
	}
	return c
}

// CheckOutput tells whether Write could give its output that name; it changes nothing.
func CheckOutput(out string) error {
	if out == "" {
		return fault.WithHint(fault.Usagef("the name of the output is empty"), "give it a name, as in my-adapter")
	}
	switch base := filepath.Base(out); base {
	case ".", "..", string(filepath.Separator):
		return fault.WithHint(fault.Usagef("writing %q: the output grows beside its name and takes it at the end, so it needs a name of its own, not %q", out, base),
			"give it a name, as in %s", filepath.Join(out, "my-adapter"))
	}
	if fi, err := os.Stat(filepath.Dir(filepath.Clean(out))); err != nil || !fi.IsDir() {
		return fault.WithHint(fault.IOf("writing %q: there is no directory %q", out, filepath.Dir(filepath.Clean(out))), "make it first")
	}
	for _, name := range []string{out, partial(out)} {
		switch _, err := os.Lstat(name); {
		case err == nil && name == out:
			return fault.WithHint(fault.Usagef("writing %q: it exists already", out), "remove it or give another name")
		case err == nil:
			return fault.WithHint(fault.Inputf("writing %q: %q is in the way", out, name), "a run that was killed leaves it behind; remove it if no other run is writing it")
		case !errors.Is(err, fs.ErrNotExist):
			return fault.IOf("writing %q: %w", out, cause(err))
		}
	}
	return nil
}

func partial(out string) string { return filepath.Clean(out) + ".partial" }

// Write writes an adapter directory beside its name, syncs it and gives it the name in one
// step. The bytes are a function of o. When it fails nothing is left behind.
func Write(out string, o *Output) (err error) {
	if err := CheckOutput(out); err != nil {
		return err
	}
	dir := partial(out)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fault.IOf("writing %q: %w", out, cause(err))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	for name, doc := range map[string]any{ConfigName: o.Config, RecordName: o.Record} {
		if doc == nil {
			continue
		}
		b, err := encode(doc)
		if err != nil {
			return fmt.Errorf("writing %q: internal error: %w", name, err)
		}
		if err := writeFile(filepath.Join(dir, name), func(w io.Writer) error { _, err := w.Write(b); return err }); err != nil {
			return err
		}
	}
	err = writeFile(filepath.Join(dir, WeightsName), func(w io.Writer) error {
		return safetensors.Write(w, map[string]string{"format": "pt"}, o.Tensors)
	})
	if err != nil {
		return err
	}
	for _, s := range o.Side {
		if err := copyFile(filepath.Join(dir, s.Name), s.Path); err != nil {
			return err
		}
	}
	if err := os.Rename(dir, filepath.Clean(out)); err != nil {
		return fault.IOf("giving the output its name: %w", err)
	}
	return nil
}

func encode(doc any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(doc)
	return b.Bytes(), err
}

func writeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fault.IOf("writing %q: %w", path, cause(err))
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<18)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fault.IOf("writing %q: %w", path, err)
	}
	return nil
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fault.IOf("reading %q: %w", from, cause(err))
	}
	return writeFile(to, func(w io.Writer) error { _, err := w.Write(b); return err })
}
