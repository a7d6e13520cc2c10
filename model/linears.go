package model

// Linears are the linear layers that an adapter can act on, by the tensor of their weight:
// inputs and outputs. A matrix that is an embedding too is not among them, nor are the
// layers of a stack.
func (m *Model) Linears() map[string][2]int {
	l := m.loader(newEngine(1))
	out := map[string][2]int{}
	walk{
		linear: func(s *Linear) {
			if s.Stack == 0 {
				out[l.name(s.Weight)] = [2]int{s.In, s.Out}
			}
		},
		vector: func(string, int) {},
		table:  func(string, int, int) {},
	}.spec(m.spec)
	delete(out, l.name(m.spec.Embed.Tokens))
	return out
}
