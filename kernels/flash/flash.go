// Package flash is the forward pass of exact softmax attention, tiled so that the matrix
// of scores never exists: Dao et al., "FlashAttention" (2022, arXiv 2205.14135), with the
// loop order and the un-normalised accumulator of FlashAttention-2 (2023, arXiv 2307.08691),
// block-sparse on demand. Memory beyond input and output is a fixed amount per thread.
//
// # Definition
//
// Query token i of a sequence with Sq queries and Sk keys stands at position
//
//	p = i + Sk - Sq          (bottom-right aligned: the last query sees the last key)
//
// which differs from torch's is_causal, aligned top-left, whenever Sq != Sk. Query head h
// reads the keys and values of head h/(QHeads/KVHeads). For a query q and keys k_j:
//
//	x_j = Scale * <q, k_j>
//	x_j = Softcap * tanh(x_j / Softcap)             if Softcap is not 0
//	x_j = x_j - Slopes[h] * |p - j|                 with Slopes (ALiBi)
//	j is visible if   j < Sk
//	                  j <= p                        with Causal
//	                  p - Left <= j <= p + Right    with Window
//	                  the mask has block (i/BlockQ, j/BlockK)
//	z   = sum over visible j of exp(x_j), plus exp(Sinks[h]) with Sinks
//	out = sum over visible j of exp(x_j)/z * v_j
//	lse = ln z
//
// A query that sees no key gives exactly 0, with lse = -Inf or, with Sinks, the sink. NaN in
// a query, or in a key or value that it sees, gives NaN. Values of keys that are masked
// inside a tile are multiplied by zero, so they have to be finite.
//
// # Result
//
// All arithmetic is float32, exponentials have a relative error of 1e-7. The bits depend
// on the tier (see package panel), on the shapes and masks, never on the number of threads.
//
// # Tiling
//
// Queries run along vector lanes: a panel holds up to 48 of them (24 with AVX2) and its
// scores are computed transposed, [key][query], with keys as the operand that is read
// element by element, in place when they are float32. So the maximum and the sum of the
// softmax never cross lanes, the probabilities are where the second product wants them,
// and out comes as [value dimension][query]. The query heads that share a key head lie in
// the same panel, token by token. A unit of work is 192 such rows against all keys they
// see, in chunks of 128 keys, or 96 rows where there would be fewer than 128 units; units
// are handed out longest first.
package flash

import (
	"fmt"
	"math"

	"github.com/nf4conv/nf4conv/kernels"
)

// Heads is a view of [tokens, heads, dim]: element x of head h of token t is number
// t*Row + h*Head + x. [F32] and [Stored] make one.
type Heads struct {
	Row, Head int // in elements

	wide   []float32
	stored []byte
	format kernels.Float
}

// F32 views float32 elements: row elements from token to token, head from head to head.
func F32(x []float32, row, head int) Heads {
	return Heads{Row: row, Head: head, wide: x}
}

// Stored views little-endian elements of any format; they need no alignment.
func Stored(x []byte, format kernels.Float, row, head int) Heads {
	if len(x)%format.Size() != 0 {
		panic(fmt.Sprintf("flash: internal error: %d bytes are no whole number of %v elements", len(x), format))
	}
	return Heads{Row: row, Head: head, stored: x, format: format}
}

func (h *Heads) len() int {
	if h.stored != nil {
		return len(h.stored) / h.format.Size()
	}
	return len(h.wide)
}

// A Window limits how far keys may be from the position of a query, on each side. A
// negative number is no limit.
type Window struct{ Left, Right int }

// Params is one call of [Attention.Forward]. The zero value of an option leaves it out.
//
// Sequences lie one after the other along the tokens: QStarts and KStarts, "cu_seqlens",
// hold the first token of each and the total at the end. Both nil is one sequence of
// QTokens queries and KTokens keys. With KLens, sequence b has KLens[b] keys only and
// what follows up to the next start is padding, which is not read.
//
// A batch [B, S, H, D] is B sequences with starts 0, S, 2S...; a batch [B, H, S, D] is one
// sequence with B*H heads, row D and head S*D.
type Params struct {
	Q, K, V  Heads
	Out      []float32 // element x of head h of token t: t*OutRow + h*OutHead + x
	OutRow   int
	OutHead  int
	LSE      []float32 // [QHeads, query tokens], natural logarithm; nil: not wanted
	QHeads   int
	KVHeads  int // divides QHeads
	HeadDim  int // of queries and keys
	ValueDim int // of values and out; 0: HeadDim

	QTokens, KTokens int
	QStarts, KStarts []int
	KLens            []int

	Scale   float32 // positive; 0: 1/sqrt(HeadDim)
	Causal  bool
	Window  *Window
	Softcap float32
	Slopes  []float32 // per query head
	Sinks   []float32 // per query head
	Mask    *BlockMask
}

// An Attention has the threads and scratch memory for calls, one at a time: per thread,
// about 4*(192*(HeadDim+ValueDim) + 128*(HeadDim+ValueDim+48)) bytes, whatever the number
// of tokens. Goroutines live for the duration of a call.
type Attention struct {
	threads int
	workers []worker
}

