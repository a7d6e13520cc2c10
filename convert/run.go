package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// RunOptions say how a plan is run; the weights written do not depend on them.
type RunOptions struct {
	Out       string
	Overwrite bool   // replace what stands at Out, at the end and in one step
	Restart   bool   // throw away what an interrupted run left
	SHA256    bool   // add a SHA-256 per file to the manifest, and SHA256SUMS
	Card      bool   // add a model card section to README.md
	NoSync    bool   // do not wait for the disk; for measurements
	Tool      Tool   // recorded in the manifest
	Engine    Engine // nil: CPU
	Progress  *Progress
	Log       *slog.Logger // nil: silent

	wrapWrites func(io.WriterAt) io.WriterAt // tests put faults here
}

// Progress is updated while a plan runs and may be read at any time.
type Progress struct {
	Bytes   atomic.Int64 // of source tensors, done or found done
	Tensors atomic.Int64 // jobs done
	Stage   atomic.Pointer[string]
}

func (p *Progress) stage(s string) { p.Stage.Store(&s) }

// Result is what a run did.
type Result struct {
	Out       string        `json:"out"`
	Manifest  string        `json:"manifest"`
	Engine    string        `json:"engine"`
	Files     []string      `json:"files"`
	BytesIn   int64         `json:"bytes_in"`
	BytesOut  int64         `json:"bytes_out"` // files of weights, headers included
	Bits      float64       `json:"bits_per_weight"`
	Resumed   int           `json:"resumed_tensors"` // found done in an interrupted run
	Already   bool          `json:"already_complete"`
	Duration  time.Duration `json:"duration_ns"`
	Converted time.Duration `json:"converted_ns"` // to the last write of a weight, before syncing
	Worst     []TensorError `json:"worst"`        // quantized weights, largest relative error first
	MeanError float64       `json:"mean_rel_error"`
	Merge     *MergeResult  `json:"merge,omitempty"` // of adapters
}

// TensorError is the error of one quantized weight over a sample of its blocks.
type TensorError struct {
	Tensor   string  `json:"tensor"`
	RelError float64 `json:"rel_error"`
}

// jobRun is a job on its way.
type jobRun struct {
	index     int
	work      work
	transform Transform
	merging   *merging     // nil unless adapters are added
	left      atomic.Int64 // chunks to go
	source    *treehash.Tree
	outputs   []*treehash.Tree // aligned with the placements
	memory    int64
}

// chunk is a run of elements (bytes, for a byte copy) of one job.
type chunk struct {
	job   *jobRun
	first int64
	n     int
}

// sink takes the bytes of a placement, in pieces and in any order, from several workers.
type sink interface {
	write(at *Placement, offset int64, p []byte) error
}

type runner struct {
	plan    *Plan
	opts    RunOptions
	engine  Engine
	out     *output
	sink    sink     // takes the bytes of outputs: out, or what compares them
	journal *journal // nil where nothing is written
	records []Record // aligned with jobs; Name is empty until a job is done
	memory  *semaphore.Weighted
	log     *slog.Logger
	digests sync.Map // file and name -> func() (treehash.Digest, error), for inputs of several jobs
}

