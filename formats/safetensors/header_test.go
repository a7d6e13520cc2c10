package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	nlp "github.com/nlpodyssey/safetensors"

	"github.com/nf4conv/nf4conv/fixtures"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// dtypes with the bits of an element; those with 0 are unknown to the package and have
// as many bytes as their offsets say.
var dtypes = map[safetensors.DType]int{
	"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
	"F2": 0, "Q4_K": 0, `odd "dtype"`: 0,
}

func TestBits(t *testing.T) {
	for d, want := range dtypes {
		if bits, known := d.Bits(); bits != want || known != (want > 0) {
			t.Errorf("%s: %d bits, known %v; want %d", d, bits, known, want)
		}
	}
}

// names that JSON has to escape, or that Go's encoder escapes though JSON need not.
var names = []string{"lm_head.weight", "model.layers.0.mlp.up_proj.weight", `quo"te`, `back\slash`, "new\nline", "<&>", "größe", "\u2028", "🦙", "", " ", "__metadata"}

// random makes a valid list of tensors and the size of their data.
func random(r *rand.Rand) (ts []safetensors.Tensor, size int64) {
	all := make([]safetensors.DType, 0, len(dtypes))
	for d := range dtypes {
		all = append(all, d)
	}
	// Map order is random without a seed, which would make failures hard to repeat.
	for i := range all {
		for k := i + 1; k < len(all); k++ {
			if all[k] < all[i] {
				all[i], all[k] = all[k], all[i]
			}
		}
	}
	for i := range r.IntN(len(names) + 1) {
		t := safetensors.Tensor{Name: names[i], DType: all[r.IntN(len(all))], Shape: []int64{}, Begin: size}
		for range r.IntN(5) { // no dimension: a scalar
			t.Shape = append(t.Shape, []int64{0, 1, 2, 3, 5, 8}[r.IntN(6)])
		}
		bits := dtypes[t.DType]
		for bits > 0 && t.Elems()*int64(bits)%8 != 0 { // whole bytes
			t.Shape = append(t.Shape, 2)
		}
		n := t.Elems() * int64(bits) / 8
		if bits == 0 {
			n = int64(r.IntN(40))
		}
		size += n
		t.End = size
		ts = append(ts, t)
	}
	return ts, size
}

func randomMetadata(r *rand.Rand) map[string]string {
	switch r.IntN(4) {
	case 0:
		return nil
	case 1:
		return map[string]string{}
	}
	m := map[string]string{"format": "pt"}
	for range r.IntN(4) {
		m[names[r.IntN(len(names))]] = names[r.IntN(len(names))]
	}
	return m
}

// parse reads a header with size bytes of data behind it.
func parse(header []byte, size int64) (*safetensors.Header, error) {
	return safetensors.ReadHeader(bytes.NewReader(header), int64(len(header))+size)
}

// TestHeaderRoundTrip encodes random headers and wants them back as they were, with the
// digest of exactly the JSON.
func TestHeaderRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 3000 {
		ts, size := random(r)
		metadata := randomMetadata(r)
		pad := int64(0)
		b, err := safetensors.EncodeHeader(metadata, ts, 0)
		if err == nil && i%2 == 1 { // more room than it needs
			pad = int64(len(b)) + 8*int64(r.IntN(50))
			b, err = safetensors.EncodeHeader(metadata, ts, pad)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(b)%8 != 0 || pad != 0 && int64(len(b)) != pad || binary.LittleEndian.Uint64(b) != uint64(len(b)-8) {
			t.Fatalf("%d bytes, length given as %d, padding asked for %d", len(b), binary.LittleEndian.Uint64(b), pad)
		}
		h, err := parse(b, size)
		if err != nil {
			t.Fatalf("%s: %v", b[8:], err)
		}
		if len(ts) == 0 {
			ts = nil
		}
		if !reflect.DeepEqual(h.Tensors, ts) || !maps.Equal(h.Metadata, metadata) || (h.Metadata == nil) != (metadata == nil) {
			t.Fatalf("%s parses as\n%+v %q, was\n%+v %q", b[8:], h.Tensors, h.Metadata, ts, metadata)
		}
		if h.DataStart != int64(len(b)) || h.FileSize != int64(len(b))+size || h.Digest != treehash.Sum(b[8:]) {
			t.Fatalf("data at %d of %d, digest %v", h.DataStart, h.FileSize, h.Digest)
		}
	}
}

// The order of the JSON does not matter, that of the data does.
func TestHeaderOrder(t *testing.T) {
	const text = `{"b":{"shape":[4],"data_offsets":[2,6],"dtype":"U8"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"z":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}}`
	h, err := parse(append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), 6)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, x := range h.Tensors {
		got += x.Name
	}
	if got != "azb" {
		t.Errorf("order %q, want azb: by offset, the empty one first", got)
	}
}