// New makes an Attention with so many threads, at least one.
func New(threads int) *Attention {
	threads = max(1, threads)
	return &Attention{threads: threads, workers: make([]worker, threads)}
}

// sequence is one of the sequences of a call.
type sequence struct{ q0, q, k0, k int } // first token and number of queries, of keys

// sequences checks the parameters and lists the sequences. It panics, as all kernels do,
// when lengths do not fit.
func (p *Params) sequences() []sequence {
	bad := func(format string, args ...any) { panic("flash: internal error: " + fmt.Sprintf(format, args...)) }
	if p.KVHeads < 1 || p.QHeads < 1 || p.QHeads%p.KVHeads != 0 || p.HeadDim < 1 || p.ValueDim < 0 {
		bad("%d query heads, %d key heads, head dimension %d, value dimension %d", p.QHeads, p.KVHeads, p.HeadDim, p.ValueDim)
	}
	if !(p.Scale >= 0) || math.IsInf(float64(p.Scale), 0) || !(p.Softcap >= 0) {
		bad("scale %v, softcap %v", p.Scale, p.Softcap)
	}
	for name, s := range map[string][]float32{"slopes": p.Slopes, "sinks": p.Sinks} {
		if s != nil && len(s) != p.QHeads {
			bad("%d %s for %d heads", len(s), name, p.QHeads)
		}
	}
	qs, ks := p.QStarts, p.KStarts
	if qs == nil && ks == nil {
		qs, ks = []int{0, p.QTokens}, []int{0, p.KTokens}
	}
	if len(qs) < 1 || len(qs) != len(ks) || p.KLens != nil && len(p.KLens) != len(qs)-1 {
		bad("%d starts of queries, %d of keys, %d lengths", len(qs), len(ks), len(p.KLens))
	}
	if qs[0] < 0 || ks[0] < 0 {
		bad("starts %d and %d", qs[0], ks[0])
	}
	var list []sequence
	for b := range len(qs) - 1 {
		s := sequence{q0: qs[b], q: qs[b+1] - qs[b], k0: ks[b], k: ks[b+1] - ks[b]}
		if s.q < 0 || s.k < 0 {
			bad("sequence %d has %d queries and %d keys", b, s.q, s.k)
		}
		if p.KLens != nil {
			if p.KLens[b] < 0 || p.KLens[b] > s.k {
				bad("sequence %d has %d of %d keys", b, p.KLens[b], s.k)
			}
			s.k = p.KLens[b]
		}
		if p.Mask != nil && !p.Mask.Covers(s.q, s.k) {
			bad("a mask of %dx%d blocks of %dx%d for %d queries and %d keys", p.Mask.rows, p.Mask.cols, p.Mask.blockQ, p.Mask.blockK, s.q, s.k)
		}
		list = append(list, s)
	}
	tokens := [2]int{qs[len(qs)-1], ks[len(ks)-1]}
	if p.KLens != nil && len(list) > 0 { // padding at the very end need not exist
		tokens[1] = 0
		for _, s := range list {
			tokens[1] = max(tokens[1], s.k0+s.k)
		}
	}
	fits := func(name string, tokens, row, heads, head, dim, have int) {
		if row < dim || head < 0 || tokens > 0 && (tokens-1)*row+(heads-1)*head+dim > have {
			bad("%s: %d elements for %d tokens, %d heads of %d, strides %d and %d", name, have, tokens, heads, dim, row, head)
		}
	}
	fits("Q", tokens[0], p.Q.Row, p.QHeads, p.Q.Head, p.HeadDim, p.Q.len())
	fits("K", tokens[1], p.K.Row, p.KVHeads, p.K.Head, p.HeadDim, p.K.len())
	fits("V", tokens[1], p.V.Row, p.KVHeads, p.V.Head, p.valueDim(), p.V.len())
	fits("Out", tokens[0], p.OutRow, p.QHeads, p.OutHead, p.valueDim(), len(p.Out))
	if p.LSE != nil && len(p.LSE) != p.QHeads*tokens[0] {
		bad("LSE has %d elements for %d heads of %d tokens", len(p.LSE), p.QHeads, tokens[0])
	}
	return list
}

func (p *Params) valueDim() int {
	if p.ValueDim == 0 {
		return p.HeadDim
	}
	return p.ValueDim
}

func (p *Params) queryTokens() int {
	if n := len(p.QStarts); n > 0 {
		return p.QStarts[n-1]
	}
	return p.QTokens
}

// reach is how far keys may be from a query to either side, at most far.
func (p *Params) reach(far int) (left, right int) {
	left, right = far, far
	if p.Window != nil {
		if p.Window.Left >= 0 {
			left = min(left, p.Window.Left)
		}
		if p.Window.Right >= 0 {
			right = min(right, p.Window.Right)
		}
	}
	if p.Causal {
		right = 0
	}
	return left, right
}
