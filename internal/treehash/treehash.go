// Package treehash computes BLAKE3 digests of data whose pieces are seen in any
// order and on any number of goroutines. BLAKE3 is a Merkle tree over chunks of
// 1024 bytes (O'Connor, Aumasson, Neves, Wilcox-O'Hearn: "BLAKE3: one function,
// fast everywhere", section 2.1), so an aligned power-of-two piece is a subtree
// that can be hashed by itself; the pieces are joined at the end. The result is
// the plain BLAKE3-256 of the whole, as b3sum prints it.
package treehash

import (
	"encoding/hex"
	"fmt"
	"math/bits"
	"sync"

	"lukechampine.com/blake3/guts"
)

// Digest is a BLAKE3-256 digest.
type Digest [32]byte

// String is the digest in lower-case hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText and UnmarshalText make digests hexadecimal strings in JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads 64 hexadecimal digits.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) {
		return fmt.Errorf("digest %q: want 64 hexadecimal digits", text)
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// group is what the assembly of guts takes at once.
const group = guts.MaxSIMD * guts.ChunkSize

// Tree joins the pieces of one stream. All pieces but the last have the same
// power-of-two size of at least 1024 bytes. Methods may be called concurrently.
type Tree struct {
	size  int64 // of the stream
	piece int64
	mu    sync.Mutex
	cvs   [][8]uint32 // chaining value per piece
	last  guts.Node   // of the last piece, kept open because it may be the root
	seen  int
}

// New prepares to hash size bytes in pieces of piece bytes.
func New(size, piece int64) *Tree {
	if piece < guts.ChunkSize || bits.OnesCount64(uint64(piece)) != 1 {
		panic("treehash: internal error: piece size is not a power of two of at least 1024")
	}
	n := (size + piece - 1) / piece
	return &Tree{size: size, piece: piece, cvs: make([][8]uint32, max(n, 1))}
}

// Add hashes the piece that starts at byte off. It is the caller's duty to hand in
// every piece once.
func (t *Tree) Add(off int64, p []byte) {
	i := off / t.piece
	if off%t.piece != 0 || int64(len(p)) != min(t.piece, t.size-off) {
		panic("treehash: internal error: not a whole piece")
	}
	n := subtree(p, uint64(off/guts.ChunkSize))
	cv := guts.ChainingValue(n)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cvs[i] = cv
	t.seen++
	if i == int64(len(t.cvs))-1 {
		t.last = n
	}
}

// AddRange hashes p, which starts at off, a multiple of the piece size, and ends at
// a multiple of it or at the end of the stream.
func (t *Tree) AddRange(off int64, p []byte) {
	for len(p) > 0 {
		k := min(t.piece, int64(len(p)))
		t.Add(off, p[:k])
		off, p = off+k, p[k:]
	}
}

// Sum returns the digest. All pieces must have been added.
func (t *Tree) Sum() Digest {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.size == 0 {
		t.last, t.seen = subtree(nil, 0), 1
	}
	if t.seen != len(t.cvs) {
		panic(fmt.Sprintf("treehash: internal error: %d of %d pieces", t.seen, len(t.cvs)))
	}
	var s stack
	for _, cv := range t.cvs[:len(t.cvs)-1] {
		s.push(cv)
	}
	root := s.join(t.last)
	root.Flags |= guts.FlagRoot
	words := guts.CompressNode(root)
	b := guts.WordsToBytes(words)
	return Digest(b[:32])
}

// Sum hashes p whole.
func Sum(p []byte) Digest {
	t := New(int64(len(p)), 1<<16)
	t.AddRange(0, p)
	return t.Sum()
}

// stack holds the chaining values of complete subtrees of falling sizes: bit k of
// count says whether a subtree of 2^k units waits at level k.
type stack struct {
	level [64][8]uint32
	count uint64
}

func (s *stack) push(cv [8]uint32) {
	k := 0
	for ; s.count&(1<<k) != 0; k++ {
		cv = guts.ChainingValue(guts.ParentNode(s.level[k], cv, &guts.IV, 0))
	}
	s.level[k] = cv
	s.count++
}

// join hangs the last subtree under the waiting ones, smallest first.
func (s *stack) join(n guts.Node) guts.Node {
	for k := range bits.Len64(s.count) {
		if s.count&(1<<k) != 0 {
			n = guts.ParentNode(s.level[k], guts.ChainingValue(n), &guts.IV, 0)
		}
	}
	return n
}

// subtree is the node over p, whose first chunk has number counter.
func subtree(p []byte, counter uint64) guts.Node {
	var s stack
	for len(p) > group {
		s.push(guts.ChainingValue(guts.CompressBuffer((*[group]byte)(p), group, &guts.IV, counter, 0)))
		p, counter = p[group:], counter+guts.MaxSIMD
	}
	if len(p) == group {
		return s.join(guts.CompressBuffer((*[group]byte)(p), group, &guts.IV, counter, 0))
	}
	var buf [group]byte
	copy(buf[:], p)
	return s.join(guts.CompressBuffer(&buf, len(p), &guts.IV, counter, 0))
}
