package flash

import (
	"fmt"
	"math/bits"
)

// A BlockMask says which blocks of the matrix of scores exist: block (i, j) covers queries
// i*BlockQ to (i+1)*BlockQ-1 and keys j*BlockK to (j+1)*BlockK-1 of a sequence, counted
// from its start. It holds for every head and sequence of a call, and together with the
// other masks. Attention under it costs what the blocks that exist cost. It is immutable.
//
// Blocks of a multiple of 16 queries (8 with AVX2) use all lanes of the vectors.
type BlockMask struct {
	blockQ, blockK int
	rows, cols     int
	runs           [][]run // per block row, ascending, neither overlapping nor adjacent
	blocks         int
}

// run is the block columns from lo to hi-1.
type run struct{ lo, hi int }

// FromFunc makes the mask of sq queries and sk keys with the blocks that has tells.
func FromFunc(blockQ, blockK, sq, sk int, has func(i, j int) bool) *BlockMask {
	if blockQ < 1 || blockK < 1 || sq < 0 || sk < 0 {
		panic(fmt.Sprintf("flash: internal error: a mask of %dx%d in blocks of %dx%d", sq, sk, blockQ, blockK))
	}
	m := &BlockMask{blockQ: blockQ, blockK: blockK, rows: (sq + blockQ - 1) / blockQ, cols: (sk + blockK - 1) / blockK}
	m.runs = make([][]run, m.rows)
	for i := range m.runs {
		for j := range m.cols {
			if has(i, j) {
				m.add(i, j)
			}
		}
	}
	return m
}

// add appends a block to the end of a row.
func (m *BlockMask) add(i, j int) {
	m.blocks++
	if r := m.runs[i]; len(r) > 0 && r[len(r)-1].hi == j {
		r[len(r)-1].hi++
		return
	}
	m.runs[i] = append(m.runs[i], run{j, j + 1})
}

// FromBitmap makes the mask of the blocks that are true; all rows have the same length.
func FromBitmap(blockQ, blockK int, bitmap [][]bool) *BlockMask {
	cols := 0
	if len(bitmap) > 0 {
		cols = len(bitmap[0])
	}
	for i, row := range bitmap {
		if len(row) != cols {
			panic(fmt.Sprintf("flash: internal error: row %d of the bitmap has %d blocks, want %d", i, len(row), cols))
		}
	}
	return FromFunc(blockQ, blockK, len(bitmap)*blockQ, cols*blockK, func(i, j int) bool { return bitmap[i][j] })
}

// FromList makes the mask of the blocks (row, column) listed, in any order.
func FromList(blockQ, blockK, sq, sk int, blocks [][2]int) *BlockMask {
	set := make(map[[2]int]bool, len(blocks))
	for _, b := range blocks {
		if b[0] < 0 || b[1] < 0 || b[0]*blockQ >= sq || b[1]*blockK >= sk {
			panic(fmt.Sprintf("flash: internal error: block %v is outside of %dx%d", b, sq, sk))
		}
		set[b] = true
	}
	return FromFunc(blockQ, blockK, sq, sk, func(i, j int) bool { return set[[2]int{i, j}] })
}

// Butterfly has the diagonal and the blocks whose indices differ in one bit: the union of
// the factors of a butterfly matrix, the pattern of block-sparse FlashAttention (Dao et al.
// 2022, after "Pixelated Butterfly", arXiv 2112.00029). Every block reaches every other in
// log2(blocks) layers.
func Butterfly(block, sq, sk int) *BlockMask {
	return FromFunc(block, block, sq, sk, func(i, j int) bool { return bits.OnesCount(uint(i^j)) <= 1 })
}

// Local has the blocks at most radius away from the diagonal.
func Local(block, sq, sk, radius int) *BlockMask {
	return FromFunc(block, block, sq, sk, func(i, j int) bool { return near(i, j, radius) })
}

// Strided has the diagonal and every stride-th block from it on, to both sides (Child et
// al., "Sparse Transformers", arXiv 1904.10509, figure 3b, in blocks).
func Strided(block, sq, sk, stride int) *BlockMask {
	return FromFunc(block, block, sq, sk, func(i, j int) bool { return (i-j)%stride == 0 })
}

// GlobalLocal is Local, and the first global blocks see and are seen by all (Beltagy et
// al., "Longformer", arXiv 2004.05150).
func GlobalLocal(block, sq, sk, global, radius int) *BlockMask {
	return FromFunc(block, block, sq, sk, func(i, j int) bool { return i < global || j < global || near(i, j, radius) })
}

func near(i, j, radius int) bool { return i-j <= radius && j-i <= radius }

// Has tells whether query i may see key j.
func (m *BlockMask) Has(i, j int) bool {
	i, j = i/m.blockQ, j/m.blockK
	for _, r := range m.runs[i] {
		if r.lo <= j && j < r.hi {
			return true
		}
	}
	return false
}

// BlockSize is the number of queries and of keys of a block.
func (m *BlockMask) BlockSize() (queries, keys int) { return m.blockQ, m.blockK }

// Blocks is the number of rows and columns of blocks, whether they exist or not.
func (m *BlockMask) Blocks() (rows, columns int) { return m.rows, m.cols }

// AppendRow appends the columns of the blocks that exist in block row i, ascending.
func (m *BlockMask) AppendRow(columns []int, i int) []int {
	for _, r := range m.runs[i] {
		for j := r.lo; j < r.hi; j++ {
			columns = append(columns, j)
		}
	}
	return columns
}

// Density is the part of the blocks that exist.
func (m *BlockMask) Density() float64 {
	if m.rows*m.cols == 0 {
		return 0
	}
	return float64(m.blocks) / (float64(m.rows) * float64(m.cols))
}

// Covers tells whether the mask is large enough for sequences of sq queries and sk keys.
func (m *BlockMask) Covers(sq, sk int) bool {
	return m.rows*m.blockQ >= sq && m.cols*m.blockK >= sk
}

// Pairs counts the query-key pairs of a sequence of n tokens that the mask has; causal: of
// those with the key not after the query.
func (m *BlockMask) Pairs(n int, causal bool) int64 {
	var sum int64
	for q := range n {
		end := n
		if causal {
			end = q + 1
		}
		for _, r := range m.runs[q/m.blockQ] {
			sum += int64(max(0, min(end, r.hi*m.blockK)-r.lo*m.blockK))
		}
	}
	return sum
}
