package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/internal/machine"
	"github.com/nf4conv/nf4conv/kernels"
)

// devicesDoc is what `devices --json` prints.
type devicesDoc struct {
	Schema   string      `json:"schema"`
	CPU      cpuDoc      `json:"cpu"`
	GPUs     []struct{}  `json:"gpus"`
	GPUNote  string      `json:"gpu_note"`
	Selected string      `json:"selected"`
	Tiers    []tierState `json:"tiers"`
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

func devicesVerb() verb {
	return verb{
		name: "devices", usage: "show what this machine computes with", args: "", maxArgs: 0, example: "nf4conv devices", codes: "0 success, 2 wrong usage",
		run: func(_ context.Context, a *app, g *global, _ *cli.Context) error {
			doc := devicesDoc{
				Schema: "nf4conv.devices/1", CPU: cpuDoc{machine.CPUModel(), runtime.GOARCH, runtime.NumCPU()}, GPUs: []struct{}{},
				GPUNote: "this build has no CUDA backend", Selected: "cpu (" + kernels.Tier() + ")",
				Tiers: []tierState{
					{"generic", true, "Go, the definition of every result"},
					{"avx2", false, has(kernels.Features.AVX2, "AVX2, FMA and F16C")},
					{"avx512", false, has(kernels.Features.AVX512, "AVX-512 F, BW, VL and DQ")},
				},
			}
			if g.json {
				return a.result(&doc)
			}
			var b strings.Builder
			fmt.Fprintf(&b, "cpu      %s, %d cores\n", strings.TrimPrefix(doc.CPU.Model+", "+doc.CPU.Arch, ", "), doc.CPU.Cores)
			for _, t := range doc.Tiers {
				mark := "-"
				if t.Selected {
					mark = "*"
				}
				fmt.Fprintf(&b, "  %s %-8s %s\n", mark, t.Name, t.Why)
			}
			fmt.Fprintf(&b, "gpu      none: %s\nselected %s\n", doc.GPUNote, doc.Selected)
			_, err := fmt.Fprint(a.stdout, b.String())
			return err
		},
	}
}

func has(there bool, what string) string {
	if there {
		return "the processor has " + what + "; this build has no kernels for it yet"
	}
	return "not used: no " + what + " (or switched off by NF4CONV_DISABLE)"
}
