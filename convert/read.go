package convert

import (
	"github.com/nf4conv/nf4conv/internal/treehash"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/nf4"
)

// buffers are a worker's memory for reading.
type buffers struct {
	raw    []byte    // a chunk in read format
	strip  []byte    // a strip of rows on its way into raw, transposed
	values []float32 // decoded values
	merge  *mergeBuffers
}

// newBuffers makes what the jobs need besides raw, which the engine provides.
func newBuffers(jobs []*jobRun, chunk int64, raw []byte) *buffers {
	var strip, values int64
	for _, r := range jobs {
		w := &r.work
		n := min(chunk, w.elems)
		if w.decode {
			values = max(values, n)
		}
		if w.transpose && w.merge == nil {
			strip = max(strip, n*int64(w.read.Size()))
		}
	}
	return &buffers{raw: raw, strip: make([]byte, strip), values: make([]float32, values), merge: newMergeBuffers(jobs, chunk)}
}

// scratchSpec is what the largest chunk of the jobs takes.
func scratchSpec(jobs []*jobRun, chunk int64) ScratchSpec {
	var s ScratchSpec
	for _, r := range jobs {
		w := &r.work
		if w.copyBytes {
			s.In = max(s.In, chunk)
			continue
		}
		n := min(chunk, w.elems)
		s.In = max(s.In, n*int64(w.read.Size()))
		if w.cast {
			s.Cast = max(s.Cast, n*int64(w.to.Size()))
		}
		if w.quantize {
			s.Packed = max(s.Packed, nf4.PackedLen(n))
			s.Blocks = max(s.Blocks, nf4.NumBlocks(n, w.blockSize))
			s.JobBlocks = max(s.JobBlocks, nf4.NumBlocks(w.elems, w.blockSize))
		}
	}
	return s
}

// readChunk reads elements [first, first+n) of the job's flattened output in w.read
// format (bytes, for a byte copy).
func (w *work) readChunk(b *buffers, first int64, n int) ([]byte, error) {
	switch {
	case w.copyBytes:
		p := b.raw[:n]
		return p, w.job.Inputs[0].tensor.ReadAt(p, first)
	case w.transpose:
		p := b.raw[:n*w.read.Size()]
		return p, w.readTransposed(p, b, first)
	}
	p := b.raw[:n*w.read.Size()]
	return p, w.readFlat(p, b, first)
}

// readFlat reads elements of the source's own order.
func (w *work) readFlat(dst []byte, b *buffers, first int64) error {
	if !w.decode {
		return w.job.Inputs[0].tensor.ReadAt(dst, first*int64(w.read.Size()))
	}
	v := b.values[:len(dst)/w.read.Size()]
	if err := w.job.logical.ReadF32(v, first); err != nil {
		return err
	}
	cast.FromF32(dst, v, kernels.F32)
	return nil
}

// readTransposed fills dst with output elements from first on. The source has shape
// [rows, cols], the output [cols, rows]: a run of the output is a strip of a few
// columns of the source, read row by row, several rows at a time where the strip spans
// them whole.
func (w *work) readTransposed(dst []byte, b *buffers, first int64) error {
	size := int64(w.read.Size())
	rows, cols := w.job.Shape[1], w.job.Shape[0]
	last := first + int64(len(dst))/size - 1
	c0, width := first/rows, last/rows-first/rows+1
	perRead := int64(1)
	if width == cols {
		perRead = max(1, int64(len(b.strip))/(cols*size))
	}
	if width*size > int64(len(b.strip)) { // a run over two partial columns of very few rows
		b.strip = make([]byte, width*size)
	}
	for r := int64(0); r < rows; r += perRead {
		k := min(perRead, rows-r)
		strip := b.strip[:k*width*size]
		if err := w.readFlat(strip, b, r*cols+c0); err != nil {
			return err
		}
		for i := range k {
			for c := range width {
				at := (c0+c)*rows + r + i
				if at >= first && at <= last {
					copy(dst[(at-first)*size:][:size], strip[(i*width+c)*size:])
				}
			}
		}
	}
	return nil
}

// sequential tells whether chunks arrive in the byte order of the one input, so that
// its digest can be taken on the way.
func (w *work) sequential() bool {
	if w.merge != nil {
		return w.merge.base.sequential()
	}
	return !w.decode && !w.transpose
}

// sourceUnit is the size of an element as it stands in the source.
func (w *work) sourceUnit() int64 {
	switch {
	case w.copyBytes:
		return 1
	case w.merge != nil:
		return int64(w.merge.base.read.Size())
	}
	return int64(w.read.Size())
}

// hashRef takes the digest of an input in a pass of its own.
func hashRef(ref *Ref, buf []byte) (treehash.Digest, error) {
	const piece = 1 << 14
	tree := treehash.New(ref.Bytes, piece)
	buf = buf[:len(buf)/piece*piece]
	if len(buf) == 0 {
		buf = make([]byte, piece)
	}
	for off := int64(0); off < ref.Bytes; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), ref.Bytes-off)]
		if err := ref.tensor.ReadAt(p, off); err != nil {
			return treehash.Digest{}, err
		}
		tree.AddRange(off, p)
	}
	return tree.Sum(), nil
}

// checkBytes refuses NaN and infinities in a byte copy of a floating tensor.
func (w *work) checkBytes(p []byte, first int64) error {
	if !w.check {
		return nil
	}
	if i := cast.FirstNonFinite(p, w.storage); i >= 0 {
		return nonFinite(p, w.storage, i, first/int64(w.storage.Size()))
	}
	return nil
}
