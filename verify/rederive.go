package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// StageRederive is the stage that repeats the conversion. It runs only where
// [Options.Rederive] says how.
const StageRederive = "rederive"

// Rederived is what came of repeating the conversion that made the candidate.
type Rederived struct {
	Verb        string       `json:"verb"`    // quantize, dequantize or merge
	Tool        string       `json:"tool"`    // that made the candidate, with its version
	Sample      string       `json:"sample"`  // as asked for: all, a number of tensors or a share
	Seed        int64        `json:"seed"`    // of the sample
	Tensors     int          `json:"tensors"` // converted again
	Of          int          `json:"of"`      // that there are
	Bytes       int64        `json:"bytes"`   // compared
	Differences []Difference `json:"differences"`
}

// Difference is a tensor or a file that the conversion writes otherwise.
type Difference struct {
	File    string `json:"file"`
	Tensor  string `json:"tensor"`  // physical; empty: a file that holds no weights
	Element int64  `json:"element"` // the first that differs, flat, a nibble of packed codes; -1: all of it
	Bytes   int64  `json:"bytes"`   // how many bytes of the tensor differ; 0: it is missing or of another form
	Text    string `json:"text"`    // what was expected and found
}

// rederive is the fifth stage:
//
//	rederive.tensors       how many tensors were converted again
//	rederive.share         of all that there are
//	rederive.differences   how many tensors and files differ in one bit or more
func (r *Result) rederive(ctx context.Context, o Options) (notRun string, err error) {
	if o.Rederive == nil {
		return "not asked for", nil
	}
	d, err := o.Rederive(ctx)
	if err != nil {
		return "", err
	}
	r.Rederived = d
	r.count("rederive.tensors", float64(d.Tensors), int64(d.Of))
	r.count("rederive.share", float64(d.Tensors)/float64(d.Of), int64(d.Of))
	r.count("rederive.differences", float64(len(d.Differences)), int64(d.Tensors))
	return "", nil
}

// RederiveGates are the limits that repeating a conversion is held to: one tensor or more,
// and not one bit that differs.
func RederiveGates() []Gate {
	return []Gate{atLeast("rederive.tensors", none(), 1), atMost("rederive.differences", none(), 0)}
}

// A Sample says how many tensors of a checkpoint are converted again.
type Sample struct {
	text  string
	count int     // 0: by share
	share float64 // 1: all
	seed  int64
}

// ParseSample reads "all", a number of tensors such as "20", or a share such as "10%" or
// "0.1". Errors are of class fault.Usage.
func ParseSample(s string, seed int64) (Sample, error) {
	if s == "all" {
		return Sample{text: s, share: 1, seed: seed}, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 1 {
		return Sample{text: s, count: n, seed: seed}, nil
	}
	number, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(number, 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v > 0 && v <= 1) || strings.Contains(number, "%") || !percent && !strings.Contains(number, ".") {
		return Sample{}, fault.Usagef("sample %q: expected all, a number of tensors such as 20, or a share such as 10%% or 0.1", s)
	}
	return Sample{text: s, share: v, seed: seed}, nil
}

// String is the sample as it was asked for; Seed chooses among samples of one size.
func (s Sample) String() string { return s.text }

// Seed chooses among samples of one size.
func (s Sample) Seed() int64 { return s.seed }

// Choose picks names: those with the smallest BLAKE3-256 of the seed (8 bytes, little
// endian) and the name. A share is rounded up.
func (s Sample) Choose(names []string) map[string]bool {
	n := s.count
	if n == 0 {
		n = int(math.Ceil(s.share * float64(len(names))))
	}
	n = min(n, len(names))
	type keyed struct {
		name string
		key  treehash.Digest
	}
	list := make([]keyed, len(names))
	for i, name := range names {
		list[i] = keyed{name, treehash.Sum(append(binary.LittleEndian.AppendUint64(nil, uint64(s.seed)), name...))}
	}
	slices.SortFunc(list, func(a, b keyed) int { return bytes.Compare(a.key[:], b.key[:]) })
	out := map[string]bool{}
	for _, k := range list[:n] {
		out[k.name] = true
	}
	return out
}

// differing names what differs, with the place.
func (r *Result) differing() []string {
	out := []string{}
	if r.Rederived != nil {
		for i := range r.Rederived.Differences {
			out = append(out, r.Rederived.Differences[i].String())
		}
	}
	return out
}

// String is a difference on one line: file, tensor, element, what was found and expected.
func (d *Difference) String() string {
	s := d.File
	if d.Tensor != "" {
		s += ": " + d.Tensor
		if d.Element >= 0 {
			s += ": element " + strconv.FormatInt(d.Element, 10)
		}
	}
	s += ": " + d.Text
	if d.Bytes > 1 {
		s += " (" + strconv.FormatInt(d.Bytes, 10) + " bytes differ)"
	}
	return s
}
