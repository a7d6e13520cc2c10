package convert

import (
	"slices"
	"sync"

	"github.com/nf4conv/nf4conv/formats/peft"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
	"github.com/nf4conv/nf4conv/lora"
)

// mergeWork is the additions of a job in the form the runner uses.
type mergeWork struct {
	base work          // how the weight is read that is added to, in the order of the job
	pre  *Step         // rounding of that weight before anything is added
	add  *Step         // nil without factors
	rows *Step         // nil without rows
	to   kernels.Float // dtype of the sum
}

// startMerge turns what was read of the steps so far into the reading of the weight.
func (w *work) startMerge() {
	if w.merge != nil {
		return
	}
	w.merge = &mergeWork{base: *w}
	if w.cast {
		w.merge.base.cast = false
		w.merge.pre = &Step{Op: OpCast, To: w.to.String()}
	}
	w.decode, w.cast, w.read = false, false, kernels.F32
}

// merging is a job's additions while it is in flight.
type merging struct {
	work   *mergeWork
	once   sync.Once
	failed error
	lora   lora.Merge
	rows   map[int64][]float32
	width  int64
	sample *mergeSample
}

func newMerging(w *work) *merging {
	if w.merge == nil {
		return nil
	}
	return &merging{work: w.merge, sample: newMergeSample(w)}
}

// mergeBuffers are a worker's memory for additions.
type mergeBuffers struct {
	base          buffers
	sum, old, add []float32
}

func newMergeBuffers(jobs []*jobRun, chunk int64) *mergeBuffers {
	var stored, strip, values, sum int64
	for _, r := range jobs {
		m := r.work.merge
		if m == nil {
			continue
		}
		n := min(chunk, r.work.elems)
		size := n * int64(m.base.read.Size())
		stored, sum = max(stored, size), max(sum, n)
		if m.base.decode {
			values = max(values, n)
		}
		if m.base.transpose {
			strip = max(strip, size)
		}
	}
	return &mergeBuffers{
		base: buffers{raw: make([]byte, stored), strip: make([]byte, strip), values: make([]float32, values)},
		sum:  make([]float32, sum), old: make([]float32, sum), add: make([]float32, sum),
	}
}

// mergeScratch is what mergeBuffers hold per element of a chunk.
func (w *work) mergeScratch() int64 {
	if w.merge == nil {
		return 0
	}
	b := w.merge.base
	return b.scratchPerElem() + 3*4
}

// mergeBytes is what the job's factors take while it is in flight.
func (w *work) mergeBytes() int64 {
	if w.merge == nil {
		return 0
	}
	n := int64(mergeSampleBytes)
	if w.merge.add != nil {
		for _, t := range w.merge.add.Terms {
			// As stored, as float32, and turned round.
			n += w.job.Inputs[t.A].Bytes + w.job.Inputs[t.B].Bytes
			n += 8 * (w.job.Inputs[t.A].elems() + w.job.Inputs[t.B].elems())
			if t.Magnitude > 0 {
				n += 20 * w.job.Inputs[t.Magnitude].elems()
			}
		}
	}
	if w.merge.rows != nil {
		n += 12 * w.job.Inputs[w.merge.rows.Input].elems()
	}
	return n
}

func (r *Ref) elems() int64 {
	n := int64(1)
	for _, d := range r.Shape {
		n *= d
	}
	return n
}

// chunk reads elements [first, first+n) of the weight, adds, and encodes the sum for the
// engine. source is the bytes as they stand in the file, where they are read in order.
func (m *merging) chunk(w *work, b *buffers, first int64, n int) (in, source []byte, err error) {
	if m.once.Do(func() { m.failed = m.prepare(w) }); m.failed != nil {
		return nil, nil, m.failed
	}
	mb := b.merge
	v, old, add := mb.sum[:n], mb.old[:n], mb.add[:n]
	source, err = m.work.read(&mb.base, v, first)
	if err != nil {
		return nil, nil, err
	}
	copy(old, v)
	m.lora.Apply(v, add, first)
	if m.rows != nil {
		m.setRows(v, old, add, first)
	}
	in = b.raw[:4*n]
	cast.FromF32(in, v, kernels.F32)
	return in, source, nil
}

// read fills v with the weight from flat index first of the job's order on.
func (m *mergeWork) read(b *buffers, v []float32, first int64) ([]byte, error) {
	p, err := m.base.readChunk(b, first, len(v))
	if err != nil {
		return nil, err
	}
	cast.ToF32(v, p, m.base.read)
	if m.pre != nil {
		f, _ := parseFloat(m.pre.To)
		roundTo(v, f)
	}
	return p, nil
}

// roundTo rounds in place.
func roundTo(v []float32, f kernels.Float) {
	if f == kernels.F32 {
		return
	}
	var buf [1024]byte
	for len(v) > 0 {
		n := min(len(v), len(buf)/2)
		cast.FromF32(buf[:2*n], v[:n], f)
		cast.ToF32(v[:n], buf[:2*n], f)
		v = v[n:]
	}
}

func (m *merging) setRows(v, old, add []float32, first int64) {
	for at := int64(0); at < int64(len(v)); {
		row, col := (first+at)/m.width, (first+at)%m.width
		n := min(int64(len(v))-at, m.width-col)
		if values, ok := m.rows[row]; ok {
			copy(v[at:at+n], values[col:])
			for k := at; k < at+n; k++ {
				add[k] = v[k] - old[k]
			}
		}
		at += n
	}
}

