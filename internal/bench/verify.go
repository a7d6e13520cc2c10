package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/formats/safetensors"
	"github.com/nf4conv/nf4conv/internal/units"
	"github.com/nf4conv/nf4conv/model"
)

// verification is a whole run of nf4conv verify, its forward passes unless -- --stage says
// otherwise.
type verification struct {
	base, candidate string
	tokens, length  int
	binary          string
	flags           []string
}

// verifyDoc is what is used of what `nf4conv verify --json` prints.
type verifyDoc struct {
	Stages []struct {
		Name string `json:"name"`
		Ran  bool   `json:"ran"`
		Why  string `json:"why"`
	} `json:"stages"`
	Metrics []struct {
		Name  string  `json:"name"`
		Value float64 `json:"value"`
	} `json:"metrics"`
}

func (v *verification) run(ctx context.Context) (err error) {
	if v.tokens < v.length || v.length < 2 {
		return fmt.Errorf("-tokens %d of -length %d: expected whole sequences of 2 tokens or more", v.tokens, v.length)
	}
	flops, vocab, err := v.operations()
	if err != nil {
		return err
	}
	for _, dir := range []string{v.base, v.candidate} {
		if err := warm(dir); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp("", "nf4conv-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // a temporary directory
	if v.binary, err = program(ctx, v.binary, tmp); err != nil {
		return err
	}
	ids := filepath.Join(tmp, "ids.safetensors")
	if err := v.writeIDs(ids, vocab); err != nil {
		return err
	}
	threads := runtime.NumCPU()
	before, beforeCPU := product(threads)
	m, doc, err := v.measure(ctx, ids)
	if err != nil {
		return err
	}
	after, afterCPU := product(threads)
	for _, s := range doc.Stages {
		if !s.Ran && s.Why != "not asked for" {
			return fmt.Errorf("stage %s did not run: %s", s.Name, s.Why)
		}
	}
	tokens := v.tokens / v.length * v.length
	floor := flops * float64(tokens) / ((before + after) / 2)
	floorCPU := flops * float64(tokens) / ((beforeCPU + afterCPU) / 2)
	fmt.Printf("tokens  %d, %d sequences of %d; %.2f GFLOP a token for both models\n", tokens, tokens/v.length, v.length, flops/1e9)
	fmt.Printf("gemm    %.0f and %.0f GFLOP/s before and after, %d threads; %.0f and %.0f a second of processor time\n", before/1e9, after/1e9, threads, beforeCPU/1e9, afterCPU/1e9)
	fmt.Printf("time    %.1f s, %.1f tokens/s; the products alone take %.1f s: %.2f times\n", m.wall.Seconds(), float64(tokens)/m.wall.Seconds(), floor, m.wall.Seconds()/floor)
	fmt.Printf("cpu     %.1f s of processor time; the products alone take %.1f s: %.2f times\n", m.cpu, floorCPU, m.cpu/floorCPU)
	fmt.Printf("memory  %s private, %s resident at most\n", units.IBytes(m.memory.private), units.IBytes(m.memory.highest))
	for _, f := range doc.Metrics {
		fmt.Printf("figure  %-16s %.9g\n", f.Name, f.Value)
	}
	return nil
}

// operations are those of both models for a token, logits included.
func (v *verification) operations() (flops float64, vocab int, err error) {
	if v.candidate == "" {
		return 0, 0, errors.New("-candidate is not given: expected a conversion of the base")
	}
	for _, dir := range []string{v.base, v.candidate} {
		c, err := hf.Open(dir)
		if err != nil {
			return 0, 0, err
		}
		spec, err := model.Describe(c.Config())
		if err := errors.Join(err, c.Close()); err != nil {
			return 0, 0, err
		}
		layers, head := operations(spec, v.length)
		flops, vocab = flops+layers+head, spec.Vocab
	}
	return flops, vocab, nil
}

// writeIDs writes random tokens as input_ids [sequences, length].
func (v *verification) writeIDs(path string, vocab int) error {
	rows := v.tokens / v.length
	var data []byte
	for _, id := range randomIDs(rows*v.length, vocab) {
		data = binary.LittleEndian.AppendUint64(data, uint64(id))
	}
	header, err := safetensors.EncodeHeader(nil, []safetensors.Tensor{{Name: "input_ids", DType: "I64", Shape: []int64{int64(rows), int64(v.length)}, End: int64(len(data))}}, 0)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(header, data...), 0o600)
}

// consumption is what a run took.
type consumption struct {
	wall   time.Duration
	cpu    float64 // seconds
	memory memory
}

func (v *verification) measure(ctx context.Context, ids string) (m consumption, doc verifyDoc, err error) {
	args := []string{"verify", v.base, v.candidate, "--ids", ids, "--json", "--quiet"}
	if len(v.flags) == 0 {
		args = append(args, "--stage", "layers,logits")
	}
	c := exec.CommandContext(ctx, v.binary, append(args, v.flags...)...)
	c.Stderr = os.Stderr
	stdout, err := c.StdoutPipe()
	if err != nil {
		return m, doc, err
	}
	began := time.Now()
	if err := c.Start(); err != nil {
		return m, doc, err
	}
	stop, peak := make(chan struct{}), make(chan memory)
	go watch(c.Process.Pid, stop, peak)
	derr := json.NewDecoder(stdout).Decode(&doc)
	err = c.Wait()
	m.wall = time.Since(began)
	close(stop)
	m.memory = <-peak
	m.cpu = (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 3 && derr == nil {
		err = nil // gates that random weights and tokens do not pass
	}
	return m, doc, errors.Join(err, derr)
}
