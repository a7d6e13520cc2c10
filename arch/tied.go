package arch

import (
	_ "embed"
	"maps"
	"slices"
	"strings"
)

//go:embed tied.txt
var tiedText string

var (
	tiedHeads   = map[string][]string{} // by class: heads tied to an embedding, more than lm_head
	knownTypes  = map[string]bool{}     // model types that transformers has
	anyTiedHead []string                // every head that some class ties
)

func init() {
	all := map[string]bool{"lm_head": true, "lm_predictions.lm_head": true}
	for line := range strings.Lines(tiedText) {
		f := strings.Fields(line)
		switch {
		case len(f) < 2 || f[0] == "#":
		case f[0] == "type":
			for _, t := range f[1:] {
				knownTypes[t] = true
			}
		default:
			tiedHeads[f[0]] = f[1:]
			for _, h := range f[1:] {
				all[h] = true
			}
		}
	}
	anyTiedHead = slices.Sorted(maps.Keys(all))
}

// tiedHead is a head that loaders' module trees may have although no tensor is its weight.
type tiedHead struct {
	path  string
	maybe bool // it is not known whether the class has it
}

// tied lists the heads that the class ties to an embedding.
func (m *Model) tied() []tiedHead {
	var out []tiedHead
	add := func(path string, maybe bool) {
		if !slices.ContainsFunc(out, func(h tiedHead) bool { return h.path == path }) {
			out = append(out, tiedHead{path, maybe})
		}
	}
	for _, h := range tiedHeads[m.Class] {
		add(h, false)
	}
	switch {
	case m.Known && m.Tied:
		for _, h := range m.entry.heads {
			if slices.Contains(anyTiedHead, h) {
				add(h, false)
			}
		}
	case m.Known || m.untied:
	case knownTypes[m.Type]:
		add("lm_head", true)
	default:
		for _, h := range anyTiedHead {
			add(h, true)
		}
	}
	return out
}

// isHead compares whole paths: "output.dense" within a layer is no head.
func (m *Model) isHead(path string) bool {
	e := m.entry
	if slices.Contains(e.heads, path) || slices.Contains(e.heads, strings.TrimPrefix(path, "model.")) {
		return true
	}
	if e.generic && !knownTypes[m.Type] && slices.Contains(anyTiedHead, path) {
		return true
	}
	return slices.ContainsFunc(tiedHeads[m.Class], func(h string) bool { return path == h || strings.HasPrefix(path, h+".") })
}