// prepare reads the factors. It is done once, by the first worker that needs them.
func (m *merging) prepare(w *work) error {
	j := w.job
	if s := m.work.rows; s != nil {
		x, err := peft.ReadAll(&j.Inputs[s.Input].tensor)
		if err != nil {
			return err
		}
		m.width = j.Shape[len(j.Shape)-1]
		m.rows = map[int64][]float32{}
		for i, row := range s.Rows {
			m.rows[row] = x[int64(i)*m.width:][:m.width]
		}
	}
	s := m.work.add
	if s == nil {
		return nil
	}
	m.lora.Safe = s.Rounding == RoundPEFTSafe
	m.lora.Round = func(v []float32) { roundTo(v, m.work.to) }
	for i := range s.Terms {
		t, err := loadTerm(j, &s.Terms[i])
		if err != nil {
			return err
		}
		m.lora.Terms = append(m.lora.Terms, t)
	}
	if t := &s.Terms[0]; t.Magnitude > 0 {
		return m.norms(w, t)
	}
	return nil
}

// norms makes the factors of DoRA in a pass of its own over the weight.
func (m *merging) norms(w *work, t *Term) error {
	magnitude, err := peft.ReadAll(&w.job.Inputs[t.Magnitude].tensor)
	if err != nil {
		return err
	}
	_, cols := matrix(w.job.Shape)
	m.lora.Scaling = lora.NewScaling(magnitude, cols, t.Layout == layoutTransposed)
	const n = 1 << 14
	size := n * int64(m.work.base.read.Size())
	b := &buffers{raw: make([]byte, size), strip: make([]byte, size), values: make([]float32, n)}
	bad, err := m.lora.Norms(w.elems, func(v []float32, first int64) error {
		_, err := m.work.read(b, v, first)
		return err
	})
	if err == nil && bad >= 0 {
		err = fault.Inputf("tensor %q: DoRA: the norm of output %d of the weight is 0 or not finite", w.job.Name, bad)
	}
	return err
}

// matrix is a shape as that of a matrix.
func matrix(shape []int64) (rows, cols int64) {
	if len(shape) == 0 {
		return 1, 1
	}
	cols = 1
	for _, d := range shape[1:] {
		cols *= d
	}
	return shape[0], cols
}

// loadTerm reads a term's factors and lays them out.
func loadTerm(j *Job, t *Term) (lora.Term, error) {
	in := func(k int) (*Ref, []float32, error) {
		x, err := peft.ReadAll(&j.Inputs[k].tensor)
		return &j.Inputs[k], x, err
	}
	rb, b, err := in(t.B)
	if err != nil {
		return nil, err
	}
	scale, rank := float32(t.Scale), int(t.Rank)
	if t.Layout == layoutBias {
		return lora.Term{lora.NewProduct(1, len(b), 1, []float32{1}, b, scale)}, nil
	}
	if t.Layout == layoutExperts {
		return loadExperts(j, t, b)
	}
	ra, a, err := in(t.A)
	if err != nil {
		return nil, err
	}
	out, _ := matrix(rb.Shape)
	_, cols := matrix(ra.Shape)
	if t.Layout == layoutTransposed {
		return lora.Term{lora.NewProduct(int(cols), int(out), rank, lora.Transpose(a, rank, int(cols)), lora.Transpose(b, int(out), rank), scale)}, nil
	}
	return lora.Term{lora.NewProduct(int(out), int(cols), rank, b, a, scale)}, nil
}

// loadExperts takes one expert's factors, or those of all, out of a stack's.
func loadExperts(j *Job, t *Term, b []float32) (lora.Term, error) {
	ra := &j.Inputs[t.A]
	rank, x, y := int(t.Rank), int(ra.Shape[1]), int(j.Inputs[t.B].Shape[0])
	first, last := int(t.Expert), int(t.Expert)
	if t.Expert < 0 {
		first, last = 0, int(t.Experts)-1
	}
	var out lora.Term
	for e := first; e <= last; e++ {
		ae, err := peft.ReadFloats(&ra.tensor, int64(e*rank*x), rank*x)
		if err != nil {
			return nil, err
		}
		be := lora.ExpertColumns(b, int(t.Experts), rank, y, e)
		l, r, rows, cols := be, ae, y, x
		if t.Swapped {
			l, r, rows, cols = lora.Transpose(ae, rank, x), lora.Transpose(be, y, rank), x, y
		}
		if t.Expert >= 0 {
			rows = int(j.Shape[0])
			l = slices.Clone(l[int(t.FirstRow)*rank:][:rows*rank])
		}
		out = append(out, lora.NewProduct(rows, cols, rank, l, r, float32(t.Scale)))
	}
	return out, nil
}

// weightFiles are all files whose tensors are read.
func (p *Plan) weightFiles() []*safetensors.File {
	files := p.src.Files()
	if o, ok := p.Options.(MergeOptions); ok {
		for i := range o.Adapters {
			files = append(slices.Clip(files), o.Adapters[i].Adapter.File())
		}
	}
	return files
}

// sourcePaths are the checkpoint and the adapters, none of which may be written to.
func (p *Plan) sourcePaths() []string {
	paths := []string{p.src.Path()}
	if o, ok := p.Options.(MergeOptions); ok {
		for i := range o.Adapters {
			paths = append(paths, o.Adapters[i].Adapter.Path())
		}
	}
	return paths
}