// Run carries out a plan made by this process. It returns an error of class
// fault.Input for weights that cannot be converted, fault.IO for what a retry may
// mend, fault.Interrupted when ctx was cancelled; finished tensors are kept, and the same
// plan continues where it stopped. After an error of class fault.Input nothing is kept.
func Run(ctx context.Context, p *Plan, o RunOptions) (*Result, error) {
	start := time.Now()
	if o.Progress == nil {
		o.Progress = &Progress{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Engine == nil {
		o.Engine = CPU{}
	}
	if err := CheckName(o.Out); err != nil {
		return nil, err
	}
	r := &runner{plan: p, opts: o, engine: o.Engine, log: o.Log, records: make([]Record, len(p.Jobs))}
	ps := makePaths(o.Out, singleFile(p))
	r.out = &output{paths: ps, plan: p, wrap: o.wrapWrites}
	r.sink = r.out
	already, err := r.prepare()
	if err != nil {
		return nil, err
	}
	if already {
		return &Result{Out: ps.out, Manifest: ps.manifestPath(), Files: []string{}, Worst: []TensorError{}, Already: true, Duration: time.Since(start)}, nil
	}
	res, err := r.run(ctx)
	if err != nil {
		err = errors.Join(err, r.out.close())
		if fault.ClassOf(err) == fault.Input {
			// The same plan can only fail again, and a source that was mended is another one.
			return nil, errors.Join(err, removeAll(ps.partial), r.journal.remove())
		}
		return nil, errors.Join(err, r.journal.close())
	}
	res.Duration = time.Since(start)
	return res, nil
}

// singleFile is the name of the one output file when the plan asks for a file
// instead of a directory.
func singleFile(p *Plan) string {
	switch o := p.Options.(type) {
	case QuantizeOptions:
		return o.FileName
	case DequantizeOptions:
		return o.FileName
	case MergeOptions:
		return o.FileName
	}
	return ""
}

func (r *runner) run(ctx context.Context) (*Result, error) {
	start := time.Now()
	resumed, err := r.resume(ctx)
	if err != nil {
		return nil, err
	}
	r.opts.Progress.stage("converting")
	if err := r.convert(ctx); err != nil {
		return nil, err
	}
	res := &Result{Worst: []TensorError{}, Resumed: resumed, Engine: r.engine.Name(), Converted: time.Since(start)}
	r.opts.Progress.stage("finishing")
	if err := r.finish(ctx, res); err != nil {
		return nil, err
	}
	return res, nil
}

// convert runs every job that is not done yet.
func (r *runner) convert(ctx context.Context) error {
	var todo []*jobRun
	for i := range r.plan.Jobs {
		if r.records[i].Name == "" {
			j := &jobRun{index: i, work: compile(&r.plan.Jobs[i])}
			j.memory = j.work.jobBytes()
			todo = append(todo, j)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	r.memory = semaphore.NewWeighted(max(r.plan.Schedule.JobMemory, 1))
	g, ctx := errgroup.WithContext(ctx)
	chunks := make(chan chunk)
	g.Go(func() error {
		defer close(chunks)
		return r.dispatch(ctx, todo, chunks)
	})
	need := scratchSpec(todo, r.plan.Schedule.ChunkElems)
	for _, device := range r.plan.Schedule.places() {
		g.Go(func() error { return r.work(ctx, device, need, todo, chunks) })
	}
	return g.Wait()
}

// work is one worker: it takes chunks until there are no more.
func (r *runner) work(ctx context.Context, device int, need ScratchSpec, todo []*jobRun, chunks <-chan chunk) (err error) {
	s, err := r.engine.NewScratch(device, need)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	b := newBuffers(todo, r.plan.Schedule.ChunkElems, s.Input())
	for c := range chunks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.process(b, s, c); err != nil {
			return err
		}
	}
	return nil
}

// dispatch opens jobs in order and hands out their chunks.
func (r *runner) dispatch(ctx context.Context, todo []*jobRun, chunks chan<- chunk) error {
	for _, j := range todo {
		if err := r.memory.Acquire(ctx, j.memory); err != nil {
			return err
		}
		if err := r.begin(j); err != nil {
			return err
		}
		step := r.plan.Schedule.ChunkElems
		for first := int64(0); first == 0 || first < j.work.elems; first += step {
			select {
			case chunks <- chunk{job: j, first: first, n: int(min(step, j.work.elems-first))}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// begin opens a job on the engine and prepares its digests.
func (r *runner) begin(j *jobRun) error {
	w := &j.work
	step := r.plan.Schedule.ChunkElems
	j.left.Store(max(1, (w.elems+step-1)/step))
	unit := w.sourceUnit()
	j.merging = newMerging(w)
	if !w.copyBytes {
		t, err := r.engine.Begin(w.spec())
		if err != nil {
			return fmt.Errorf("opening %q on %s: %w", w.job.Name, r.engine.Name(), err)
		}
		j.transform = t
	}
	if w.sequential() {
		j.source = treehash.New(w.job.Inputs[0].Bytes, step*unit)
	}
	for k := range w.job.Outputs {
		o := &w.job.Outputs[k]
		piece := int64(1 << 10) // what Finish emits comes in multiples of this
		if o.Part == PartWeight {
			piece = w.outBytes(step)
		}
		j.outputs = append(j.outputs, treehash.New(o.Size, piece))
	}
	return nil
}

// outBytes is the size of n elements of the main output.
func (w *work) outBytes(n int64) int64 {
	switch {
	case w.copyBytes:
		return n
	case w.quantize:
		return (n + 1) / 2
	}
	return n * int64(w.to.Size())
}

func (w *work) spec() JobSpec {
	return JobSpec{Elems: w.elems, Read: w.read, To: w.to, Check: w.check, Quantize: w.quantize, Type: w.typ, BlockSize: w.blockSize, DoubleQuant: w.doubleQuant}
}

// read is the chunk as the engine wants it, and as it stands in the source.
func (j *jobRun) read(b *buffers, c chunk) (in, source []byte, err error) {
	if j.merging != nil {
		return j.merging.chunk(&j.work, b, c.first, c.n)
	}
	in, err = j.work.readChunk(b, c.first, c.n)
	return in, in, err
}

// process does one chunk, and the end of its job when it is the last.
func (r *runner) process(b *buffers, s Scratch, c chunk) error {
	j := c.job
	w := &j.work
	in, source, err := j.read(b, c)
	if err != nil {
		return err
	}
	if j.source != nil && len(source) > 0 {
		j.source.Add(c.first*int64(len(source)/c.n), source)
	}
	out := in
	if w.copyBytes {
		err = w.checkBytes(in, c.first)
	} else {
		out, err = j.transform.Chunk(s, c.first, in)
	}
	if err != nil {
		return r.located(err, w)
	}
	if j.merging != nil {
		j.merging.sample.add(b.merge, c.first, c.n, out)
	}
	if len(out) > 0 {
		at := w.outBytes(c.first)
		if err := r.sink.write(&w.job.Outputs[0], at, out); err != nil {
			return err
		}
		j.outputs[0].Add(at, out)
	}
	var read int64
	if w.elems > 0 {
		read = w.job.share * int64(c.n) / w.elems
	}
	r.opts.Progress.Bytes.Add(read)
	if j.left.Add(-1) > 0 {
		return nil
	}
	return r.finishJob(b, s, j)
}

// finishJob writes the parts that need the whole weight and the journal line.
func (r *runner) finishJob(b *buffers, s Scratch, j *jobRun) error {
	w := &j.work
	rec := Record{Job: j.index, Name: w.job.Name}
	var nestedOffset float32
	if w.quantize {
		rep, err := j.transform.Finish(s, func(part Part, offset int64, p []byte) error {
			if j.merging != nil {
				j.merging.sample.emitted(part, offset, p)
			}
			k := w.job.placement(part)
			if err := r.sink.write(&w.job.Outputs[k], offset, p); err != nil {
				return err
			}
			j.outputs[k].AddRange(offset, p)
			return nil
		})
		if err != nil {
			return r.located(err, w)
		}
		state := quantState(w)
		state.NestedOffset, nestedOffset = rep.NestedOffset, rep.NestedOffset
		rec.State, rec.Rel = string(state.JSON()), rep.RelError
	}
	if j.merging != nil {
		rec.Merge = j.merging.result(w, nestedOffset)
	}
	for k := range w.job.Inputs {
		if k == 0 && j.source != nil {
			rec.Source = append(rec.Source, j.source.Sum())
			continue
		}
		d, err := r.sourceDigest(&w.job.Inputs[k], b.raw)
		if err != nil {
			return err
		}
		rec.Source = append(rec.Source, d)
	}
	for k := range w.job.Outputs {
		if w.job.Outputs[k].Part == PartQuantState {
			rec.Outputs = append(rec.Outputs, treehash.Sum([]byte(rec.State)))
			continue
		}
		rec.Outputs = append(rec.Outputs, j.outputs[k].Sum())
	}
	j.transform, j.source, j.outputs, j.merging = nil, nil, nil, nil
	r.memory.Release(j.memory)
	if r.journal != nil {
		if err := r.journal.append(&rec); err != nil {
			return err
		}
	}
	r.records[j.index] = rec
	r.opts.Progress.Tensors.Add(1)
	r.log.Debug("tensor done", "tensor", rec.Name, "rel_error", rec.Rel)
	return nil
}

// placement is the index of the part among the job's outputs.
func (j *Job) placement(part Part) int {
	for k := range j.Outputs {
		if j.Outputs[k].Part == part {
			return k
		}
	}
	panic("convert: internal error: no placement for " + string(part))
}

// located adds file, tensor and coordinates to an error of the arithmetic.
func (r *runner) located(err error, w *work) error {
	in := &w.job.Inputs[0]
	var v *ValueError
	if errors.As(err, &v) {
		err = fault.WithHint(
			fault.Inputf("value at %v is %s", coordinates(v.Index, w), v.Found),
			"a model with such weights does not compute; mend the source (was it saved from a diverged run?)")
	}
	return fmt.Errorf("%s %q: tensor %q: %w", gerund(r.plan.Verb), in.File, w.job.Name, err)
}

func gerund(verb string) string {
	switch verb {
	case "dequantize":
		return "dequantizing"
	case "merge":
		return "merging"
	}
	return "quantizing"
}

// coordinates turns a flat index of the job's order into one of the source's shape.
func coordinates(flat int64, w *work) []int64 {
	shape := w.job.Shape
	out := make([]int64, len(shape))
	for d := len(shape) - 1; d >= 0; d-- {
		out[d] = flat % shape[d]
		flat /= shape[d]
	}
	if w.transpose {
		out[0], out[1] = out[1], out[0]
	}
	return out
}

// removeAll is os.RemoveAll with a class.
func removeAll(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return fault.IOf("removing %q: %w", path, err)
	}
	return nil
}

// sourceDigest is hashRef, once per tensor: the experts of a fused tensor share it.
func (r *runner) sourceDigest(ref *Ref, buf []byte) (treehash.Digest, error) {
	once, _ := r.digests.LoadOrStore(ref.File+"\x00"+ref.Name, sync.OnceValues(func() (treehash.Digest, error) { return hashRef(ref, buf) }))
	return once.(func() (treehash.Digest, error))()
}
