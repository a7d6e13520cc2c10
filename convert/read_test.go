package convert

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nf4conv/nf4conv/formats/formatstest"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/weights"
)

// Chunks of any size, in any order, through buffers that other jobs used and sized, hold
// what the definition says: element [c, r] of the transpose is [r, c] of the source.
func TestReadChunk(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, d := range [][2]int64{{1, 1}, {1, 40}, {40, 1}, {2, 33}, {33, 2}, {16, 16}, {7, 61}, {61, 7}, {64, 48}} {
		rows, cols := d[0], d[1]
		n := rows * cols
		bits := make([]byte, 4*n)
		for i := range n {
			binary.LittleEndian.PutUint32(bits[4*i:], math.Float32bits(float32(i+1)))
		}
		codes, ones := make([]byte, n), []byte{0, 0, 0x80, 0x3f}
		var decoded []byte // codes below 8 are multiples of 2^-9
		for i := range codes {
			codes[i] = byte(i % 8)
			decoded = binary.LittleEndian.AppendUint32(decoded, math.Float32bits(float32(i%8)/512))
		}
		dir := t.TempDir()
		formatstest.Write(t, dir, "", formatstest.Tensor{Name: "f32", DType: "F32", Shape: d[:], Data: bits},
			formatstest.Tensor{Name: "f16", DType: "F16", Shape: d[:], Data: bits[:2*n]}, // any bits: nothing is computed
			formatstest.Tensor{Name: "i16", DType: "I16", Shape: d[:], Data: bits[2*n:]},
			formatstest.Tensor{Name: "fp8", DType: "F8_E4M3", Shape: d[:], Data: codes},
			formatstest.Tensor{Name: "fp8_scale_inv", DType: "F32", Shape: []int64{1, 1}, Data: ones})
		set, err := weights.Open(openSource(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		job := func(name string, steps ...Step) *jobRun {
			x, _ := set.Lookup(name)
			j := newJob(x, "", "", "")
			for _, s := range steps {
				if s.Op == OpTranspose {
					j.Shape[0], j.Shape[1] = j.Shape[1], j.Shape[0]
				}
			}
			j.Steps = steps
			return &jobRun{work: compile(&j)}
		}
		transpose, decode := Step{Op: OpTranspose}, Step{Op: OpDecode}
		cases := []struct {
			name string
			job  *jobRun
			want []byte
			size int
		}{
			{"copy", job("i16", Step{Op: OpCopy}), bits[2*n:], 1},
			{"f16", job("f16", Step{Op: OpCast, To: "bfloat16"}), bits[:2*n], 2},
			{"f32 transposed", job("f32", transpose), transposed(bits, rows, cols, 4), 4},
			{"f16 transposed", job("f16", transpose, Step{Op: OpCast, To: kernels.BF16.String()}), transposed(bits[:2*n], rows, cols, 2), 2},
			{"fp8", job("fp8", decode), decoded, 4},
			{"fp8 transposed", job("fp8", decode, transpose), transposed(decoded, rows, cols, 4), 4},
		}
		var jobs []*jobRun
		for _, c := range cases {
			jobs = append(jobs, c.job)
		}
		for _, chunk := range []int64{1, 2, 3, 5, 16, 50, 1 << 12} {
			b := newBuffers(jobs, chunk, make([]byte, scratchSpec(jobs, chunk).In))
			for range 60 {
				c := cases[r.IntN(len(cases))]
				elems := int64(len(c.want) / c.size)
				if c.job.work.elems != elems {
					t.Fatalf("%s: %d elements, want %d", c.name, c.job.work.elems, elems)
				}
				first := r.Int64N((elems+chunk-1)/chunk) * chunk
				k := min(chunk, elems-first)
				got, err := c.job.work.readChunk(b, first, int(k))
				if err != nil {
					t.Fatal(err)
				}
				if want := c.want[first*int64(c.size):][:k*int64(c.size)]; !bytes.Equal(got, want) {
					t.Fatalf("%s of %dx%d, chunk [%d, %d):\n% x, want\n% x", c.name, rows, cols, first, first+k, got, want)
				}
			}
		}
		for _, c := range cases {
			if got, want := c.job.work.sequential(), c.name == "copy" || c.name == "f16"; got != want {
				t.Errorf("%s: sequential %v", c.name, got)
			}
		}
	}
}

// transposed is the definition.
func transposed(b []byte, rows, cols int64, size int) []byte {
	var out []byte
	for c := range cols {
		for r := range rows {
			out = append(out, b[(r*cols+c)*int64(size):][:size]...)
		}
	}
	return out
}

// The digest of an input is that of its bytes, whatever buffer it is read through.
func TestHashRef(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int64{0, 1, 1023, 1024, 1 << 14, 1<<14 + 1, 3<<14 - 5, 100_000} {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		dir := t.TempDir()
		formatstest.Write(t, dir, "", formatstest.Tensor{Name: "before", DType: "U8", Shape: []int64{3}, Data: []byte("xyz")},
			formatstest.Tensor{Name: "w", DType: "U8", Shape: []int64{n}, Data: data})
		set, err := weights.Open(openSource(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		x, _ := set.Lookup("w")
		j := newJob(x, "", "", "")
		want := treehash.Sum(data)
		for _, buf := range []int{0, 1, 1 << 14, 1<<14 + 1, 1 << 15, 1 << 18} {
			got, err := hashRef(&j.Inputs[0], make([]byte, buf))
			if err != nil || got != want {
				t.Errorf("%d bytes by %d: %v, %v; want %v", n, buf, got, err, want)
			}
		}
	}
}