func TestEncodeHeaderRefuses(t *testing.T) {
	ts := []safetensors.Tensor{{Name: "a", DType: "U8", Shape: []int64{1}, End: 1}}
	b, err := safetensors.EncodeHeader(nil, ts, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, pad := range []int64{int64(len(b)) - 8, int64(len(b)) + 4, -8, safetensors.MaxHeader + 16} {
		if _, err := safetensors.EncodeHeader(nil, ts, pad); err == nil {
			t.Errorf("padding to %d bytes succeeded, %d are needed", pad, len(b))
		}
	}
}

// secondOpinion reads a file with the other library and compares every tensor.
func secondOpinion(t *testing.T, raw []byte, h *safetensors.Header) {
	t.Helper()
	other, err := nlp.Deserialize(raw)
	if err != nil {
		t.Fatalf("the other library: %v", err)
	}
	if other.Len() != len(h.Tensors) {
		t.Errorf("%d tensors, the other library finds %d", len(h.Tensors), other.Len())
	}
	for i := range h.Tensors {
		x := &h.Tensors[i]
		o, ok := other.Tensor(x.Name)
		if !ok {
			t.Errorf("the other library finds no %q", x.Name)
			continue
		}
		if o.DType().String() != string(x.DType) || fmt.Sprint(o.Shape()) != fmt.Sprint(x.Shape) ||
			!bytes.Equal(o.Data(), raw[h.DataStart+x.Begin:h.DataStart+x.End]) {
			t.Errorf("%q: %s %v, the other library: %v %v, or other bytes", x.Name, x.DType, x.Shape, o.DType(), o.Shape())
		}
	}
}

func TestSecondOpinion(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	n := 0
	for range 4000 {
		ts, size := random(r)
		known := true
		for i := range ts {
			if _, err := nlp.ParseDType(string(ts[i].DType)); err != nil {
				known = false
			}
		}
		if !known {
			continue
		}
		n++
		raw, err := safetensors.EncodeHeader(randomMetadata(r), ts, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range size {
			raw = append(raw, byte(r.Uint32()))
		}
		h, err := parse(raw, 0)
		if err != nil {
			t.Fatal(err)
		}
		secondOpinion(t, raw, h)
	}
	if n < 300 {
		t.Errorf("%d files were compared, want 300", n)
	}
}

// TestFixtures reads every safetensors file of the fixtures, whatever it is for.
func TestFixtures(t *testing.T) {
	n := 0
	err := filepath.WalkDir(fixtures.Dir(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".safetensors" {
			return err
		}
		n++
		f, err := safetensors.Open(path)
		if err != nil {
			t.Error(err)
			return nil
		}
		defer f.Close()
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Size() > 64<<20 {
			return nil // the other library wants it in memory
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		secondOpinion(t, raw, f.Header())
		return nil
	})
	if err != nil || n < 10 {
		t.Errorf("%d files, %v", n, err)
	}
}

// allocated is what fn allocates, and a little of what others do meanwhile.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestHeaderMemory: a length that the file only claims costs nothing.
func TestHeaderMemory(t *testing.T) {
	for _, c := range []struct {
		n    uint64 // claimed by the file
		size int64  // of the file
		want string
	}{
		{99_000_000, 16, "truncated"},
		{99_000_000, 1 << 40, "more than nf4conv reads"},
		{safetensors.MaxHeader + 1, 1 << 40, "the format allows"},
		{1 << 63, 1 << 40, "the format allows"},
		{^uint64(0), 1 << 40, "the format allows"},
		{9, 16, "truncated"},
	} {
		head := append(binary.LittleEndian.AppendUint64(nil, c.n), "{}      "...)
		var err error
		bytes := allocated(func() { _, err = safetensors.ReadHeader(bytes.NewReader(head), c.size) })
		if err == nil || fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), c.want) {
			t.Errorf("length %d in %d bytes: %v, want %q", c.n, c.size, err, c.want)
		}
		if bytes > 1<<20 {
			t.Errorf("length %d in %d bytes: %d bytes were allocated", c.n, c.size, bytes)
		}
	}
}

// FuzzReadHeader: no input panics or takes memory out of proportion, and what parses is
// written again as something that parses the same.
func FuzzReadHeader(f *testing.F) {
	r := rand.New(rand.NewPCG(9, 9))
	for range 10 {
		ts, size := random(r)
		b, err := safetensors.EncodeHeader(randomMetadata(r), ts, 0)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, make([]byte, size)...))
	}
	for _, text := range []string{`{}`, `{"__metadata__":{"format":"pt"}}  `, `{"\ud800":{"dtype":"?","shape":[],"data_offsets":[0,0]}}`, `{"a":{"dtype":"F4","shape":[0,3],"data_offsets":[0,0]}}`, `{"a":[[[[[[`} {
		f.Add(append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var h *safetensors.Header
		var err error
		// A tensor of ten bytes of JSON takes some hundred; the rest is for the runtime.
		if used, most := allocated(func() { h, err = parse(raw, 0) }), uint64(4<<20+200*len(raw)); used > most {
			t.Errorf("%d bytes were allocated for an input of %d", used, len(raw))
		}
		if err != nil {
			if fault.ClassOf(err) != fault.Input {
				t.Errorf("class %v: %v", fault.ClassOf(err), err)
			}
			return
		}
		again, err := safetensors.EncodeHeader(h.Metadata, h.Tensors, 0)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parse(again, h.FileSize-h.DataStart)
		if err != nil {
			t.Fatalf("%q, written again as %q, does not parse: %v", raw, again, err)
		}
		if !reflect.DeepEqual(back.Tensors, h.Tensors) || !reflect.DeepEqual(back.Metadata, h.Metadata) {
			t.Errorf("%q parses as\n%+v %q, written again as\n%+v %q", raw, h.Tensors, h.Metadata, back.Tensors, back.Metadata)
		}
	})
}
