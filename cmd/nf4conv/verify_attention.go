package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/verify"
)

func attentionFlag() cli.Flag {
	return stringFlag("attention", "dense", "`PATTERN` of the candidate's attention: dense, local:W, butterfly, strided:N, global:G+W (tokens; @B sets the block), or a JSON file of blocks")
}

// readAttention reads --attention.
func (f *verifyFlags) readAttention(c *cli.Context) (err error) {
	if f.sparse, err = verify.ParseAttention(c.String("attention")); err != nil {
		return fmt.Errorf("--attention: %w", err)
	}
	if f.sparse != nil && !verify.NeedsText(f.stages) {
		return fault.Usagef("--attention has an effect only on the stages layers and logits")
	}
	return nil
}
