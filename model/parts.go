package model

import (
	"fmt"
	"math"
)

// builder makes the parts of a spec from a configuration. Methods name modules by their
// path below the base model or, in a layer, below the layer.
type builder struct {
	*config
	spec  *Spec
	at    string // path of the layer, with a dot at its end
	norms Norm   // what all norms have in common
}

// sizes are what decoders have in common, under their usual keys.
type sizes struct{ hidden, inner, layers, heads, kvHeads, headDim int }

func (b *builder) sizes() sizes {
	s := sizes{hidden: b.size("hidden_size"), inner: b.intOr(0, "intermediate_size"), layers: b.count("num_hidden_layers"), heads: b.heads("num_attention_heads")}
	s.kvHeads = b.intOr(s.heads, "num_key_value_heads")
	s.headDim = b.intOr(s.hidden/s.heads, "head_dim")
	if s.kvHeads < 1 || s.heads%s.kvHeads != 0 || s.headDim < 1 || s.headDim > 1<<12 {
		b.fail("%d heads of %d elements share %d key/value heads", s.heads, s.headDim, s.kvHeads)
		s.kvHeads, s.headDim = 1, 2
	}
	b.spec.Hidden, b.spec.Vocab = s.hidden, b.size("vocab_size")
	return s
}

func (b *builder) linear(path string, in, out int, bias bool) Linear {
	l := Linear{Weight: b.at + path + ".weight", In: in, Out: out}
	if bias {
		l.Bias = b.at + path + ".bias"
	}
	return l
}

func (b *builder) linearPtr(path string, in, out int, bias bool) *Linear {
	l := b.linear(path, in, out, bias)
	return &l
}

// norm is one of the common kind, of dim elements.
func (b *builder) norm(path string, dim int) *Norm {
	n := b.norms
	n.Dim, n.Groups = dim, 1
	n.Weight = b.at + path + ".weight"
	if n.Bias != "" {
		n.Bias = b.at + path + ".bias"
	}
	return &n
}

// rms and layerNorm say what norms have in common. Bias "bias" is for LayerNorm with one.
func (b *builder) rms(eps float64, keys ...string) { b.norms = Norm{Eps: b.floatOr(eps, keys...)} }

func (b *builder) layerNorm(bias bool, eps float64, keys ...string) {
	b.norms = Norm{Layer: true, Eps: b.floatOr(eps, keys...)}
	if bias {
		b.norms.Bias = "bias"
	}
}

// layers calls do for the path of each layer.
func (b *builder) layers(n int, path string, do func(i int) Layer) {
	for i := range n {
		if b.err != nil {
			return
		}
		b.at = fmt.Sprintf("@"+path+".%d.", i)
		l := do(i)
		if l.Residual == 0 {
			l.Residual = 1
		}
		b.spec.Layers = append(b.spec.Layers, l)
	}
	b.at = "@"
}

// columns are n columns from first on, step apart.
func columns(first, step, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = first + i*step
	}
	return out
}

// attention has its heads side by side, queries first, then keys, then values.
func (b *builder) attention(s sizes, inputs []Linear, out Linear) Attention {
	q, kv := s.heads*s.headDim, s.kvHeads*s.headDim
	return Attention{
		Heads: s.heads, KVHeads: s.kvHeads, HeadDim: s.headDim, ValueDim: s.headDim, Inputs: inputs, Out: out, Causal: b.spec.Causal,
		QCols: columns(0, s.headDim, s.heads), KCols: columns(q, s.headDim, s.kvHeads), VCols: columns(q+kv, s.headDim, s.kvHeads),
		Scale: float32(1 / math.Sqrt(float64(s.headDim))),
	}
}

// qkvo is attention with four projections under parent.
func (b *builder) qkvo(s sizes, parent string, names [4]string, qkvBias, outBias bool) Attention {
	q, kv := s.heads*s.headDim, s.kvHeads*s.headDim
	return b.attention(s, []Linear{
		b.linear(parent+names[0], s.hidden, q, qkvBias), b.linear(parent+names[1], s.hidden, kv, qkvBias), b.linear(parent+names[2], s.hidden, kv, qkvBias),
	}, b.linear(parent+names[3], q, s.hidden, outBias))
}

