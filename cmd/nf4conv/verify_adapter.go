package main

import (
	"errors"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/verify"
)

func adapterFlag() cli.Flag {
	return listFlag("adapter", "run the candidate with the LoRA adapter `DIR`, not merged, or DIR=WEIGHT; base:DIR is for the base (repeatable)")
}

// readAdapters reads --adapter.
func (f *verifyFlags) readAdapters(c *cli.Context) error {
	for _, s := range c.StringSlice("adapter") {
		side := 1
		if dir, ok := strings.CutPrefix(s, "base:"); ok {
			s, side = dir, 0
		}
		f.lora[side] = append(f.lora[side], s)
	}
	if len(f.lora[0])+len(f.lora[1]) == 0 {
		return nil
	}
	if !verify.NeedsText(f.stages) {
		return fault.Usagef("--adapter has an effect only on the stages layers and logits")
	}
	if len(f.stages) == 0 || slices.Contains(f.stages, verify.StageWeights) {
		return fault.WithHint(fault.Usagef("--adapter: the stage weights compares what is stored, without adapters"), "leave it out: --stage container,layers,logits")
	}
	return nil
}

// openAdapters opens those of both sides. What it returns closes them.
func (f *verifyFlags) openAdapters(o *verify.Options) (closeAll func() error, err error) {
	var open []verify.Adapter
	closeAll = func() (err error) {
		for _, a := range open {
			err = errors.Join(err, a.Adapter.Close())
		}
		return err
	}
	for i, to := range []*[]verify.Adapter{&o.OfBase, &o.Adapters} {
		if len(f.lora[i]) == 0 {
			continue
		}
		list, err := openAdapters(f.lora[i])
		for _, a := range list {
			*to = append(*to, verify.Adapter{Adapter: a.Adapter, Weight: a.Weight})
		}
		open = append(open, *to...)
		if err != nil {
			return closeAll, err
		}
	}
	return closeAll, nil
}
