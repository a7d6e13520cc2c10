package cuda

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

// attention is a problem for the kernels, of sequences one after the other.
type attention struct {
	format         kernels.Float
	q, k           []int // lengths of the sequences
	heads, kvHeads int
	dim            int
	causal         bool
	left, right    int // window; 0: no limit
	softcap        float32
	scale          float32
	padding        int // of the last sequence's keys
	mask           [][]bool
	starts         bool
}

func (a *attention) String() string {
	return fmt.Sprintf("%v %v x %v, heads %d/%d, dim %d, causal %v, window %d %d, softcap %v, padding %d, %d rows of blocks",
		a.format, a.q, a.k, a.heads, a.kvHeads, a.dim, a.causal, a.left, a.right, a.softcap, a.padding, len(a.mask))
}

func sum(n []int) (s int) {
	for _, x := range n {
		s += x
	}
	return s
}

const gap = 8 // elements of NaN behind each token

// operand draws [tokens, heads, dim] and gives it as stored.
func (a *attention) operand(r *rand.Rand, tokens, heads int, x float64) (wide []float32, stored []byte) {
	row := heads*a.dim + gap
	wide = make([]float32, tokens*row)
	for i := range wide {
		wide[i] = float32(x * r.NormFloat64())
		if i%row >= heads*a.dim {
			wide[i] = float32(math.NaN())
		}
	}
	stored = make([]byte, 2*len(wide))
	cast.FromF32(stored, wide, a.format)
	cast.ToF32(wide, stored, a.format)
	return wide, stored
}

type problem struct {
	*attention
	params          FlashParams
	q, k, v         []float32
	stored          [3][]byte
	qs, ks, lens    []byte
	offsets, blocks []byte
}

