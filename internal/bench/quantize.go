package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/nf4conv/nf4conv/internal/units"
)

// measurement is one run of the program.
type measurement struct {
	wall      time.Duration // from start to exit
	converted time.Duration // to the last write of a weight, before syncing
	anon      int64         // peak of private memory (RssAnon) seen every two milliseconds, bytes
	doc       runDoc
}

// runDoc is what is used of what `nf4conv quantize --json` and `merge --json` print.
type runDoc struct {
	Result struct {
		BytesIn   int64         `json:"bytes_in"`
		BytesOut  int64         `json:"bytes_out"`
		Engine    string        `json:"engine"`
		Converted time.Duration `json:"converted_ns"`
	} `json:"result"`
	Schedule struct {
		Workers int   `json:"workers"`
		Memory  int64 `json:"memory"`
		Least   int64 `json:"least"`
	} `json:"schedule"`
}

func convert(ctx context.Context, verb, model, binary string, runs int, flags []string) error {
	tmp, err := os.MkdirTemp("", "nf4conv-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // a temporary directory
	if binary, err = program(ctx, binary, tmp); err != nil {
		return err
	}
	if err := warm(model); err != nil {
		return err
	}
	var all []measurement
	for i := range max(1, runs) {
		m, err := measure(ctx, verb, binary, model, filepath.Join(tmp, "out"), flags)
		if err != nil {
			return err
		}
		fmt.Printf("run %d  %6.2f s  %6.2f s to the last write  %s private\n", i+1, m.wall.Seconds(), m.converted.Seconds(), units.IBytes(m.anon))
		all = append(all, m)
	}
	last := all[len(all)-1].doc
	wall := median(all, func(m measurement) time.Duration { return m.wall })
	converted := median(all, func(m measurement) time.Duration { return m.converted })
	anon := slices.MaxFunc(all, func(a, b measurement) int { return int(a.anon - b.anon) }).anon
	rate := func(d time.Duration) float64 { return float64(last.Result.BytesIn) / d.Seconds() / 1e9 }
	fmt.Printf("engine  %s, %d workers, buffers of %s planned, at least %s\n", last.Result.Engine, last.Schedule.Workers, units.IBytes(last.Schedule.Memory), units.IBytes(last.Schedule.Least))
	fmt.Printf("bytes   %s in, %s out\n", units.Bytes(last.Result.BytesIn), units.Bytes(last.Result.BytesOut))
	fmt.Printf("median  %.2f s, %.2f GB/s of input; %.2f s, %.2f GB/s to the last write\n", wall.Seconds(), rate(wall), converted.Seconds(), rate(converted))
	fmt.Printf("memory  %s private at most\n", units.IBytes(anon))
	return nil
}

// program is the binary to measure, built in dir when none is given.
func program(ctx context.Context, binary, dir string) (string, error) {
	if binary != "" {
		return binary, nil
	}
	binary = filepath.Join(dir, "nf4conv")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/nf4conv")
	build.Env, build.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("building nf4conv: %w", err)
	}
	return binary, nil
}

func median(all []measurement, of func(measurement) time.Duration) time.Duration {
	var v []time.Duration
	for _, m := range all {
		v = append(v, of(m))
	}
	return middle(v)
}

// warm reads the checkpoint into the page cache.
func warm(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.safetensors"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%q has no safetensors files; `bench model %s` writes some", dir, dir)
	}
	buf := make([]byte, 1<<20)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		for n := 1; n > 0; {
			n, _ = f.Read(buf)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func measure(ctx context.Context, verb, binary, model, out string, flags []string) (measurement, error) {
	var m measurement
	if err := os.RemoveAll(out); err != nil {
		return m, err
	}
	c := exec.CommandContext(ctx, binary, append([]string{verb, model, out, "--json", "--quiet"}, flags...)...)
	c.Stderr = os.Stderr
	stdout, err := c.StdoutPipe()
	if err != nil {
		return m, err
	}
	began := time.Now()
	if err := c.Start(); err != nil {
		return m, err
	}
	stop, peak := make(chan struct{}), make(chan memory)
	go watch(c.Process.Pid, stop, peak)
	derr := json.NewDecoder(stdout).Decode(&m.doc)
	err = c.Wait()
	m.wall = time.Since(began)
	close(stop)
	m.anon = (<-peak).private
	m.converted = m.doc.Result.Converted
	if err != nil {
		return m, fmt.Errorf("nf4conv: %w", err)
	}
	return m, derr
}
