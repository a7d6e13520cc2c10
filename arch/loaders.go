package arch

import (
	"slices"
	"strings"
)

// Loader is a program that loads 4-bit checkpoints.
type Loader string

// The loaders that are simulated.
const (
	Transformers5 Loader = "transformers 5"
	Transformers4 Loader = "transformers 4.57"
	VLLM          Loader = "vllm"
)

// LoaderModule is a module as a loader sees it.
type LoaderModule struct {
	Path   string // full path in the loader's module tree
	Source string // module path in the file; empty for a module without a weight of its own
	Tensor int    // index in Model.Tensors of its weight; -1 without one
	Linear bool   // the loader would make it a 4-bit layer unless the skip list names it
	Maybe  bool   // whether the loader's class has it is not known; naming it does no harm
	Either bool   // the loader takes it as the file has it, in 4 bits or not
}

// Modules lists the modules of a loader's tree that a skip list may have to name: every
// one that holds a matrix, and output heads that share the input embedding.
func (m *Model) Modules(l Loader) []LoaderModule {
	var out []LoaderModule
	for i := range m.Tensors {
		t := &m.Tensors[i]
		if t.param != "weight" {
			continue
		}
		lm := LoaderModule{Path: m.path(l, t.Module), Source: t.Module, Tensor: i}
		switch t.Role {
		case RoleLinear, RoleConv1D:
			lm.Linear = !m.entry.subclass || l != Transformers5
		case RoleEmbedding:
			if !m.entry.generic { // an unknown class may use a linear layer for it
				continue
			}
			lm.Linear = true
		case RoleHead, RoleProjector, RoleTower, RoleOther:
			lm.Linear = true // some are convolutions or embeddings: naming them does no harm
		case RoleRouter:
			// A plain parameter in transformers 5, but for the gate of the shared expert.
			lm.Linear = l != Transformers5 || strings.HasSuffix(t.Module, "shared_expert_gate")
		case RoleExpert:
			lm.Linear = l == Transformers4 // fused in transformers 5
			lm.Either = l == VLLM          // its experts know no skip list
		default:
			continue
		}
		out = append(out, lm)
	}
	for _, h := range m.tied() {
		p := m.path(l, h.path)
		if !slices.ContainsFunc(out, func(o LoaderModule) bool { return o.Path == p }) {
			out = append(out, LoaderModule{Path: p, Tensor: -1, Linear: true, Maybe: h.maybe})
		}
	}
	return out
}

// path is the module's path in the loader's tree.
func (m *Model) path(l Loader, module string) string {
	e := m.entry
	renames := e.renames
	if l == Transformers4 {
		renames = e.renames4
	}
	if l == VLLM {
		renames = nil
	}
	for _, r := range renames {
		if rest, ok := strings.CutPrefix(module+".", r.from+map[bool]string{true: "", false: "."}[strings.HasSuffix(r.from, ".")]); ok {
			module = strings.TrimSuffix(strings.TrimSuffix(r.to, ".")+"."+rest, ".")
			break
		}
	}
	// Files of a base model have no prefix; head classes add it.
	if e.prefix == "" || strings.HasPrefix(module, e.prefix+".") || m.isHead(module) || m.baseClass() || e.generic || l == VLLM {
		return module
	}
	if i := strings.IndexByte(module, '.'); i > 0 && slices.ContainsFunc(e.heads, func(h string) bool { return strings.HasPrefix(h, module[:i]+".") || h == module[:i] }) {
		return module
	}
	if len(e.types) > 0 && strings.HasPrefix(e.types[0], "t5") { // encoder, decoder and shared stand at the top
		return module
	}
	return e.prefix + "." + module
}

// baseClass tells whether the checkpoint's class is the bare model without a head.
func (m *Model) baseClass() bool {
	return strings.HasSuffix(m.Class, "Model") && !strings.HasSuffix(m.Class, "LMHeadModel")
}

// Root is the element of path that names the tower or projector it lies in.
func Root(path string, role Role) string {
	names := towerParts
	if role == RoleProjector {
		names = projParts
	}
	for _, part := range strings.Split(path, ".") {
		if slices.Contains(names, part) {
			return part
		}
	}
	return ""
}
