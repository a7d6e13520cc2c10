package bnb

import (
	"regexp"
	"slices"
	"strings"

	"github.com/nf4conv/nf4conv/arch"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// skipList is what llm_int8_skip_modules must hold so that every loader leaves exactly
// the 16-bit modules alone: full paths as each loader names them; whole towers, experts
// and routers by one name where no 4-bit module has it. It is never nil: without a list,
// loaders keep modules of their own choice in 16 bits.
func (s *selector) skipList() []string {
	keys := []string{}
	add := func(key string) {
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	for _, l := range []arch.Loader{arch.Transformers5, arch.Transformers4, arch.VLLM} {
		for _, mod := range s.m.Modules(l) {
			if mod.Tensor >= 0 && s.four[mod.Tensor] {
				continue
			}
			for _, k := range s.keysFor(&mod) {
				if mod.Maybe && s.skipsFourBit(k) {
					continue // more likely a name within this model than the head of another
				}
				add(k)
			}
		}
	}
	return keys
}

// skipsFourBit tells whether a loader that is asked for would skip a 4-bit weight because
// of key.
func (s *selector) skipsFourBit(key string) bool {
	for _, l := range s.loaders {
		match, err := NewMatcher(l, []string{key})
		if err != nil {
			return true
		}
		for _, mod := range s.m.Modules(l) {
			if mod.Tensor >= 0 && s.four[mod.Tensor] && match.Skips(mod.Path) {
				return true
			}
		}
	}
	return false
}

// keysFor names a module that stays 16-bit.
func (s *selector) keysFor(mod *arch.LoaderModule) []string {
	if mod.Tensor < 0 {
		return []string{mod.Path}
	}
	role := s.m.Tensors[mod.Tensor].Role
	switch role {
	case arch.RoleExpert:
		return s.short(mod.Path, "experts")
	case arch.RoleRouter:
		return s.short(mod.Path, mod.Path[strings.LastIndexByte(mod.Path, '.')+1:])
	case arch.RoleTower, arch.RoleProjector:
		return s.short(mod.Path, arch.Root(mod.Path, role))
	}
	return []string{mod.Path}
}

// short is the element alone and the path down to it, if neither names a 4-bit module;
// else the whole path.
func (s *selector) short(path, element string) []string {
	i := strings.Index("."+path+".", "."+element+".")
	if element == "" || i < 0 {
		return []string{path}
	}
	upTo := path[:i+len(element)]
	for k := range s.m.Tensors {
		m := s.m.Tensors[k].Module
		if s.four[k] && (strings.Contains(m, element+".") || strings.HasSuffix(m, element)) {
			return []string{path}
		}
	}
	if strings.Count(upTo, ".") > 1 { // within a layer: the element says it for all layers
		return []string{element}
	}
	return []string{element, upTo}
}

// globs match module paths.
type globs struct {
	flag string
	text []string
	re   []*regexp.Regexp
	used []bool
}

func compileGlobs(flag string, text []string) (*globs, error) {
	g := &globs{flag: flag, text: text, used: make([]bool, len(text))}
	for _, t := range text {
		if t == "" {
			return nil, fault.Usagef("%s: an empty glob", flag)
		}
		p := regexp.QuoteMeta(t)
		p = strings.ReplaceAll(strings.ReplaceAll(p, `\*`, ".*"), `\?`, ".")
		g.re = append(g.re, regexp.MustCompile(`\A`+p+`\z`))
	}
	return g, nil
}

// match returns the first glob that matches.
func (g *globs) match(module string) string {
	found := ""
	for i, re := range g.re {
		if re.MatchString(module) {
			g.used[i] = true
			if found == "" {
				found = g.text[i]
			}
		}
	}
	return found
}

// unused refuses globs that matched no module: most likely a typing error.
func (g *globs) unused(m *arch.Model) error {
	for i, used := range g.used {
		if !used {
			return fault.WithHint(fault.Usagef("%s %q matches no module", g.flag, g.text[i]),
				"globs match whole module paths, as in \"*.mlp.down_proj\" or %q", example(m))
		}
	}
	return nil
}

func example(m *arch.Model) string {
	for i := range m.Tensors {
		if m.Tensors[i].Quantizable {
			return m.Tensors[i].Module
		}
	}
	return "lm_head"
}
