package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/internal/machine"
	"github.com/nf4conv/nf4conv/internal/units"
	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cuda"
	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// devicesDoc is what `devices --json` prints.
type devicesDoc struct {
	Schema string      `json:"schema"`
	CPU    cpuDoc      `json:"cpu"`
	Tiers  []tierState `json:"tiers"`
	Driver *driverDoc  `json:"cuda_driver,omitempty"`
	GPUs   []gpuDoc    `json:"gpus"`
	// GPUNote says why there are none.
	GPUNote  string `json:"gpu_note,omitempty"`
	Selected string `json:"selected"` // by --device auto for a large model
}

type cpuDoc struct {
	Model string `json:"model"` // empty when the system does not tell
	Arch  string `json:"arch"`
	Cores int    `json:"cores"`
}

// tierState says whether a tier of kernels is used, and why not.
type tierState struct {
	Name     string `json:"name"`
	Selected bool   `json:"selected"`
	Why      string `json:"why"`
}

type driverDoc struct {
	Library string `json:"library"`
	API     string `json:"api"` // version of the driver API
}

type gpuDoc struct {
	Name      string `json:"name"` // as --device takes it
	Model     string `json:"model"`
	UUID      string `json:"uuid"`
	Compute   string `json:"compute_capability"`
	Memory    int64  `json:"memory_bytes"`
	Free      int64  `json:"free_bytes"`
	SMs       int    `json:"multiprocessors"`
	Bandwidth int64  `json:"peak_bandwidth_bytes_per_s"` // of its memory, by clock and width
	PCI       string `json:"pci"`
	Image     string `json:"kernels"` // the compiled kernels it would run
	Usable    bool   `json:"usable"`
	Why       string `json:"why,omitempty"` // it cannot be used
}

func devicesVerb() verb {
	return verb{
		name: "devices", usage: "show what this machine computes with", args: "", maxArgs: 0, example: "nf4conv devices", codes: "0 success, 2 wrong usage",
		run: func(_ context.Context, a *app, g *global, _ *cli.Context) error {
			doc := findDevices()
			if g.json {
				return a.result(doc)
			}
			return a.print(devicesText(doc))
		},
	}
}

func findDevices() *devicesDoc {
	doc := &devicesDoc{
		Schema: "nf4conv.devices/1", CPU: cpuDoc{machine.CPUModel(), runtime.GOARCH, runtime.NumCPU()}, GPUs: []gpuDoc{},
		Selected: "cpu (" + kernels.Tier() + ")",
		Tiers:    tierStates(),
	}
	lib, err := driver.Open()
	if err != nil {
		doc.GPUNote = err.Error()
		return doc
	}
	doc.Driver = &driverDoc{lib.Path(), lib.Version().String()}
	var usable []string
	for _, info := range lib.Devices() {
		d := describeGPU(lib, info)
		if d.Usable {
			usable = append(usable, strings.TrimPrefix(d.Name, "cuda:"))
		}
		doc.GPUs = append(doc.GPUs, d)
	}
	if len(usable) > 0 && autoDeviceBytes() < math.MaxInt64 {
		doc.Selected = "cuda:" + strings.Join(usable, ",")
	}
	return doc
}

func tierStates() []tierState {
	return []tierState{
		{"generic", true, "Go, the definition of every result"},
		tierOf("avx2", "AVX2, FMA and F16C"),
		tierOf("avx512", "AVX-512 F, BW, VL and DQ"),
	}
}

func describeGPU(lib driver.Library, info driver.Info) gpuDoc {
	d := gpuDoc{
		Name: fmt.Sprintf("cuda:%d", info.Index), Model: info.Name, UUID: info.UUIDString(), Compute: fmt.Sprintf("%d.%d", info.Major, info.Minor),
		Memory: int64(info.TotalMemory), SMs: info.SMs, Bandwidth: int64(info.PeakBandwidth()), PCI: info.PCIBusID,
	}
	image, name, err := cuda.Image(info.Major, info.Minor)
	if err == nil {
		d.Image = name
		d.Free, err = tryGPU(lib, info.Index, image)
	}
	if d.Usable = err == nil; err != nil {
		d.Why = err.Error()
	}
	return d
}

// tryGPU loads the kernels and returns the memory that is free.
func tryGPU(lib driver.Library, index int, image []byte) (free int64, err error) {
	dev, err := lib.OpenDevice(index)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	m, err := dev.LoadModule(image)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	n, _, err := dev.MemInfo()
	return int64(n), err
}

func devicesText(doc *devicesDoc) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cpu      %s, %s\n", strings.TrimPrefix(doc.CPU.Model+", "+doc.CPU.Arch, ", "), units.Things(doc.CPU.Cores, "core"))
	for _, t := range doc.Tiers {
		fmt.Fprintf(&b, "  %s %-8s %s\n", mark(t.Selected), t.Name, t.Why)
	}
	if doc.Driver == nil {
		fmt.Fprintf(&b, "gpu      none: %s\n", doc.GPUNote)
	} else {
		fmt.Fprintf(&b, "gpu      CUDA driver API %s (%s)\n", doc.Driver.API, doc.Driver.Library)
	}
	for _, d := range doc.GPUs {
		fmt.Fprintf(&b, "  %s %-8s %s, compute capability %s, %d multiprocessors, PCI %s\n", mark(d.Usable), d.Name, d.Model, d.Compute, d.SMs, d.PCI)
		if d.Usable {
			fmt.Fprintf(&b, "             %s, %s free, %s/s by clock and width; kernels %s\n", units.IBytes(d.Memory), units.IBytes(d.Free), units.Bytes(d.Bandwidth), d.Image)
		} else {
			fmt.Fprintf(&b, "             not usable: %s\n", d.Why)
		}
	}
	fmt.Fprintf(&b, "selected %s\n", doc.Selected)
	if len(doc.GPUs) > 0 {
		switch n := autoDeviceBytes(); n {
		case math.MaxInt64:
			b.WriteString("         by --device auto: with vector kernels the CPU is done before a GPU; the bytes are the same\n")
		default:
			fmt.Fprintf(&b, "         by --device auto for weights of %s and more, else the CPU; the bytes are the same\n", units.IBytes(n))
		}
	}
	return b.String()
}

func mark(selected bool) string {
	if selected {
		return "*"
	}
	return "-"
}

func tierOf(name, what string) tierState {
	if slices.Contains(kernels.Tiers(), name) {
		return tierState{name, true, "the processor has " + what}
	}
	return tierState{name, false, "not used: no " + what + ", switched off by NF4CONV_DISABLE, or a build without assembly"}
}
