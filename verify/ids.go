package verify

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/model"
)

// IDs are the token ids that models are run on.
type IDs struct {
	Sequences []model.Sequence
	Tokens    int
	BLAKE3    string // of the ids as int64, after the number and the lengths of sequences
	Name      string // of the text or the file, for reports
	Context   int    // tokens that a sequence was meant to have; 0: the file said
}

// maxIDs bounds what is read of a file of ids: 2^26 tokens.
const maxIDs = 1 << 26

// ReadIDs reads a safetensors file with the tensor input_ids [sequences, tokens], int64 or
// int32, and optionally attention_mask of the same form (1: a token, 0: padding, on one side).
// limit is how many sequences are taken from the start; 0: all. Errors are of class
// fault.Input.
func ReadIDs(path string, limit int) (ids *IDs, err error) {
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	v, rows, cols, err := readInts(f, "input_ids", limit)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", path, err)
	}
	mask := make([]int64, len(v))
	for i := range mask {
		mask[i] = 1
	}
	if _, ok := f.Tensor("attention_mask"); ok {
		m, r, c, err := readInts(f, "attention_mask", limit)
		if err != nil {
			return nil, fmt.Errorf("reading %q: %w", path, err)
		}
		if r != rows || c != cols {
			return nil, fault.Inputf("reading %q: attention_mask has shape [%d, %d]; expected that of input_ids, [%d, %d]", path, r, c, rows, cols)
		}
		mask = m
	}
	for i, id := range v {
		if id < 0 || id > math.MaxInt32 {
			return nil, fault.Inputf("reading %q: input_ids[%d, %d] is %d; expected a token id", path, i/cols, i%cols, id)
		}
	}
	seqs, err := model.Padded(v, mask, rows, cols)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", path, err)
	}
	if ids, err = NewIDs(seqs); err != nil {
		return nil, err
	}
	ids.Name = path
	return ids, nil
}

// NewIDs takes sequences that have been made elsewhere. Errors are of class fault.Input.
func NewIDs(sequences []model.Sequence) (*IDs, error) {
	out := &IDs{Sequences: sequences}
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(sequences)))
	for i, s := range sequences {
		if len(s.IDs) == 0 {
			return nil, fault.Inputf("token ids: sequence %d is empty", i)
		}
		out.Tokens += len(s.IDs)
		for _, n := range []int{len(s.IDs), s.Start, s.Width} {
			b = binary.LittleEndian.AppendUint64(b, uint64(n))
		}
	}
	if out.Tokens == 0 {
		return nil, fault.Inputf("token ids: there are none")
	}
	for _, s := range sequences {
		for _, id := range s.IDs {
			b = binary.LittleEndian.AppendUint64(b, uint64(id))
		}
	}
	out.BLAKE3 = treehash.Sum(b).String()
	return out, nil
}

// readInts reads the first rows of a matrix of integers.
func readInts(f *safetensors.File, name string, limit int) (v []int64, rows, cols int, err error) {
	t, ok := f.Tensor(name)
	if !ok {
		return nil, 0, 0, fault.Inputf("there is no tensor %q [sequences, tokens]", name)
	}
	size := map[safetensors.DType]int{"I64": 8, "I32": 4}[t.DType]
	if size == 0 || len(t.Shape) != 2 || t.Shape[0] < 1 || t.Shape[1] < 1 {
		return nil, 0, 0, fault.Inputf("tensor %q is %s %v; expected I64 or I32 [sequences, tokens]", name, t.DType, t.Shape)
	}
	n := t.Shape[0]
	if limit > 0 {
		n = min(n, int64(limit))
	}
	if t.Shape[1] > maxIDs/n {
		return nil, 0, 0, fault.Inputf("tensor %q has shape %v; expected at most %d tokens", name, t.Shape, maxIDs)
	}
	rows, cols = int(n), int(t.Shape[1])
	b := make([]byte, rows*cols*size)
	if err := f.ReadTensorAt(b, t, 0); err != nil {
		return nil, 0, 0, err
	}
	v = make([]int64, rows*cols)
	for i := range v {
		if size == 8 {
			v[i] = int64(binary.LittleEndian.Uint64(b[8*i:]))
		} else {
			v[i] = int64(int32(binary.LittleEndian.Uint32(b[4*i:])))
		}
	}
	return v, rows, cols, nil
}