var projNames = [4]string{"q_proj", "k_proj", "v_proj", "o_proj"}

// fusedPerHead is attention whose projection has query, key and value of a head side by side.
func (b *builder) fusedPerHead(s sizes, in, out string, bias bool) Attention {
	s.kvHeads = s.heads
	a := b.attention(s, []Linear{b.linear(in, s.hidden, 3*s.heads*s.headDim, bias)}, b.linear(out, s.heads*s.headDim, s.hidden, bias))
	a.QCols, a.KCols, a.VCols = columns(0, 3*s.headDim, s.heads), columns(s.headDim, 3*s.headDim, s.heads), columns(2*s.headDim, 3*s.headDim, s.heads)
	return a
}

// gatedMLP is one with gate_proj, up_proj and down_proj under parent.
func (b *builder) gatedMLP(parent string, hidden, inner int, act Activation, bias bool) *MLP {
	return &MLP{Gated: true, Act: act, Inner: inner, Gate: b.linearPtr(parent+"gate_proj", hidden, inner, bias),
		Up: b.linear(parent+"up_proj", hidden, inner, bias), Down: b.linear(parent+"down_proj", inner, hidden, bias)}
}

func (b *builder) plainMLP(up, down string, hidden, inner int, act Activation, bias bool) *MLP {
	return &MLP{Act: act, Inner: inner, Up: b.linear(up, hidden, inner, bias), Down: b.linear(down, inner, hidden, bias)}
}

// embed is a table of tokens and nothing else.
func (b *builder) embed(path string) {
	b.at = "@"
	b.spec.Embed = Embed{Tokens: "@" + path + ".weight", Dim: b.spec.Hidden, Scale: 1}
}

// head is the output matrix, or the embedding where they are tied.
func (b *builder) head(path string, tied bool, bias bool) *Head {
	h := &Head{Out: Linear{Weight: path + ".weight", In: b.spec.Hidden, Out: b.spec.Vocab}, Scale: 1}
	if bias {
		h.Out.Bias = path + ".bias"
	}
	if b.boolOr(tied, "tie_word_embeddings") {
		h.Out.Weight = b.spec.Embed.Tokens
	}
	return h
}

// windows tells per layer how many tokens are seen, 0 for all: by layer_types where the
// configuration has them, else by the rule.
func (b *builder) windows(n, window int, rule func(i int) bool) []int {
	out := make([]int, n)
	types := b.texts("layer_types")
	if types != nil && len(types) < n {
		b.fail("layer_types: %d types for %d layers", len(types), n)
		return out
	}
	for i := range out {
		sliding := rule(i)
		if types != nil {
			switch types[i] {
			case "sliding_attention":
				sliding = true
			case "full_attention":
				sliding = false
			default:
				b.fail("layers of type %q are not implemented", types[i])
			}
		}
		if !sliding {
			continue
		}
		if window < 0 {
			b.fail("sliding_window: expected a positive number, found %d", window)
		}
		out[i] = window
	}
	return out
}

// window is sliding_window: def when the key is absent, 0 when it is null.
func (b *builder) window(def int) int {
	if b.said("sliding_window") {
		return b.intOr(0, "sliding_window")
	}
	return def
}

func always(int) bool { return true }
func never(int) bool  { return false }

// alibi are the slopes of Press et al. 2021 (arXiv 2108.12409): powers of 2^(-8/n), and for
// a number of heads that is no power of two every other one of twice as many in addition.
func alibi(heads int) []float32 {
	n := 1
	for n*2 <= heads {
		n *= 2
	}
	out := make([]float32, heads)
	for i := range out {
		if i < n {
			out[i] = float32(math.Pow(math.Exp2(-8/float64(n)), float64(i+1)))
		} else {
			out[i] = float32(math.Pow(math.Exp2(-4/float64(n)), float64(2*(i-n)+1)))
		}
	}
	return out
}
