package safetensors_test

import (
	"bytes"
	"cmp"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
)

// write makes a file of tensors whose bytes are those of data, one after the other.
func write(t *testing.T, ts []safetensors.Tensor, data []byte) string {
	t.Helper()
	header, err := safetensors.EncodeHeader(map[string]string{"format": "pt"}, ts, 0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.safetensors")
	if err := os.WriteFile(path, append(header, data...), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string) *safetensors.File {
	t.Helper()
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// TestReadTensorAt reads every range of every tensor, and none beyond it.
func TestReadTensorAt(t *testing.T) {
	data := []byte("0123456789abcdefghijklmnopqrstuvwxyz")
	ts := []safetensors.Tensor{
		{Name: "a", DType: "U8", Shape: []int64{10}, Begin: 0, End: 10},
		{Name: "none", DType: "F32", Shape: []int64{0, 4}, Begin: 10, End: 10},
		{Name: "b", DType: "BF16", Shape: []int64{13}, Begin: 10, End: 36},
	}
	f := open(t, write(t, ts, data))
	for i := range ts {
		x, ok := f.Tensor(ts[i].Name)
		if !ok {
			t.Fatalf("no tensor %q", ts[i].Name)
		}
		n := x.Bytes()
		for off := int64(-2); off <= n+2; off++ {
			for l := int64(0); l <= n+2; l++ {
				p := bytes.Repeat([]byte{'#'}, int(l))
				err := f.ReadTensorAt(p, x, off)
				switch within := off >= 0 && off+l <= n; {
				case within && err != nil:
					t.Errorf("%q: %d bytes at %d: %v", x.Name, l, off, err)
				case within && string(p) != string(data[x.Begin+off:x.Begin+off+l]):
					t.Errorf("%q: %d bytes at %d: %q", x.Name, l, off, p)
				case !within && err == nil:
					t.Errorf("%q: %d bytes at %d of %d: no error", x.Name, l, off, n)
				case !within && bytes.Trim(p, "#") != nil && len(bytes.Trim(p, "#")) > 0:
					t.Errorf("%q: %d bytes at %d of %d: bytes of another tensor: %q", x.Name, l, off, n, p)
				}
			}
		}
	}
	if _, ok := f.Tensor("c"); ok {
		t.Error("a tensor that is not there was found")
	}
	x, _ := f.Tensor("a")
	if err := f.ReadTensorAt(make([]byte, 1), x, 1<<62); err == nil {
		t.Error("a read far beyond the tensor succeeded")
	}

	var wg sync.WaitGroup // a File may be read from many goroutines
	for k := range 8 {
		wg.Go(func() {
			p := make([]byte, 1)
			for i := range 200 {
				if err := f.ReadTensorAt(p, x, int64((i+k)%10)); err != nil || p[0] != data[(i+k)%10] {
					t.Errorf("byte %d: %q, %v", (i+k)%10, p, err)
				}
			}
		})
	}
	wg.Wait()
}

// A file that is cut short while it is open is the input's fault and says where.
func TestReadTensorAtCutShort(t *testing.T) {
	path := write(t, []safetensors.Tensor{{Name: "some.weight", DType: "U8", Shape: []int64{100}, End: 100}}, make([]byte, 100))
	f := open(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-30); err != nil {
		t.Skipf("an open file cannot be cut short here: %v", err)
	}
	x, _ := f.Tensor("some.weight")
	err = f.ReadTensorAt(make([]byte, 50), x, 50)
	if fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), "some.weight") || !strings.Contains(err.Error(), "20 bytes into a read of 50 at byte 50") {
		t.Errorf("class %v: %v", fault.ClassOf(err), err)
	}
	if err := f.ReadTensorAt(make([]byte, 50), x, 0); err != nil {
		t.Errorf("what is still there: %v", err)
	}
}

func TestOpenClasses(t *testing.T) {
	dir := t.TempDir()
	short := filepath.Join(dir, "short.safetensors")
	if err := os.WriteFile(short, []byte("1234567"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "none.safetensors"), short} {
		if _, err := safetensors.Open(path); fault.ClassOf(err) != fault.Input || !strings.Contains(err.Error(), filepath.Base(path)) {
			t.Errorf("%s: class %v: %v", path, fault.ClassOf(err), err)
		}
	}
}

// view is a View of bytes in memory.
type view struct {
	dtype safetensors.DType
	shape []int64
	data  []byte
	asked *int
}

func (v view) DType() safetensors.DType { return v.dtype }
func (v view) Shape() []int64           { return v.shape }
func (v view) DataLen() int64           { return int64(len(v.data)) }
func (v view) Data() []byte             { *v.asked++; return v.data }

// TestWrite holds both writers, the library's and the own one for dtypes that it does
// not know, to one layout: tensors by falling width. Among dtypes of one width, and for the
// header's keys, the library has an order of its own.
func TestWrite(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for _, unknown := range []bool{false, true} {
		for range 200 {
			ts, _ := random(r)
			views := map[string]safetensors.View{}
			asked := 0
			for i := range ts {
				if !unknown && slices.Contains([]safetensors.DType{"BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "I64", "U64", "F64"}, ts[i].DType) || unknown && dtypes[ts[i].DType] > 0 {
					data := make([]byte, ts[i].Bytes())
					for k := range data {
						data[k] = byte(r.Uint32())
					}
					views[ts[i].Name] = view{ts[i].DType, ts[i].Shape, data, &asked}
				}
			}
			if unknown { // at least one that the library refuses
				views["own"] = view{"F8_E4M3", []int64{3}, []byte{1, 2, 3}, &asked}
			}
			metadata := map[string]string{"format": "pt"}
			if len(views) == 0 {
				continue
			}
			var got bytes.Buffer
			if err := safetensors.Write(&got, metadata, views); err != nil {
				t.Fatal(err)
			}
			if asked != len(views) {
				t.Errorf("data was asked for %d times, of %d tensors", asked, len(views))
			}
			h, err := safetensors.ReadHeader(bytes.NewReader(got.Bytes()), int64(got.Len()))
			if err != nil {
				t.Fatal(err)
			}
			file := encode(t, metadata, views)
			want, err := safetensors.ReadHeader(bytes.NewReader(file), int64(len(file)))
			if err != nil {
				t.Fatal(err)
			}
			byName := cmpopts.SortSlices(func(a, b safetensors.Tensor) bool { return a.Name < b.Name })
			placed := cmpopts.IgnoreFields(safetensors.Tensor{}, "Begin", "End")
			if diff := gocmp.Diff(want, h, byName, placed, cmpopts.IgnoreFields(safetensors.Header{}, "Digest", "DataStart", "FileSize")); diff != "" {
				t.Fatalf("header (-want +got):\n%s", diff)
			}
			if unknown && !bytes.Equal(got.Bytes(), file) {
				t.Fatalf("wrote\n%q\nwant\n%q", got.Bytes(), file)
			}
			for i := range h.Tensors {
				x := &h.Tensors[i]
				if i > 0 && x.Begin > h.Tensors[i-1].Begin && dtypes[x.DType] > dtypes[h.Tensors[i-1].DType] {
					t.Errorf("%q, %s, lies behind a narrower dtype", x.Name, x.DType)
				}
				v := views[x.Name].(view)
				if x.DType != v.dtype || !slices.Equal(x.Shape, v.shape) || !bytes.Equal(v.data, got.Bytes()[h.DataStart+x.Begin:h.DataStart+x.End]) {
					t.Errorf("%q read back as %s %v, or with other data", x.Name, x.DType, x.Shape)
				}
			}
		}
	}
}

func encode(t *testing.T, metadata map[string]string, views map[string]safetensors.View) []byte {
	t.Helper()
	var ts []safetensors.Tensor
	for name, v := range views {
		ts = append(ts, safetensors.Tensor{Name: name, DType: v.DType(), Shape: v.Shape()})
	}
	slices.SortFunc(ts, func(a, b safetensors.Tensor) int {
		return cmp.Or(cmp.Compare(dtypes[b.DType], dtypes[a.DType]), cmp.Compare(a.Name, b.Name))
	})
	var data []byte
	for i := range ts {
		ts[i].Begin = int64(len(data))
		data = append(data, views[ts[i].Name].(view).data...)
		ts[i].End = int64(len(data))
	}
	header, err := safetensors.EncodeHeader(metadata, ts, 0)
	if err != nil {
		t.Fatal(err)
	}
	return append(header, data...)
}

// failing fails after n bytes.
type failing struct{ n int }

var errFull = errors.New("disk full")

func (f *failing) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteReportsErrors(t *testing.T) {
	asked := 0
	for _, d := range []safetensors.DType{"F32", "F8_E4M3"} {
		views := map[string]safetensors.View{"a": view{d, []int64{1}, make([]byte, dtypes[d]/8), &asked}}
		whole := len(encode(t, nil, views))
		for _, room := range []int{0, whole - 1} {
			if err := safetensors.Write(&failing{room}, nil, views); !errors.Is(err, errFull) {
				t.Errorf("%s, room for %d bytes: %v", d, room, err)
			}
		}
	}
}
