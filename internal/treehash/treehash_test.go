package treehash

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"lukechampine.com/blake3"
)

func fill(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i % 251)
	}
	return p
}

// Every split into pieces, in any order, gives the digest of the whole.
func TestPiecesAgainstWhole(t *testing.T) {
	lens := []int{0, 1, 1023, 1024, 1025, 2048, 3000, 16383, 16384, 16385, 17 * 1024, 32768, 65536, 65537, 100_000, 1 << 18, 1<<18 + 1}
	r := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		lens = append(lens, r.IntN(1<<19))
	}
	for _, n := range lens {
		p := fill(n)
		want := Digest(blake3.Sum256(p))
		for _, piece := range []int{1024, 4096, 1 << 15, 1 << 16, 1 << 20} {
			tr := New(int64(n), int64(piece))
			for _, i := range r.Perm((n + piece - 1) / piece) {
				tr.Add(int64(i*piece), p[i*piece:min(n, (i+1)*piece)])
			}
			if got := tr.Sum(); got != want {
				t.Fatalf("%d bytes in pieces of %d: got %v, want %v", n, piece, got, want)
			}
		}
	}
}

// The first official test vector: the digest of no bytes.
func TestEmptyVector(t *testing.T) {
	const want = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
	if got := Sum(nil).String(); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

func TestDigestText(t *testing.T) {
	d := Sum([]byte("x"))
	text, _ := d.MarshalText()
	var back Digest
	if err := back.UnmarshalText(text); err != nil || back != d {
		t.Fatalf("got %v, %v", back, err)
	}
	for _, bad := range []string{"", "00", "zz" + d.String()[2:]} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken for a digest", bad)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	for _, kib := range []int{64, 1024} {
		b.Run(fmt.Sprintf("%dKiB", kib), func(b *testing.B) {
			p := fill(kib << 10)
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				New(int64(len(p)), int64(len(p))).Add(0, p)
			}
		})
	}
}