func ints(x []int) (b []byte) {
	for _, v := range x {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return b
}

func (a *attention) problem(seed uint64) *problem {
	r := rand.New(rand.NewPCG(seed, 5))
	p := &problem{attention: a}
	p.q, p.stored[0] = a.operand(r, sum(a.q), a.heads, 2)
	p.k, p.stored[1] = a.operand(r, sum(a.k), a.kvHeads, 1)
	p.v, p.stored[2] = a.operand(r, sum(a.k), a.kvHeads, 1)
	rowQ, rowK := int64(a.heads*a.dim+gap), int64(a.kvHeads*a.dim+gap)
	p.params = FlashParams{QToken: rowQ, QHead: int64(a.dim), KToken: rowK, KHead: int64(a.dim), VToken: rowK, VHead: int64(a.dim),
		OutToken: rowQ, OutHead: int64(a.dim), TotalQ: int64(sum(a.q)), Sequences: int32(len(a.q)), QHeads: int32(a.heads), KVHeads: int32(a.kvHeads),
		Dim: int32(a.dim), WindowLeft: -1, WindowRight: -1, Scale: a.scale, Softcap: a.softcap}
	if a.left > 0 {
		p.params.WindowLeft = int32(a.left)
	}
	if a.right > 0 || a.causal {
		p.params.WindowRight = int32(a.right)
	}
	if a.scale == 0 {
		p.params.Scale = float32(1 / math.Sqrt(float64(a.dim)))
	}
	qs, ks := []int{0}, []int{0}
	var lens []int
	for b := range a.q {
		qs, ks, lens = append(qs, qs[b]+a.q[b]), append(ks, ks[b]+a.k[b]), append(lens, p.keys(b))
		p.params.MaxQ, p.params.MaxK = max(p.params.MaxQ, int32(a.q[b])), max(p.params.MaxK, int32(a.k[b]))
	}
	if a.starts {
		p.qs, p.ks = ints(qs), ints(ks)
	}
	if a.padding > 0 {
		p.lens = ints(lens)
	}
	if a.mask != nil {
		offsets, blocks := []int{0}, []int{}
		for _, row := range a.mask {
			for j, has := range row {
				if has {
					blocks = append(blocks, j)
				}
			}
			offsets = append(offsets, len(blocks))
		}
		p.offsets, p.blocks = ints(offsets), ints(blocks)
		p.params.MaskBlockQ, p.params.MaskBlockK = FlashMaskBlock, FlashMaskBlock
	}
	return p
}

func (a *attention) keys(b int) int {
	if b == len(a.q)-1 {
		return a.k[b] - a.padding
	}
	return a.k[b]
}

// run launches the kernel and returns out and lse, as stored.
func (p *problem) run(t *testing.T, e *emulator, image string, order uint32) (out, lse []byte, err error) {
	t.Helper()
	l, ok := FlashSM80(image, p.format, &p.params)
	if !ok {
		t.Fatalf("no kernel for %v", p)
	}
	out, lse = bytes.Repeat([]byte{0xff}, len(p.stored[0])), bytes.Repeat([]byte{0xff}, 4*p.heads*sum(p.attention.q))
	arg := record{value: p.params}
	for i, b := range [][]byte{p.stored[0], p.stored[1], p.stored[2], out, lse, p.qs, p.ks, p.lens, p.offsets, p.blocks} {
		if b != nil {
			arg.pointers = append(arg.pointers, pointer{uint32(8 * i), b})
		}
	}
	return out, lse, e.start(t, order, l.Name, l.Grid, l.Block, l.Shared, arg)
}

// check compares with the definition in float64. Rounding a probability and the result to
// the storage format is an error of half of its last place each.
func (p *problem) check(out, lse []byte) error {
	wide := make([]float32, len(out)/2)
	cast.ToF32(wide, out, p.format)
	place := 0x1p-11
	if p.format == kernels.BF16 {
		place = 0x1p-8
	}
	rowQ, rowK := p.heads*p.dim+gap, p.kvHeads*p.dim+gap
	q0, k0, total := 0, 0, sum(p.attention.q)
	for b, sq := range p.attention.q {
		sk := p.keys(b)
		for i := range sq {
			at := i + sk - sq
			for h := range p.heads {
				x, top := make([]float64, sk), math.Inf(-1)
				for j := range x {
					x[j] = math.Inf(-1)
					if p.left > 0 && j < at-p.left || (p.right > 0 || p.causal) && j > at+p.right || p.mask != nil && !p.mask[i/FlashMaskBlock][j/FlashMaskBlock] {
						continue
					}
					s, kv := 0.0, h/(p.heads/p.kvHeads)
					for d := range p.dim {
						s += float64(p.q[(q0+i)*rowQ+h*p.dim+d]) * float64(p.k[(k0+j)*rowK+kv*p.dim+d])
					}
					s *= float64(p.params.Scale)
					if c := float64(p.softcap); c > 0 {
						s = c * math.Tanh(s/c)
					}
					x[j], top = s, max(top, s)
				}
				want, size, z := make([]float64, p.dim), make([]float64, p.dim), 0.0
				for j := range x {
					if math.IsInf(x[j], -1) {
						continue
					}
					w := math.Exp(x[j] - top)
					z += w
					for d := range want {
						v := float64(p.v[(k0+j)*rowK+h/(p.heads/p.kvHeads)*p.dim+d])
						want[d] += w * v
						size[d] += w * math.Abs(v)
					}
				}
				got := float64(math.Float32frombits(binary.LittleEndian.Uint32(lse[4*(h*total+q0+i):])))
				if z == 0 {
					if !math.IsInf(got, -1) {
						return fmt.Errorf("sequence %d, query %d, head %d sees nothing: lse %v", b, i, h, got)
					}
				} else if l := top + math.Log(z); !(math.Abs(got-l) <= 1e-5*max(1, math.Abs(l))) {
					return fmt.Errorf("sequence %d, query %d, head %d: lse %v, want %v", b, i, h, got, l)
				}
				for d := range want {
					y := wide[(q0+i)*rowQ+h*p.dim+d]
					if z == 0 {
						if math.Float32bits(y) != 0 {
							return fmt.Errorf("sequence %d, query %d, head %d sees nothing: element %d is %v", b, i, h, d, y)
						}
						continue
					}
					if diff := math.Abs(float64(y) - want[d]/z); !(diff <= 2.2*place*size[d]/z+1e-6) {
						return fmt.Errorf("sequence %d, query %d, head %d, element %d: got %v, want %v", b, i, h, d, y, want[d]/z)
					}
				}
			}
		}
		q0, k0 = q0+sq, k0+p.attention.k[b]
	}
	for i := range wide {
		if i%rowQ >= p.heads*p.dim && binary.LittleEndian.Uint16(out[2*i:]) != 0xffff {
			return fmt.Errorf("element %d, between tokens, was written", i)
		}
	}
	return nil
}

func problems() []*attention {
	list := []*attention{
		{q: []int{1}, k: []int{1}, dim: 64},
		{q: []int{129}, k: []int{200}, dim: 64, heads: 4, kvHeads: 2},
		{q: []int{200}, k: []int{200}, dim: 128, causal: true, heads: 2},
		{q: []int{70}, k: []int{130}, dim: 96, causal: true},
		{q: []int{70}, k: []int{130}, dim: 256, causal: true},
		{q: []int{130}, k: []int{66}, dim: 80, causal: true}, // queries that see nothing
		{q: []int{40}, k: []int{90}, dim: 8, softcap: 3, scale: 1},
		{q: []int{300}, k: []int{300}, dim: 64, left: 70, right: 20},
		{q: []int{160}, k: []int{160}, dim: 128, left: 30, causal: true, softcap: 15, scale: 0.5},
		{q: []int{100, 1, 0, 140, 3}, k: []int{100, 200, 7, 0, 70}, dim: 64, causal: true, starts: true, padding: 9, heads: 2},
		{q: []int{65, 65}, k: []int{100, 100}, dim: 128, left: 10},
		{q: []int{300}, k: []int{390}, dim: 64, mask: [][]bool{{true, false, false, true}, {}, {false, true, true, false}}},
		{q: []int{300}, k: []int{390}, dim: 128, causal: true, mask: [][]bool{{true, true, true, true}, {false, false, false, true}, {false, true, false, true}}},
		{q: []int{260}, k: []int{260}, dim: 96, left: 20, right: 3, mask: [][]bool{{true, true, false}, {true, false, true}, {false, true, true}}},
		{q: []int{90}, k: []int{200}, dim: 64, scale: 4}, // maxima that move
	}
	for i, a := range list {
		if i%2 == 1 {
			a.format = kernels.BF16
		} else {
			a.format = kernels.F16
		}
		a.heads, a.kvHeads = max(1, a.heads), max(1, a.kvHeads)
		for j, row := range a.mask {
			a.mask[j] = append(row, make([]bool, (a.k[0]+127)/128-len(row))...)
		}
	}
	return list
}

// imageOf is an image whose tiles are those that a build has.
func imageOf(e *emulator) string {
	if strings.HasPrefix(e.name, "sm_") {
		return "flash_" + e.name + ".cubin"
	}
	return "flash_sm_90.cubin"
}

// TestFlash holds the kernel against the definition, in several orders of threads and
// blocks, which must not matter.
func TestFlash(t *testing.T) {
	emulators(t, attentionBuilds, func(t *testing.T, e *emulator) {
		for i, a := range problems() {
			p := a.problem(uint64(i))
			var first [2][]byte
			for order := range uint32(4) {
				out, lse, err := p.run(t, e, imageOf(e), order)
				if err != nil {
					t.Fatalf("%v: %v", a, err)
				}
				if order == 0 {
					first = [2][]byte{out, lse}
					if err := p.check(out, lse); err != nil {
						t.Fatalf("%v: %v", a, err)
					}
				} else if !bytes.Equal(out, first[0]) || !bytes.Equal(lse, first[1]) {
					t.Fatalf("%v: order %d gives other bits", a, order)
				}
				if order == 1 && e.name == "sanitized" && sum(a.q)*sum(a.k)*a.dim > 3e6 {
					break
				}
			}
		}
	})
}

// TestFlashNoLSE: no place for lse, nothing written.
func TestFlashNoLSE(t *testing.T) {
	emulators(t, attentionBuilds[1:], func(t *testing.T, e *emulator) {
		a := &attention{format: kernels.F16, q: []int{40}, k: []int{40}, heads: 1, kvHeads: 1, dim: 64}
		p := a.problem(1)
		with, _, err := p.run(t, e, imageOf(e), 0)
		if err != nil {
			t.Fatal(err)
		}
		l, _ := FlashSM80(imageOf(e), a.format, &p.params)
		out := make([]byte, len(p.stored[0]))
		arg := record{value: p.params, pointers: []pointer{{0, p.stored[0]}, {8, p.stored[1]}, {16, p.stored[2]}, {24, out}}}
		if err := e.start(t, 0, l.Name, l.Grid, l.Block, l.Shared, arg); err != nil {
			t.Fatal(err)
		}
		for i := range 40 { // the gaps differ
			if row := 2 * (a.dim + gap); !bytes.Equal(out[i*row:][:2*a.dim], with[i*row:][:2*a.dim]) {
				t.Errorf("query %d differs", i)
			}
		}
	})
}

// TestFlashPlanted breaks the kernel and sees TestFlash's problems fail.
func TestFlashPlanted(t *testing.T) {
	cxx := compiler(t)
	for name, c := range map[string]struct{ old, broken string }{
		"no wait":      {"cp_wait<0>();\n\t\t__syncthreads();\n\t\tif (STAGES == 2)", "__syncthreads();\n\t\tif (STAGES == 2)"},
		"no barrier":   {"cp_wait<0>();\n\t\t\t__syncthreads();\n\t\t\tif (tiles.j", "cp_wait<0>();\n\t\t\tif (tiles.j"},
		"no barrier 2": {"cp_wait<0>();\n\t\t__syncthreads();\n\t\tif (STAGES == 2)", "cp_wait<0>();\n\t\tif (STAGES == 2)"},
		"swizzle":      {"c ^ (r & 7) :", "c ^ (r & 3) * 4 :"},
		"shared":       {"s_v = s_k + STAGES * kBytesKV;", "s_v = s_k + STAGES * kBytesKV + 16;"},
		"no rescaling": {"l[i][h] *= f;", ""},
		"mask":         {"if (!row.sees(", "if (false && !row.sees("},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, pattern := range []string{"src/*", "emu/*.*", "emu/test/run.cpp"} {
				files, err := filepath.Glob(pattern)
				if err != nil || len(files) == 0 {
					t.Fatalf("%s: %v", pattern, err)
				}
				for _, f := range files {
					raw, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					if f == "src/flash_sm80.cu" {
						if strings.Count(string(raw), c.old) != 1 {
							t.Fatalf("%q is %d times in %s", c.old, strings.Count(string(raw), c.old), f)
						}
						raw = []byte(strings.Replace(string(raw), c.old, c.broken, 1))
					}
					if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(filepath.Join(dir, f), raw, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			args := []string{"-std=c++17", "-ffp-contract=off", "-O1", "-w", "-o", "run", "emu/emu.cpp", "emu/kernels.cpp", "emu/test/run.cpp"}
			if name == "shared" {
				args = append([]string{"-fsanitize=address"}, args...)
			}
			cmd := exec.Command(cxx, args...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			e := startEmulator(t, name, filepath.Join(dir, "run"))
			for i, a := range problems() {
				p := a.problem(uint64(i))
				var first []byte
				for order := range uint32(3) {
					out, lse, err := p.run(t, e, imageOf(e), order)
					if err == nil {
						err = p.check(out, lse)
					}
					if err == nil && order > 0 && !bytes.Equal(out, first) {
						err = fmt.Errorf("order %d gives other bits", order)
					}
					if err != nil {
						t.Logf("found: %v: %.200s", a, err)
						return
					}
					first = out
				}
			}
			t.Errorf("%q instead of %q was not found", c.broken, c.old)
		})
	}
}
