package arch

import "strings"

// survey is what one tensor says of others.
type survey struct {
	shapes     map[string][]int64
	pure       bool // the whole model is the vision or audio model that would be a tower in a composite one
	transposed bool // of an unknown class: some matrices are [in, out]
}

func (m *Model) look(tensors []TensorInfo) survey {
	s := survey{shapes: make(map[string][]int64, len(tensors))}
	for _, t := range tensors {
		s.shapes[t.Name] = t.Shape
	}
	if !m.entry.generic {
		return s
	}
	inside, beside := false, false
	for _, t := range tensors {
		path, isWeight := strings.CutSuffix(t.Name, ".weight")
		if !isWeight || len(t.Shape) != 2 || !t.Float {
			continue
		}
		s.transposed = s.transposed || s.isTransposed(path)
		_, _, _, stacked := splitLayer(path)
		switch last := path[strings.LastIndexByte(path, '.')+1:]; {
		case !stacked || isEmbedding(last) || isNorm(last) || m.entry.in(path, m.entry.projectors):
		case m.entry.in(path, m.entry.towers):
			inside = true
		default:
			beside = true
		}
	}
	s.pure = inside && !beside
	return s
}

// isTransposed tells whether the bias of a matrix [a, b] has b elements and not a: it is
// no nn.Linear.
func (s *survey) isTransposed(path string) bool {
	w, b := s.shapes[path+".weight"], s.shapes[path+".bias"]
	return len(w) == 2 && len(b) == 1 && b[0] != w[0] && b[0] == w[1]
}

// mayBeTransposed is for a square matrix beside others that are [in, out].
func (s *survey) mayBeTransposed(path string) bool {
	w, b := s.shapes[path+".weight"], s.shapes[path+".bias"]
	return s.transposed && len(w) == 2 && len(b) == 1 && w[0] == w[1]
}

// isAttentionOut tells whether path is the out_proj of an nn.MultiheadAttention, which
// uses its weight without calling it as a layer.
func (s *survey) isAttentionOut(path string) bool {
	parent, ok := strings.CutSuffix(path, "out_proj")
	if !ok {
		return false
	}
	_, one := s.shapes[parent+"in_proj_weight"]
	_, split := s.shapes[parent+"q_proj_weight"]
	return one || split
}

// splitLayer cuts a module path at its first number: "model.layers", "3", "mlp.up_proj".
func splitLayer(path string) (stack, index, rest string, ok bool) {
	parts := strings.Split(path, ".")
	for i, p := range parts {
		if p != "" && strings.Trim(p, "0123456789") == "" {
			return strings.Join(parts[:i], "."), p, strings.Join(parts[i+1:], "."), true
		}
	}
	return "", "", "", false
}
