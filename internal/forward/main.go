// Command forward computes models for tests in other languages: interop/forward.py holds its
// results against transformers.
//
// It reads jobs from standard input, one JSON object a line, and answers each with a line:
//
//	{"model": DIR, "ids": [[...]], "mask": [[...]], "out": FILE}
//	{"hidden": [WIDTH...], "vocab": N, "tokens": N, "rows": N}   or   {"error": "...", "class": N}
//
//	{"types": true}                                   asks for the model types
//	{"types": [...]}
//
// ids and mask are the rows of a padded batch. FILE receives float32 little-endian values
// of the tokens that the mask has, row after row: every hidden state [tokens, WIDTH], then
// the logits [rows, vocab] where the model has a head: of every token, or of one of each sequence.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/model"
)

type job struct {
	Model string    `json:"model"`
	IDs   [][]int64 `json:"ids"`
	Mask  [][]int64 `json:"mask"`
	Out   string    `json:"out"`
	Types bool      `json:"types"`
}

type answer struct {
	Types  []string `json:"types,omitempty"`
	Hidden []int    `json:"hidden,omitempty"`
	Vocab  int      `json:"vocab,omitempty"`
	Tokens int      `json:"tokens,omitempty"`
	Rows   int      `json:"rows,omitempty"`
	Error  string   `json:"error,omitempty"`
	Class  int      `json:"class,omitempty"` // exit code of the error's class
}

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "forward:", err)
		os.Exit(1)
	}
}

func serve(in io.Reader, out io.Writer) error {
	d, e := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var j job
		if err := d.Decode(&j); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		a, err := j.run()
		if err != nil {
			a = answer{Error: err.Error(), Class: fault.ClassOf(err).ExitCode()}
		}
		if err := e.Encode(a); err != nil {
			return err
		}
	}
}

func (j *job) run() (a answer, err error) {
	if j.Types {
		return answer{Types: model.Types()}, nil
	}
	c, err := hf.Open(j.Model)
	if err != nil {
		return a, err
	}
	defer func() {
		if e := c.Close(); err == nil {
			err = e
		}
	}()
	m, err := model.Open(c, model.Options{Threads: runtime.NumCPU()})
	if err != nil {
		return a, err
	}
	var ids, mask []int64
	for i := range j.IDs {
		ids, mask = append(ids, j.IDs[i]...), append(mask, j.Mask[i]...)
	}
	seqs, err := model.Padded(ids, mask, len(j.IDs), len(ids)/max(1, len(j.IDs)))
	if err != nil {
		return a, err
	}
	for _, s := range seqs {
		a.Tokens += len(s.IDs)
	}
	f, err := os.Create(j.Out)
	if err != nil {
		return a, err
	}
	w := bufio.NewWriter(f)
	return a, errors.Join(j.write(w, m, seqs, &a), w.Flush(), f.Close())
}

func (j *job) write(w io.Writer, m *model.Model, seqs []model.Sequence, a *answer) error {
	last, err := model.Forward(context.Background(), m, seqs, model.RunOptions{}, func(_ int, h []float32) error {
		a.Hidden = append(a.Hidden, len(h)/a.Tokens)
		return binary.Write(w, binary.LittleEndian, h)
	})
	if err != nil || m.Spec().Head == nil {
		return err
	}
	p, err := m.Project()
	if err != nil {
		return err
	}
	a.Vocab = p.Vocab()
	picked := p.Picked(seqs)
	a.Rows = len(picked)
	return p.EachLogits(last, 1<<20, func(first int, l []float32) error {
		for _, k := range picked {
			if at := (k - first) * a.Vocab; at >= 0 && at < len(l) {
				if err := binary.Write(w, binary.LittleEndian, l[at:][:a.Vocab]); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
