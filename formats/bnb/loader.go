package bnb

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/arch"
)

// Matcher tells whether a loader leaves the module at a path in 16 bits, given
// llm_int8_skip_modules. Each loader reads the same list in its own way.
type Matcher interface {
	Skips(path string) bool
}

// NewMatcher prepares the matcher of a loader. It fails for keys that are no regular
// expression, which transformers 5 takes them for.
func NewMatcher(l arch.Loader, keys []string) (Matcher, error) {
	switch l {
	case arch.Transformers5:
		return newMatcher5(keys)
	case arch.Transformers4:
		return matcher4(keys), nil
	case arch.VLLM:
		return matcherVLLM(keys), nil
	}
	panic("bnb: internal error: no loader " + string(l))
}

// matcher5 is should_convert_module of transformers 5.23 (quantizers/quantizers_utils.py):
// re.match(KEY) that ends at an element's boundary, or full.endswith(KEY).
type matcher5 struct {
	keys []string
	res  []*regexp.Regexp
}

// unlikePython finds what Go reads otherwise than Python, or, of $ and \b, what means
// another thing at the end of a piece of a path than within the whole.
var unlikePython = regexp.MustCompile(`\$|\\[bBpPQECzZ]|\{,|\[\[|\(\?[^:]`)

func newMatcher5(keys []string) (*matcher5, error) {
	m := &matcher5{keys: keys}
	for _, k := range keys {
		if found := unlikePython.FindString(k); found != "" {
			return nil, fmt.Errorf("skip list: transformers 5 reads %q as a regular expression, of which %q is not simulated here", k, found)
		}
		if _, err := syntax.Parse(k, syntax.Perl); err != nil {
			return nil, fmt.Errorf("skip list: module %q would have to be named, but transformers 5 reads that as a regular expression, which it is not: %s", k, syntaxProblem(err))
		}
		re, err := regexp.Compile(`\A(?:` + k + `)\z`)
		if err != nil {
			return nil, fmt.Errorf("skip list: transformers 5 reads %q as a regular expression: %s", k, syntaxProblem(err))
		}
		m.res = append(m.res, re)
	}
	return m, nil
}

// syntaxProblem is what is wrong without the text that is wrong, which may hold control
// characters.
func syntaxProblem(err error) string {
	var e *syntax.Error
	if errors.As(err, &e) {
		return string(e.Code)
	}
	return strconv.Quote(err.Error())
}

func (m *matcher5) Skips(path string) bool {
	for i, k := range m.keys {
		if strings.HasSuffix(path, k) {
			return true
		}
		for _, end := range boundaries(path) {
			if m.res[i].MatchString(path[:end]) {
				return true
			}
		}
	}
	return false
}

// boundaries are the lengths at which a match may end: before and after every dot, and
// at the end.
func boundaries(path string) []int {
	var out []int
	for i := range len(path) {
		if path[i] == '.' {
			out = append(out, i, i+1)
		}
	}
	return append(out, len(path))
}

// matcher4 is _replace_with_bnb_linear of transformers 4.57 (integrations/bitsandbytes.py):
// the last element is a key, or KEY is the path, or "KEY." stands anywhere in it.
type matcher4 []string

func (m matcher4) Skips(path string) bool {
	last := path[strings.LastIndexByte(path, '.')+1:]
	return slices.ContainsFunc(m, func(k string) bool {
		return k == last || k == path || strings.Contains(path, k+".")
	})
}

// matcherVLLM is is_layer_skipped_bnb of vLLM's bitsandbytes plugin: an element of the
// path is a key, or the elements up to some point are.
type matcherVLLM []string

func (m matcherVLLM) Skips(path string) bool {
	parts := strings.Split(path, ".")
	return slices.ContainsFunc(m, func(k string) bool {
		return slices.Contains(parts, k) || k == path || strings.HasPrefix(path, k+".")
	})
}

// unslothKept are the elements of module paths that Unsloth keeps in 16 bits whatever
// the checkpoint says (unsloth-zoo, peft_utils.py).
var unslothKept = []string{
	"lm_head", "multi_modal_projector", "merger", "modality_projection", "router", "mlp.gate", "block_sparse_moe.gate", "mamba",
	"audio_tower", "vision_tower", "vision_embedder", "embed_vision", "embed_audio", "score", "classifier", "qa_outputs",
}

// fused are the layers that vLLM joins into one and that must therefore all be 4-bit or
// all be 16-bit.
var fused = [][]string{
	{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"query", "key", "value"}, {"w1", "w3"}, {"q_a_proj", "kv_a_proj_with_mqa"},
}

// fusedWith returns the paths of the layers that share a fused layer with path.
func fusedWith(path string) []string {
	i := strings.LastIndexByte(path, '.')
	for _, g := range fused {
		if slices.Contains(g, path[i+1:]) {
			var out []string
			for _, leaf := range g {
				out = append(out, path[:i+1]+leaf)
			}
			return out
		}
	}
	return nil
}
