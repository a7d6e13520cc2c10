package gpu

import (
	"errors"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/kernels/cuda"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// scratch is what a worker holds: a stream and two buffers on either side of the link.
type scratch struct {
	*device
	stream driver.Stream
	args   *driver.Args
	in     []byte // pinned: a chunk as read
	out    []byte // pinned: its results
	dIn    driver.Ptr
	dCast  driver.Ptr // 0 when no job casts
	dOut   driver.Ptr
	dSums  driver.Ptr // partial sums of absmax, in two halves, and the offset behind them
	sums   int64      // float64 in a half
}

// The least sizes of the buffers, so that a tensor's absmax can be worked on in pieces of
// whole groups of the sum.
const (
	leastIn  = 4 * cuda.SumGroup
	leastOut = 2 * cuda.SumGroup
)

// NewScratch implements convert.Engine.
func (e *Engine) NewScratch(device int, need convert.ScratchSpec) (convert.Scratch, error) {
	s := &scratch{device: e.devices[device], args: driver.NewArgs()}
	if err := s.allocate(need); err != nil {
		return nil, errors.Join(s.fail("taking memory for a worker", err), s.Close())
	}
	return s, nil
}

func (s *scratch) allocate(need convert.ScratchSpec) (err error) {
	in := max(need.In, leastIn)
	// Results are packed codes and scales; a cast; or codes and nested absmax.
	out := max(align(need.Packed)+4*need.Blocks, need.Cast, leastOut)
	s.sums = max(1, cuda.SumLen(need.JobBlocks))
	if s.stream, err = s.dev.NewStream(); err != nil {
		return err
	}
	if s.in, err = s.dev.AllocHost(int(in)); err != nil {
		return err
	}
	if s.out, err = s.dev.AllocHost(int(out)); err != nil {
		return err
	}
	if s.dIn, err = s.dev.Alloc(uint64(in)); err != nil {
		return err
	}
	if s.dOut, err = s.dev.Alloc(uint64(out)); err != nil {
		return err
	}
	if err = s.stream.Fill(s.dOut, 0, uint64(out)); err != nil { // copies out take the gaps along
		return err
	}
	if need.Cast > 0 {
		if s.dCast, err = s.dev.Alloc(uint64(need.Cast)); err != nil {
			return err
		}
	}
	s.dSums, err = s.dev.Alloc(uint64(16*s.sums) + cuda.Alignment)
	return err
}

// align rounds a size up to where the next buffer may start.
func align(n int64) int64 { return (n + cuda.Alignment - 1) &^ (cuda.Alignment - 1) }

// Input implements convert.Scratch.
func (s *scratch) Input() []byte { return s.in }

// Close implements convert.Scratch.
func (s *scratch) Close() error {
	var errs []error
	if s.stream != nil {
		// Memory must not go while the device uses it: after an error it may.
		_ = s.stream.Synchronize()
		errs = append(errs, s.stream.Close())
	}
	for _, b := range [][]byte{s.in, s.out} {
		if b != nil {
			errs = append(errs, s.dev.FreeHost(b))
		}
	}
	for _, p := range []driver.Ptr{s.dIn, s.dOut, s.dCast, s.dSums} {
		if p != 0 {
			errs = append(errs, s.dev.Free(p))
		}
	}
	if err := errors.Join(unlost(errs)...); err != nil {
		return s.fail("giving memory back", err)
	}
	return nil
}

// launch starts a kernel on the worker's stream with the arguments of s.args.
func (s *scratch) launch(l cuda.Launch) error {
	f, err := s.function(l.Name)
	if err != nil {
		return err
	}
	if err := s.stream.Launch(f, driver.D1(l.Grid), driver.D1(l.Block), l.Shared, s.args); err != nil {
		return s.fail("launching "+l.Name, err)
	}
	return nil
}
