package convert

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// config is config.json as the adapters change it: whether embeddings are tied, and the
// size of the vocabulary.
func (m *merger) config() (*hf.Config, error) {
	cfg := m.src.Config()
	if cfg == nil {
		if m.tie.untied {
			return nil, fault.Inputf("merging into %q: input and output embedding part, and there is no config.json to say so", m.src.Path())
		}
		return nil, nil
	}
	if m.tie.untied {
		cfg = everywhere(cfg, "tie_word_embeddings", "false", true)
	}
	if n := m.resized(); n > 0 {
		cfg = everywhere(cfg, "vocab_size", strconv.FormatInt(n, 10), false)
		m.warn("the adapter's vocabulary has %d entries: config.json follows", n)
	}
	return cfg, nil
}

// everywhere sets a key at the top and in text_config, wherever it stands; with always,
// at the top in any case.
func everywhere(cfg *hf.Config, key, value string, always bool) *hf.Config {
	if raw, ok := cfg.Raw("text_config"); ok {
		if part, err := hf.ParseConfig(raw); err == nil { // checked to be an object when it was opened
			if _, there := part.Raw(key); there {
				cfg = cfg.Set("text_config", json.RawMessage(part.Set(key, json.RawMessage(value)).Encode()))
			}
		}
	}
	if _, there := cfg.Raw(key); there || always {
		cfg = cfg.Set(key, json.RawMessage(value))
	}
	return cfg
}

// tokenizer decides whose tokenizer and chat template go with the output.
func (m *merger) tokenizer(p *Plan) {
	var from *MergeAdapter
	for i := range m.o.Adapters {
		a := &m.o.Adapters[i]
		files := a.Adapter.TokenizerFiles()
		switch {
		case len(files) == 0:
		case from == nil && (m.o.Tokenizer == "adapter" || m.o.Tokenizer == "auto" && m.resized() > 0):
			from = a
		default:
			if names := differing(files, p.Side); len(names) > 0 {
				m.tokenizerWarning(p, a.Name, names)
			}
		}
	}
	switch {
	case from != nil:
		p.Merge.Tokenizer = from.Name
		p.Side = withTokenizer(p, from)
	case m.resized() > 0:
		p.Warnings = append(p.Warnings, "the vocabulary was resized and the base's tokenizer is written: its tokens may not be those of the adapter")
	}
}

func (m *merger) tokenizerWarning(p *Plan, adapter string, names []string) {
	hint := "--tokenizer adapter writes the adapter's"
	if m.o.Tokenizer != "auto" || len(m.o.Adapters) > 1 {
		hint = "they are left out"
	}
	p.Warnings = append(p.Warnings, adapter+" has tokenizer files that differ from those of the base: "+strings.Join(names, ", ")+"; "+hint)
}

// differing lists the files whose contents are not those of the base's file of that name.
func differing(files []hf.SideFile, side []Side) []string {
	var out []string
	for _, f := range files {
		i := slices.IndexFunc(side, func(s Side) bool { return s.Name == f.Name })
		if i >= 0 && side[i].Size == f.Size {
			a, errA := os.ReadFile(f.Path)
			b, errB := os.ReadFile(side[i].path)
			if errA == nil && errB == nil && bytes.Equal(a, b) {
				continue
			}
		}
		out = append(out, f.Name)
	}
	return out
}

// withTokenizer replaces the base's tokenizer by the adapter's. The base's chat template
// stays when the adapter has none.
func withTokenizer(p *Plan, a *MergeAdapter) []Side {
	files := a.Adapter.TokenizerFiles()
	template := func(name string) bool { return strings.HasPrefix(name, "chat_template.") }
	own := slices.ContainsFunc(files, func(f hf.SideFile) bool { return template(f.Name) || hasTemplate(f) })
	var out []Side
	for _, s := range p.Side {
		if peft.IsTokenizerFile(s.Name) && (own || !template(s.Name)) {
			continue
		}
		out = append(out, s)
	}
	for _, f := range files {
		out = append(out, Side{Name: f.Name, Size: f.Size, path: f.Path})
	}
	slices.SortFunc(out, func(a, b Side) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// hasTemplate tells whether a tokenizer_config.json holds a chat template.
func hasTemplate(f hf.SideFile) bool {
	if f.Name != "tokenizer_config.json" || f.Size > 16<<20 {
		return false
	}
	b, err := os.ReadFile(f.Path)
	if err != nil {
		return false
	}
	cfg, err := hf.ParseConfig(b)
	if err != nil {
		return false
	}
	_, there := cfg.Raw("chat_template")
	return there
}

// compareBase holds the base against the digests that an adapter recorded of the one it
// was made from.
func (m *merger) compareBase() error {
	recorded, err := m.adapter.BaseDigests()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<18)
	for _, r := range recorded {
		t, ok := m.src.Lookup(r.Tensor)
		if !ok {
			return fault.WithHint(fault.Inputf("%s records a tensor %q of its base, which this base lacks", peft.RecordName, r.Tensor), "merge it into the base it was made from")
		}
		ref := Ref{Bytes: t.Bytes(), tensor: t}
		d, err := hashRef(&ref, buf)
		if err != nil {
			return err
		}
		if d != r.BLAKE3 {
			return fault.WithHint(fault.Inputf("the base's tensor %q has BLAKE3 %v; %s of the adapter records %v", r.Tensor, d, peft.RecordName, r.BLAKE3),
				"this is not the base that the adapter was made from")
		}
	}
	return nil
}
