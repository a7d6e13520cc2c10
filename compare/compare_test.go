package compare

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/weights"
)

func f32(name string, shape []int64, v ...float32) formatstest.Tensor {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return formatstest.Tensor{Name: name, DType: "F32", Shape: shape, Data: b}
}

func raw(name, dtype string, shape []int64, b ...byte) formatstest.Tensor {
	return formatstest.Tensor{Name: name, DType: dtype, Shape: shape, Data: b}
}

func checkpoint(t *testing.T, config string, ts ...formatstest.Tensor) *hf.Checkpoint {
	t.Helper()
	dir := t.TempDir()
	formatstest.Write(t, dir, config, ts...)
	c, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// run compares, and wants a result that JSON can say.
func run(t *testing.T, a, b *hf.Checkpoint, workers int) *Result {
	t.Helper()
	r, err := Checkpoints(context.Background(), a, b, workers)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("%v: %+v", err, r)
	}
	return r
}

func TestConfigKeys(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want []string
	}{
		{``, ``, nil},
		{`{}`, ``, nil},
		{`{"a":1}`, ``, []string{"a"}},
		{``, `{"b":1,"a":null}`, []string{"a", "b"}},
		{`{"a":1,"b":{"c":[1,2]}}`, "{\"b\" :\n{ \"c\": [1,\t2]}, \"a\":1}", nil},
		{`{"a":"x y"}`, `{"a":"xy"}`, []string{"a"}}, // white space in a string counts
		{`{"a":"x\u00a0y"}`, `{"a":"x\u00a0y"}`, nil},
		{`{"a":1.0}`, `{"a":1}`, []string{"a"}},
		{`{"a":null}`, `{}`, []string{"a"}},
		{`{"b":{"c":1},"z":0}`, `{"b":{"c":2}}`, []string{"b", "z"}},
	} {
		x := f32("w", []int64{1}, 1)
		r := run(t, checkpoint(t, c.a, x), checkpoint(t, c.b, x), 1)
		if !slices.Equal(r.Config, c.want) || r.Equal != (c.want == nil) || r.Same != 1 {
			t.Errorf("%s and %s: %q, equal %v; want %q", c.a, c.b, r.Config, r.Equal, c.want)
		}
	}
}

