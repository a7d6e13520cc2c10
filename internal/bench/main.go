// Command bench measures nf4conv as a whole process: time, rate and private memory of
// conversions of a checkpoint of the size and shape of Llama 3.2 1B.
//
//	go run ./internal/bench model DIR [-layers N]        write the checkpoint (2.47 GB)
//	go run ./internal/bench quantize DIR [-runs N] [-- FLAGS]
//	                                                     convert it and print the figures
//
// The figures that were seen are in docs/benchmarks.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/nf4conv/nf4conv/fixtures"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("expected: model DIR [-layers N] | quantize DIR [-runs N] [-- FLAGS OF nf4conv quantize]")

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	verb, dir, args := args[0], args[1], args[2:]
	f := flag.NewFlagSet(verb, flag.ContinueOnError)
	switch verb {
	case "model":
		layers := f.Int("layers", 16, "transformer layers; 16 are 1.24 billion parameters")
		seed := f.Uint64("seed", 1, "of the random weights")
		if err := f.Parse(args); err != nil {
			return err
		}
		return fixtures.Write(dir, llama1B(*layers, *seed))
	case "quantize":
		runs := f.Int("runs", 5, "how often; the median counts")
		if err := f.Parse(args); err != nil {
			return err
		}
		return quantize(ctx, dir, *runs, f.Args())
	}
	return errUsage
}

// llama1B has the shape of Llama 3.2 1B but for its depth.
func llama1B(layers int, seed uint64) fixtures.Spec {
	return fixtures.Spec{
		Arch: "llama", Layers: layers, Hidden: 2048, Intermediate: 8192, Heads: 32, KVHeads: 8, Vocab: 128256,
		Tied: true, DType: "BF16", Shards: max(1, layers/5), Seed: seed,
	}
}
