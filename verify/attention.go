package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/kernels/flash"
)

// Attention is a pattern of blocks of scores, for sequences of any length or, from a file,
// up to one.
type Attention struct {
	Name  string
	limit int // tokens it covers; 0: any number
	build func(tokens int) *flash.BlockMask
}

// attentionBlock is how many tokens a block has on each side unless it is said.
const attentionBlock = 64

// The limits of a pattern: blocks on a side, and bytes of a file.
const (
	maxAttentionBlocks = 1 << 12
	maxAttentionFile   = 64 << 20
	maxAttentionToken  = 1 << 20
)

// ParseAttention reads a pattern:
//
//	dense           all scores: nil
//	local:W         blocks at most W tokens, rounded up to blocks, from the diagonal
//	butterfly       the diagonal and blocks whose numbers differ in one bit
//	strided:N       the diagonal and every N-th block from it on
//	global:G+W      local:W, and the first G tokens, rounded up, see and are seen by all
//	FILE            a JSON file, see [ReadAttention]
//
// "@B" at the end makes blocks of B tokens; otherwise they have 64. Errors are of class
// fault.Usage for patterns and fault.Input for files.
func ParseAttention(s string) (*Attention, error) {
	name, size, sized := strings.Cut(s, "@")
	kind, value, _ := strings.Cut(name, ":")
	if kind == "dense" && name == s {
		return nil, nil
	}
	known := map[string]bool{"local": true, "butterfly": true, "strided": true, "global": true}
	if !known[kind] {
		return openAttention(s)
	}
	bad := fault.Usagef("attention %q: expected dense, local:W, butterfly, strided:N or global:G+W with numbers from 1 to %d, with @B for blocks of B tokens, or a file", s, maxAttentionToken)
	number := func(s string) (n int, ok bool) {
		n, err := strconv.Atoi(s)
		return n, err == nil && n >= 1 && n <= maxAttentionToken
	}
	block := attentionBlock
	if sized {
		var ok bool
		if block, ok = number(size); !ok {
			return nil, bad
		}
	}
	blocks := func(tokens int) int { return (tokens + block - 1) / block }
	a := &Attention{Name: fmt.Sprintf("%s, blocks of %d", name, block), limit: block * maxAttentionBlocks}
	n, ok := number(value)
	switch kind {
	case "butterfly":
		ok = name == kind
		a.build = func(t int) *flash.BlockMask { return flash.Butterfly(block, t, t) }
	case "local":
		a.build = func(t int) *flash.BlockMask { return flash.Local(block, t, t, blocks(n)) }
	case "strided":
		a.build = func(t int) *flash.BlockMask { return flash.Strided(block, t, t, n) }
	case "global":
		first, window, _ := strings.Cut(value, "+")
		g, ok1 := number(first)
		w, ok2 := number(window)
		ok = ok1 && ok2
		a.build = func(t int) *flash.BlockMask { return flash.GlobalLocal(block, t, t, blocks(g), blocks(w)) }
	}
	if !ok {
		return nil, bad
	}
	return a, nil
}

func openAttention(path string) (*Attention, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Usagef("attention %q: neither dense, local:W, butterfly, strided:N or global:G+W, nor a file that can be read: %w", path, err)
	}
	a, err := ReadAttention(f)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fault.IOf("%w", cerr)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the attention mask %q: %w", path, err)
	}
	a.Name = path + ", " + a.Name
	return a, nil
}

// ReadAttention reads a bitmap of blocks as JSON:
//
//	{"block": 64, "rows": ["100", "110", "101"]}
//
// Character j of row i is 1 where block (i, j) of the scores exists: queries i*block to
// (i+1)*block-1 against keys j*block to (j+1)*block-1. The bitmap is square. Every row must
// have a block on or before the diagonal, so that no token sees nothing. Errors are of
// class fault.Input.
func ReadAttention(r io.Reader) (*Attention, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxAttentionFile+1))
	if err != nil {
		return nil, fault.IOf("%w", err)
	}
	if len(raw) > maxAttentionFile {
		return nil, fault.Inputf("more than %d bytes", maxAttentionFile)
	}
	var file struct {
		Block int      `json:"block"`
		Rows  []string `json:"rows"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, fault.Inputf("expected {\"block\": N, \"rows\": [\"10\", \"11\"]}: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fault.Inputf("something follows the JSON object")
	}
	n := len(file.Rows)
	if file.Block < 1 || file.Block > maxAttentionToken || n < 1 || n > maxAttentionBlocks {
		return nil, fault.Inputf("%d rows of blocks of %d tokens; expected 1 to %d rows, blocks of 1 to %d", n, file.Block, maxAttentionBlocks, maxAttentionToken)
	}
	for i, row := range file.Rows {
		if len(row) != n || strings.Trim(row, "01") != "" {
			return nil, fault.Inputf("row %d: expected %d characters 0 and 1", i, n)
		}
		if !strings.Contains(row[:i+1], "1") {
			return nil, fault.Inputf("row %d has no block on or before the diagonal: its first token would see nothing", i)
		}
	}
	return &Attention{
		Name: fmt.Sprintf("blocks of %d", file.Block), limit: n * file.Block,
		build: func(t int) *flash.BlockMask {
			return flash.FromFunc(file.Block, file.Block, t, t, func(i, j int) bool { return file.Rows[i][j] == '1' })
		},
	}, nil
}

// Mask makes the blocks for the longest sequence of ids. Errors are of class fault.Input.
func (a *Attention) Mask(ids *IDs) (*flash.BlockMask, error) {
	longest := ids.longest()
	if longest > a.limit {
		return nil, fault.Inputf("attention %s covers %d tokens, and the longest sequence has %d", a.Name, a.limit, longest)
	}
	return a.build(longest), nil
}

func (ids *IDs) longest() int {
	n := 0
	for _, s := range ids.Sequences {
		n = max(n, len(s.IDs))
	}
	return n
}

// attention describes the candidate's attention and refuses a mask that is too small.
func (r *Result) attention(o *Options) error {
	r.Text.Attention, r.Text.Attended = "dense", 1
	if o.Mask == nil {
		return nil
	}
	r.Text.Attention, r.Text.Attended = o.Attention, Number(math.NaN())
	if o.Text == nil {
		return nil
	}
	if n := o.Text.longest(); !o.Mask.Covers(n, n) {
		return fault.Inputf("attention %s: the mask is too small for a sequence of %d tokens", o.Attention, n)
	}
	return nil
}

// attended is the share of the pairs of dense attention, causal or not, that the mask has.
func attended(ids *IDs, mask *flash.BlockMask, causal bool) float64 {
	byLength := map[int]int64{}
	var have, all int64
	for _, s := range ids.Sequences {
		n := len(s.IDs)
		if _, ok := byLength[n]; !ok {
			byLength[n] = mask.Pairs(n, causal)
		}
		have += byLength[n]
		if causal {
			all += int64(n) * int64(n+1) / 2
		} else {
			all += int64(n) * int64(n)
		}
	}
	return float64(have) / float64(all)
}
