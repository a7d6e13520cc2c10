package panel_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/guardtest"
	"github.com/nf4conv/nf4conv/kernels/panel"
)

// source makes rows of w in one format, at the given distance, and what they stand for.
type source struct {
	name string
	step int
	make func(r *rand.Rand, k, stride int, floats func(int) []float32, bytes func(int) []byte) (panel.Rows, []float32)
}

var sources = []source{
	{"float32", 16, func(r *rand.Rand, k, stride int, floats func(int) []float32, _ func(int) []byte) (panel.Rows, []float32) {
		w := floats((panel.FewRows-1)*stride + k)
		exact := make([]float32, panel.FewRows*k)
		for i := range exact {
			exact[i] = float32(r.NormFloat64())
			w[i/k*stride+i%k] = exact[i]
		}
		return panel.Rows{Wide: w, Stride: stride}, exact
	}},
	{"bfloat16", 32, func(r *rand.Rand, k, stride int, _ func(int) []float32, bytes func(int) []byte) (panel.Rows, []float32) {
		w := bytes(2 * ((panel.FewRows-1)*stride + k))
		exact := make([]float32, panel.FewRows*k)
		for i := range exact {
			bits := math.Float32bits(float32(r.NormFloat64())) &^ 0xffff
			exact[i] = math.Float32frombits(bits)
			at := 2 * (i/k*stride + i%k)
			w[at], w[at+1] = byte(bits>>16), byte(bits>>24)
		}
		return panel.Rows{BF16: w, Stride: stride}, exact
	}},
	{"quant4", 128, func(r *rand.Rand, k, stride int, floats func(int) []float32, bytes func(int) []byte) (panel.Rows, []float32) {
		w, scales := bytes(((panel.FewRows-1)*stride+k)/2), floats(k/64*panel.FewRows)
		levels := new([16]float32)
		for i := range levels {
			levels[i] = float32(r.NormFloat64())
		}
		for i := range scales {
			scales[i] = float32(r.NormFloat64())
		}
		exact := make([]float32, panel.FewRows*k)
		for i := range exact {
			j, t := i/k, i%k
			code := r.IntN(16)
			exact[i] = levels[code] * scales[t/64*panel.FewRows+j]
			w[(j*stride+t)/2] |= byte(code << (4 * (1 - t%2)))
		}
		return panel.Rows{Packed: w, Stride: stride, Levels: levels, Scales: scales}, exact
	}},
}

// Few gives the bits of Mul, in every format, and touches nothing else.
func TestFew(t *testing.T) {
	for _, kn := range panel.All() {
		for _, src := range sources {
			if src.step > 16 && !kn.Direct() {
				continue // the definition has float32 only, which others are held against
			}
			t.Run(kn.Tier+"/"+src.name, func(t *testing.T) {
				r := rand.New(rand.NewPCG(4, 4))
				for _, k := range []int{src.step, 2 * src.step, 3 * src.step, 1280} {
					for _, m := range []int{1, 2, 4} {
						for _, mode := range []panel.Mode{panel.Store, panel.Add} {
							for _, front := range []bool{false, true} {
								checkFew(t, kn, r, src, k, m, mode, front)
							}
						}
					}
				}
			})
		}
	}
}

func checkFew(t *testing.T, kn *panel.Kernel, r *rand.Rand, src source, k, m int, mode panel.Mode, front bool) {
	t.Helper()
	floats := func(n int) []float32 { return guardtest.Floats(t, n, front) }
	bytes := func(n int) []byte { return guardtest.Bytes(t, n, front) }
	w, exact := src.make(r, k, k+src.step*r.IntN(2), floats, bytes)
	if r.IntN(2) == 0 {
		w.Next = w.Stride
	}
	a, cRow := floats(m*k), panel.FewRows+r.IntN(4)
	for i := range a {
		a[i] = float32(r.NormFloat64())
	}
	c := floats((m-1)*cRow + panel.FewRows)
	for i := range c {
		c[i] = float32(r.NormFloat64())
	}
	want := append([]float32(nil), c...)
	// A panel of the rows of a against w, one row after the other.
	lanes := kn.Lanes
	b, out := make([]float32, k*lanes), make([]float32, panel.FewRows*lanes)
	for i := range m {
		for s := range k {
			b[s*lanes+i] = a[s*m+i]
		}
		for j := range panel.FewRows {
			out[j*lanes+i] = c[i*cRow+j]
		}
	}
	kn.Mul(out, b, exact, k, 1, panel.FewRows/kn.Rows, k, 1, mode, nil)
	for i := range m {
		for j := range panel.FewRows {
			want[i*cRow+j] = out[j*lanes+i]
		}
	}
	kn.Few(c, cRow, a, &w, k, m, mode)
	for i := range c {
		if math.Float32bits(c[i]) != math.Float32bits(want[i]) {
			t.Fatalf("k %d, %d rows, mode %d: element %d is %v, want the bits of %v", k, m, mode, i, c[i], want[i])
		}
	}
}

func TestFewPanics(t *testing.T) {
	f := func(n int) []float32 { return make([]float32, n) }
	kn := panel.Best()
	for name, call := range map[string]func(){
		"rows":   func() { kn.Few(f(48), 16, f(48), &panel.Rows{Wide: f(256), Stride: 16}, 16, 3, panel.Store) },
		"k":      func() { kn.Few(f(16), 16, f(8), &panel.Rows{Wide: f(256), Stride: 16}, 8, 1, panel.Store) },
		"stride": func() { kn.Few(f(16), 16, f(32), &panel.Rows{Wide: f(512), Stride: 16}, 32, 1, panel.Store) },
		"w":      func() { kn.Few(f(16), 16, f(16), &panel.Rows{Wide: f(255), Stride: 16}, 16, 1, panel.Store) },
		"a":      func() { kn.Few(f(16), 16, f(15), &panel.Rows{Wide: f(256), Stride: 16}, 16, 1, panel.Store) },
		"c":      func() { kn.Few(f(31), 16, f(32), &panel.Rows{Wide: f(256), Stride: 16}, 16, 2, panel.Store) },
		"mode":   func() { kn.Few(f(16), 16, f(16), &panel.Rows{Wide: f(256), Stride: 16}, 16, 1, panel.Rescale) },
		"scales": func() {
			kn.Few(f(16), 16, f(128), &panel.Rows{Packed: make([]byte, 1024), Stride: 128, Levels: new([16]float32), Scales: f(31)}, 128, 1, panel.Store)
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			call()
		})
	}
}
