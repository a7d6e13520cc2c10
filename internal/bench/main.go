// Command bench measures nf4conv as a whole process: time, rate and private memory of
// conversions of checkpoints of the size and shape of Llama 3.2 1B and Llama 3 8B.
//
//	go run ./internal/bench model DIR [-shape 1b|8b] [-layers N]
//	                                                     write the checkpoint (2.47 or 16.1 GB)
//	go run ./internal/bench quantize DIR [-binary FILE] [-runs N] [-- FLAGS]
//	                                                     convert it and print the figures
//	go run ./internal/bench adapter DIR [-shape 1b|8b] [-rank N]
//	                                                     write a LoRA adapter for the checkpoint
//	go run ./internal/bench merge DIR -adapter DIR [-binary FILE] [-runs N] [-- FLAGS]
//	                                                     merge it and print the figures
//	go run ./internal/bench verify BASE -candidate DIR [-tokens N] [-length N] [-binary FILE] [-- FLAGS]
//	                                                     verify a conversion of it and print the figures
//	go run ./internal/bench forward DIR [-tokens N] [-logits] [-runs N] [-threads N]
//	                                                     forward passes in this process, as one line of JSON
//
// The figures that were seen are in docs/benchmarks.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"

	"github.com/nf4conv/nf4conv/fixtures"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("expected: model DIR [-shape 1b|8b] [-layers N] | adapter DIR [-shape 1b|8b] [-rank N] | quantize DIR [-binary FILE] [-runs N] [-- FLAGS OF nf4conv quantize] | merge DIR -adapter DIR [-binary FILE] [-runs N] [-- FLAGS OF nf4conv merge] | verify BASE -candidate DIR [-tokens N] [-length N] [-binary FILE] [-- FLAGS OF nf4conv verify] | forward DIR [-tokens N] [-logits] [-runs N] [-threads N]")

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	verb, dir, args := args[0], args[1], args[2:]
	f := flag.NewFlagSet(verb, flag.ContinueOnError)
	switch verb {
	case "model":
		shape := f.String("shape", "1b", "1b or 8b: 1.24 or 8.03 billion parameters")
		layers := f.Int("layers", 0, "transformer layers; 0: as many as the model has")
		seed := f.Uint64("seed", 1, "of the random weights")
		if err := f.Parse(args); err != nil {
			return err
		}
		spec, ok := shapes[*shape]
		if !ok {
			return fmt.Errorf("-shape %q: expected 1b or 8b", *shape)
		}
		if spec.Seed = *seed; *layers > 0 {
			spec.Layers = *layers
		}
		spec.Shards = max(1, spec.Layers*spec.Hidden/(5*2048))
		return fixtures.Write(dir, spec)
	case "adapter":
		shape := f.String("shape", "1b", "1b or 8b: of which checkpoint")
		rank := f.Int("rank", 16, "of the factors")
		if err := f.Parse(args); err != nil {
			return err
		}
		spec, ok := shapes[*shape]
		if !ok {
			return fmt.Errorf("-shape %q: expected 1b or 8b", *shape)
		}
		return fixtures.WriteAdapter(dir, spec, *rank)
	case "quantize", "merge":
		adapter := f.String("adapter", "", "with merge: the adapter")
		runs := f.Int("runs", 5, "how often; the median counts")
		binary := f.String("binary", "", "the program to measure; built when not given")
		if err := f.Parse(args); err != nil {
			return err
		}
		flags := f.Args()
		if verb == "merge" {
			flags = append([]string{"--adapter", *adapter}, flags...)
		}
		return convert(ctx, verb, dir, *binary, *runs, flags)
	case "verify":
		v := verification{base: dir}
		f.StringVar(&v.candidate, "candidate", "", "the conversion")
		f.IntVar(&v.tokens, "tokens", 16384, "in all, random ones")
		f.IntVar(&v.length, "length", 512, "tokens of a sequence")
		f.StringVar(&v.binary, "binary", "", "the program to measure; built when not given")
		if err := f.Parse(args); err != nil {
			return err
		}
		v.flags = f.Args()
		return v.run(ctx)
	case "forward":
		w := forwards{dir: dir}
		f.IntVar(&w.tokens, "tokens", 512, "of one sequence, random ones")
		f.BoolVar(&w.logits, "logits", false, "with the logits of every token")
		f.IntVar(&w.runs, "runs", 3, "after one that does not count; the median counts")
		f.IntVar(&w.threads, "threads", runtime.NumCPU(), "that compute")
		if err := f.Parse(args); err != nil {
			return err
		}
		return w.run(ctx, os.Stdout)
	}
	return errUsage
}

// shapes are those of Llama 3.2 1B and Llama 3 8B.
var shapes = map[string]fixtures.Spec{
	"1b": {Arch: "llama", Layers: 16, Hidden: 2048, Intermediate: 8192, Heads: 32, KVHeads: 8, Vocab: 128256, Tied: true, DType: "BF16"},
	"8b": {Arch: "llama", Layers: 32, Hidden: 4096, Intermediate: 14336, Heads: 32, KVHeads: 8, Vocab: 128256, DType: "BF16"},
}