func TestTensors(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	const most = math.MaxFloat64
	s := []int64{4}
	for _, c := range []struct {
		name string
		a, b formatstest.Tensor
		want *Tensor // nil: equal
	}{
		{"equal", f32("w", s, 1, 2, 3, 4), f32("w", s, 1, 2, 3, 4), nil},
		{"equal in another dtype", f32("w", s, 1, 2, -3, 0.5), raw("w", "BF16", s, 0x80, 0x3f, 0, 0x40, 0x40, 0xc0, 0, 0x3f), nil},
		{"zeros of two signs", f32("w", s, 0, 0, 0, 0), f32("w", s, 0, float32(math.Copysign(0, -1)), 0, 0), nil},
		{"equal NaN and infinities", f32("w", s, nan, inf, -inf, 1), f32("w", s, nan, inf, -inf, 1), nil},
		{"values", f32("w", s, 3, 0, 4, 0), f32("w", s, 3, 0, 5, 1), &Tensor{
			Kind: "values", Different: 2, MaxAbs: 1, RelError: math.Sqrt2 / 5, Cosine: 29 / (5 * math.Sqrt(35)), SQNR: 10 * math.Log10(12.5), Gain: 29. / 25}},
		{"of zeros", f32("w", s, 0, 0, 0, 0), f32("w", s, 0, 2, 0, 0), &Tensor{Kind: "values", Different: 1, MaxAbs: 2}},
		{"to zeros", f32("w", s, 0, 2, 0, 0), f32("w", s, 0, 0, 0, 0), &Tensor{Kind: "values", Different: 1, MaxAbs: 2, RelError: 1}},
		{"negated", f32("w", s, 1, 2, 3, 4), f32("w", s, -1, -2, -3, -4), &Tensor{Kind: "values", Different: 4, MaxAbs: 8, RelError: 2, Cosine: -1, SQNR: 10 * math.Log10(0.25), Gain: -1}},
		{"NaN on one side", f32("w", s, 1, 1, 1, 1), f32("w", s, 1, nan, 1, 1), &Tensor{Kind: "values", Different: 1, MaxAbs: most, RelError: most, Cosine: most, SQNR: -most, Gain: most}},
		{"infinity on one side", f32("w", s, 1, 1, 1, 1), f32("w", s, 1, inf, 1, 1), &Tensor{Kind: "values", Different: 1, MaxAbs: most, RelError: most, Cosine: most, SQNR: -most, Gain: most}},
		{"infinity on the other", f32("w", s, 1, -inf, 1, 1), f32("w", s, 1, 1, 1, 1), &Tensor{Kind: "values", Different: 1, MaxAbs: most, RelError: most, Cosine: most, SQNR: -most, Gain: most}},
		{"two infinities", f32("w", s, 1, -inf, 1, 1), f32("w", s, 1, inf, 1, 1), &Tensor{Kind: "values", Different: 1, MaxAbs: most, RelError: most, Cosine: most, SQNR: -most, Gain: most}},
		{"equal NaN beside a difference", f32("w", s, nan, inf, 0, 1), f32("w", s, nan, inf, 0, 3), &Tensor{Kind: "values", Different: 1, MaxAbs: 2, RelError: 2, Cosine: 1, SQNR: 10 * math.Log10(0.25), Gain: 3}},
		{"shape", f32("w", s, 1, 2, 3, 4), f32("w", []int64{2, 2}, 1, 2, 3, 4), &Tensor{Kind: "shape"}},
		{"bytes", raw("w", "I16", []int64{2}, 1, 2, 3, 4), raw("w", "I16", []int64{2}, 1, 0, 3, 5), &Tensor{Kind: "bytes", Different: 2}},
		{"equal bytes", raw("w", "I16", []int64{2}, 1, 2, 3, 4), raw("w", "I16", []int64{2}, 1, 2, 3, 4), nil},
		{"another integer", raw("w", "I16", []int64{2}, 1, 2, 3, 4), raw("w", "U16", []int64{2}, 1, 2, 3, 4), &Tensor{Kind: "bytes"}},
		{"numbers and bytes", f32("w", []int64{1}, 1), raw("w", "I32", []int64{1}, 0, 0, 0x80, 0x3f), &Tensor{Kind: "bytes"}},
		{"an unknown dtype", raw("w", "Q4_K", []int64{2}, 1, 2, 3), raw("w", "Q4_K", []int64{2}, 1, 2, 3), nil},
		{"an unknown dtype, longer", raw("w", "Q4_K", []int64{2}, 1, 2), raw("w", "Q4_K", []int64{2}, 1, 2, 3), &Tensor{Kind: "bytes"}},
		{"an unknown dtype, shorter", raw("w", "Q4_K", []int64{2}, 1, 2, 3), raw("w", "Q4_K", []int64{2}, 1, 2), &Tensor{Kind: "bytes"}},
		{"nothing", f32("w", []int64{0}), f32("w", []int64{0}), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := run(t, checkpoint(t, "", c.a), checkpoint(t, "", c.b), 1)
			if c.want == nil {
				if !r.Equal || r.Same != 1 || len(r.Tensors) != 0 || r.RelError != 0 {
					t.Errorf("not equal: %+v", r)
				}
				return
			}
			if r.Equal || r.Same != 0 || len(r.Tensors) != 1 {
				t.Fatalf("found %+v", r)
			}
			got := r.Tensors[0]
			if math.Abs(r.RelError-c.want.RelError) > 1e-15 {
				t.Errorf("relative error of all is %g, of the only one %g", r.RelError, c.want.RelError)
			}
			c.want.Name, c.want.StorageA, c.want.StorageB, c.want.ShapeA, c.want.ShapeB = "w", c.a.DType, c.b.DType, c.a.Shape, c.b.Shape
			got.diff2, got.norm2, got.equal = 0, 0, false
			near := cmp.Comparer(func(a, b float64) bool { return a == b || math.Abs(a-b) <= 1e-15*math.Abs(b) })
			if diff := cmp.Diff(*c.want, got, near, cmp.AllowUnexported(Tensor{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Sums run over chunks in order: any number of workers gives the same figures, those of
// the definition; the last, short chunk counts.
func TestAnyNumberOfWorkers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var as, bs []formatstest.Tensor
	var diff2, norm2 float64
	var names []string
	cosine := map[string]float64{}
	for i, n := range []int{2*chunk + 1, chunk, 77, chunk - 1, 1} {
		x, y := make([]float32, n), make([]float32, n)
		for k := range x {
			x[k] = float32(r.NormFloat64())
			y[k] = x[k]
		}
		x[n-1] = y[n-1] + float32(i+1)
		d := float64(x[n-1]) - float64(y[n-1])
		diff2 += d * d
		var xx, yy, xy float64
		for k, v := range x {
			xx, yy, xy = xx+float64(v)*float64(v), yy+float64(y[k])*float64(y[k]), xy+float64(v)*float64(y[k])
		}
		norm2 += xx
		name := fmt.Sprintf("t%d", i)
		cosine[name] = xy / math.Sqrt(xx*yy)
		as, bs = append(as, f32(name, []int64{int64(n)}, x...)), append(bs, f32(name, []int64{int64(n)}, y...))
		names = append(names, name)
	}
	as = append(as, f32("only.a", []int64{1}, 1))
	bs = append([]formatstest.Tensor{f32("only.b2", []int64{1}, 1), f32("only.b1", []int64{1}, 1)}, bs...)
	a, b := checkpoint(t, "", as...), checkpoint(t, "", bs...)
	want := run(t, a, b, 0)
	for i := range want.Tensors {
		if want.Tensors[i].Different != 1 {
			t.Errorf("%s: %d values differ, want the last one", want.Tensors[i].Name, want.Tensors[i].Different)
		}
		if got := want.Tensors[i]; math.Abs(got.Cosine-cosine[got.Name]) > 1e-12 {
			t.Errorf("%s: cosine %v, want %v", got.Name, got.Cosine, cosine[got.Name])
		}
		if i > 0 && want.Tensors[i].RelError > want.Tensors[i-1].RelError {
			t.Errorf("%s comes after a smaller error", want.Tensors[i].Name)
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == want.Tensors[i].Name })
	}
	if len(names) > 0 || !slices.Equal(want.OnlyA, []string{"only.a"}) || !slices.Equal(want.OnlyB, []string{"only.b2", "only.b1"}) || want.Equal {
		t.Errorf("not found: %q; only in a %q, in b %q", names, want.OnlyA, want.OnlyB)
	}
	if e := math.Sqrt(diff2 / norm2); math.Abs(want.RelError-e) > 1e-12*e {
		t.Errorf("relative error %g, want %g", want.RelError, e)
	}
	for _, workers := range []int{1, 2, 7} {
		if got := run(t, a, b, workers); !reflect.DeepEqual(got, want) {
			t.Errorf("%d workers: %+v, want %+v", workers, got, want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Checkpoints(ctx, a, b, 2); err == nil {
		t.Error("a cancelled comparison gave a result")
	}
}

// Any run of the transpose, by the definition.
func TestTranspose(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for _, d := range [][2]int64{{1, 1}, {1, 9}, {9, 1}, {2, 3}, {17, 5}, {4, 64}} {
		rows, cols := d[0], d[1]
		v := make([]float32, rows*cols)
		for i := range v {
			v[i] = float32(i)
		}
		set, err := weights.Open(checkpoint(t, "", f32("w", []int64{rows, cols}, v...)))
		if err != nil {
			t.Fatal(err)
		}
		x := transpose(set.Tensors()[0])
		if !slices.Equal(x.Shape(), []int64{cols, rows}) {
			t.Fatalf("shape %v", x.Shape())
		}
		for range 200 {
			first := r.Int64N(rows * cols)
			got := make([]float32, 1+r.Int64N(rows*cols-first))
			if err := x.ReadF32(got, first); err != nil {
				t.Fatal(err)
			}
			for i, g := range got {
				if at := first + int64(i); g != v[at%rows*cols+at/rows] {
					t.Fatalf("%dx%d: [%d, %d) has %v at %d", rows, cols, first, first+int64(len(got)), g, at)
				}
			}
		}
		if err := x.ReadF32(nil, rows*cols); err != nil {
			t.Error(err)
		}
	}
}

// GPT-2 stores matrices [in, out], their 4-bit forms are [out, in]: read the same way
// round, they differ by the error of quantization alone, whichever side is which.
func TestConv1D(t *testing.T) {
	src := fixtures.Synthetic(t, filepath.Join(t.TempDir(), "gpt2"), fixtures.Spec{Arch: "gpt2", Layers: 1})
	a, err := hf.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	plan, err := convert.Quantize(a, convert.DefaultQuantize())
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if _, err := convert.Run(context.Background(), plan, convert.RunOptions{Out: out, NoSync: true}); err != nil {
		t.Fatal(err)
	}
	b, err := hf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, r := range []*Result{run(t, a, b, 2), run(t, b, a, 2)} {
		if len(r.Tensors) != plan.Totals.Quantized || r.Same != len(a.Tensors())-plan.Totals.Quantized {
			t.Errorf("%d tensors differ, %d are the same; %d are quantized", len(r.Tensors), r.Same, plan.Totals.Quantized)
		}
		for _, x := range r.Tensors {
			if x.Kind != "values" || !x.Transpose || x.RelError > 0.12 || x.Cosine < 0.99 {
				t.Errorf("%+v", x)
			}
		}
	}
}
