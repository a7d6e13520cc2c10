package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/convert"
	"github.com/nf4conv/nf4conv/convert/gpu"
	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/units"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// deviceChoice is what --device asks for.
type deviceChoice struct {
	auto, cuda bool
	indices    []int // of CUDA devices; none: all
}

// parseDevice reads auto, cpu, cuda or cuda:N,M.
func parseDevice(s string) (deviceChoice, error) {
	list, some := strings.CutPrefix(s, "cuda:")
	switch s {
	case "auto":
		return deviceChoice{auto: true}, nil
	case "cpu":
		return deviceChoice{}, nil
	case "cuda":
		return deviceChoice{cuda: true}, nil
	}
	bad := fault.Usagef("--device %q: expected auto, cpu, cuda or cuda:N,M", s)
	if !some {
		return deviceChoice{}, bad
	}
	c := deviceChoice{cuda: true}
	for _, f := range strings.Split(list, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 0 || slices.Contains(c.indices, n) {
			return deviceChoice{}, bad
		}
		c.indices = append(c.indices, n)
	}
	return c, nil
}

// autoDeviceBytes is the size of weights from which --device auto looks for a GPU. Where the
// CPU has vector kernels that is never: conversions are bound by memory and files then, the CPU
// keeps up with them, and a GPU takes half a second to start (docs/benchmarks.md, "Whole
// conversions on a GPU"). With generic Go a GPU is twice as fast on a large model.
func autoDeviceBytes() int64 {
	if kernels.Tier() != "generic" {
		return math.MaxInt64
	}
	return 512 << 20
}

// openGPU opens what --device asks for; nil stands for the CPU. With auto, a GPU that
// cannot be used is a line, with cuda an error.
func (a *app) openGPU(g *global, src *hf.Checkpoint) (*gpu.Engine, error) {
	c := g.device
	if !c.cuda && !c.auto {
		return nil, nil
	}
	var bytes int64
	for _, f := range src.Files() {
		bytes += f.Header().FileSize
	}
	if c.auto && bytes < a.autoBytes {
		return nil, nil
	}
	lib, err := driver.Open()
	if err == nil {
		var e *gpu.Engine
		if e, err = gpu.Open(lib, c.indices); err == nil {
			return e, nil
		}
	}
	if c.cuda {
		return nil, fault.WithHint(fault.IOf("--device cuda: no usable GPU: %w", err), "--device cpu writes the same bytes")
	}
	if !errors.Is(err, driver.ErrNoDriver) && !errors.Is(err, driver.ErrNoDevice) {
		a.say("warning: the CPU computes, no usable GPU: %s", oneLine(err))
	} else if g.verbose {
		a.say("the CPU computes: %s", oneLine(err))
	}
	return nil, nil
}

// parseGPUMemory reads the sizes of --gpu-memory, one for all devices or one for each.
func parseGPUMemory(s string) ([]int64, error) {
	if s == "" {
		return nil, nil
	}
	var out []int64
	for _, f := range strings.Split(s, ",") {
		n, err := units.ParseBytes(strings.TrimSpace(f))
		if err != nil {
			return nil, fault.Usagef("--gpu-memory: %w", err)
		}
		out = append(out, n)
	}
	return out, nil
}

// attempt plans and prepares a run on a GPU engine, or on the CPU for nil.
type attempt struct {
	plan   *convert.Plan
	engine *gpu.Engine
}

// builder plans a verb's run with accelerators.
type builder func(src *hf.Checkpoint, fileName string, devices []convert.DeviceBudget) (*convert.Plan, error)

// planOn makes the plan for the device that was asked for. With auto, a GPU that has too
// little memory is a line.
func (a *app) planOn(g *global, src *hf.Checkpoint, fileName, gpuMemory string, build builder) (at attempt, err error) {
	caps, err := parseGPUMemory(gpuMemory)
	if err != nil {
		return at, err
	}
	if at.engine, err = a.openGPU(g, src); err != nil {
		return at, err
	}
	if at.engine == nil {
		at.plan, err = build(src, fileName, nil)
		return at, err
	}
	devices, err := at.engine.Budgets(caps)
	if err == nil {
		at.plan, err = build(src, fileName, devices)
	}
	if err != nil {
		err = errors.Join(err, at.engine.Close())
		at.engine = nil
	}
	return at, err
}

// run carries the plan out. When --device auto chose a GPU that fails on the way, the
// CPU continues what is done.
func (a *app) runOn(ctx context.Context, g *global, at *attempt, o convert.RunOptions, again func() (*convert.Plan, error)) (*convert.Result, error) {
	if at.engine != nil {
		o.Engine = at.engine
	}
	res, err := convert.Run(ctx, at.plan, o)
	var failed *convert.DeviceError
	if err == nil || at.engine == nil || !g.device.auto || !errors.As(err, &failed) {
		return res, err
	}
	a.say("warning: the CPU continues: %s", oneLine(fmt.Errorf("%s: %w", failed.Device, failed.Err)))
	if at.plan, err = again(); err != nil {
		return nil, err
	}
	o.Engine, o.Restart = nil, false
	return convert.Run(ctx, at.plan, o)
}
