package quant4

import (
	"encoding/binary"
	"math"

	"github.com/nf4conv/nf4conv/kernels"
	"github.com/nf4conv/nf4conv/kernels/cast"
)

const (
	// tiny is the least divisor: the reciprocal of a smaller number could overflow.
	tiny = 1e-38
	// chunk is how many elements are widened at a time: few enough to stay in the
	// first-level cache. Even, as block sizes are.
	chunk = 64

	infBits = 0x7f800000
)

func quantizeGeneric(packed []byte, absmax []float32, src []byte, from kernels.Float, blockSize int, book *Codebook) {
	t := book.table()
	size := from.Size() * blockSize
	for b := range absmax {
		if len(src) < size {
			absmax[b] = quantizeShort(packed, src, from, book)
			return
		}
		x, p := src[:size], packed[:blockSize/2]
		src, packed = src[size:], packed[blockSize/2:]
		bits := maxMagnitude(x, from)
		a := math.Float32frombits(bits)
		absmax[b] = a
		switch {
		case bits >= infBits || !t.exact:
			quantizeByRank(p, x, from, book, func(v float32) float32 { return v * reciprocal(a) })
		case from == kernels.BF16:
			quantizeBF16(p, x, reciprocal(a), t)
		default:
			quantizeWide(p, x, from, reciprocal(a), t)
		}
	}
}

// reciprocal is 1/max(a, tiny). NaN stays NaN.
func reciprocal(a float32) float32 { return 1 / max(a, tiny) }

// quantizeBF16 quantizes a full block of bfloat16.
func quantizeBF16(packed []byte, x []byte, r float32, t *cellTable) {
	for len(x) >= 8 && len(packed) >= 2 {
		v := binary.LittleEndian.Uint64(x)
		c0 := t.code(math.Float32frombits(uint32(v)<<16) * r)
		c1 := t.code(math.Float32frombits(uint32(v)&0xffff0000) * r)
		c2 := t.code(math.Float32frombits(uint32(v>>32)<<16) * r)
		c3 := t.code(math.Float32frombits(uint32(v>>32)&0xffff0000) * r)
		packed[0], packed[1] = c0<<4|c1, c2<<4|c3
		x, packed = x[8:], packed[2:]
	}
	if len(x) >= 4 { // the block size is not a multiple of four
		v := binary.LittleEndian.Uint32(x)
		packed[0] = t.code(math.Float32frombits(v<<16)*r)<<4 | t.code(math.Float32frombits(v&0xffff0000)*r)
	}
}

// quantizeWide quantizes a full block of any format, through float32.
func quantizeWide(packed []byte, x []byte, from kernels.Float, r float32, t *cellTable) {
	var buf [chunk]float32
	for size := from.Size(); len(x) > 0; {
		k := min(chunk, len(x)/size)
		w, p := buf[:k], packed[:k/2]
		cast.ToF32(w, x[:k*size], from)
		for i := range p {
			pair := w[2*i : 2*i+2 : 2*i+2]
			p[i] = t.code(pair[0]*r)<<4 | t.code(pair[1]*r)
		}
		x, packed = x[k*size:], packed[k/2:]
	}
}

// quantizeShort quantizes the short block at the end of a tensor and returns its scale.
func quantizeShort(packed []byte, x []byte, from kernels.Float, book *Codebook) float32 {
	a := max(math.Float32frombits(maxMagnitude(x, from)), tiny)
	quantizeByRank(packed, x, from, book, func(v float32) float32 { return v / a })
	return a
}

// quantizeByRank is the slow way, for what is rare: it scales and ranks every element by
// the definition.
func quantizeByRank(packed []byte, x []byte, from kernels.Float, book *Codebook, scaled func(float32) float32) {
	var pair [2]float32
	size := from.Size()
	for i := range packed {
		k := min(2, len(x)/size)
		cast.ToF32(pair[:k], x[:k*size], from)
		hi := book.ByRank[rank(scaled(pair[0]), book)]
		lo := book.ByRank[rank(0, book)]
		if k == 2 {
			lo = book.ByRank[rank(scaled(pair[1]), book)]
		}
		packed[i] = hi<<4 | lo
		x = x[k*size:]
	}
}

// rank counts the thresholds below v; NaN is above all.
func rank(v float32, book *Codebook) int {
	r := 0
	for _, t := range book.Thresholds {
		if !(v <= t) {
			r++
		}
	}
	return r
}

// maxMagnitude is the largest |x| as float32 bits. Magnitudes are compared as integers,
// which orders them as the numbers are, with NaN on top.
func maxMagnitude(x []byte, from kernels.Float) uint32 {
	switch from {
	case kernels.BF16:
		return uint32(maxMagnitude16(x)) << 16
	case kernels.F16:
		var b [2]byte
		var f [1]float32
		binary.LittleEndian.PutUint16(b[:], maxMagnitude16(x))
		cast.ToF32(f[:], b[:], kernels.F16)
		return math.Float32bits(f[0])
	}
	var m0, m1 uint32
	for ; len(x) >= 8; x = x[8:] {
		v := binary.LittleEndian.Uint64(x)
		m0 = max(m0, uint32(v)&^(1<<31))
		m1 = max(m1, uint32(v>>32)&^(1<<31))
	}
	if len(x) >= 4 {
		m0 = max(m0, binary.LittleEndian.Uint32(x)&^(1<<31))
	}
	return max(m0, m1)
}

// maxMagnitude16 finds the maximum of 16-bit magnitudes, four at a time.
func maxMagnitude16(x []byte) uint16 {
	const magnitudes = 0x7fff7fff7fff7fff
	var m, n uint64
	for ; len(x) >= 16; x = x[16:] {
		m = max16x4(m, binary.LittleEndian.Uint64(x)&magnitudes)
		n = max16x4(n, binary.LittleEndian.Uint64(x[8:])&magnitudes)
	}
	m = max16x4(m, n)
	for ; len(x) >= 2; x = x[2:] {
		m = max16x4(m, uint64(binary.LittleEndian.Uint16(x))&magnitudes)
	}
	m = max16x4(m, m>>32)
	return uint16(max16x4(m, m>>16))
}

// max16x4 is the maximum of a and b in each of four 16-bit lanes of at most 0x7fff.
func max16x4(a, b uint64) uint64 {
	const signs = 0x8000800080008000
	ge := (a | signs) - b&^signs // the sign of a lane stays where a >= b
	ge &= signs
	keep := ge - ge>>15 // 0x7fff in those lanes
	return a&keep | b&^keep&^signs
}

func dequantizeGeneric(dst []byte, to kernels.Float, packed []byte, absmax []float32, blockSize int, book *Codebook) {
	if to == kernels.F32 {
		dequantizeWide(dst, packed, absmax, blockSize, book)
		return
	}
	// A block has 16 different values: each is multiplied and rounded once.
	var values [16]float32
	var bytes [32]byte
	var halves [16]uint16
	for _, a := range absmax {
		scaleLevels(&values, a, book)
		cast.FromF32(bytes[:], values[:], to)
		for i := range halves {
			halves[i] = binary.LittleEndian.Uint16(bytes[2*i:])
		}
		n := min(blockSize, len(dst)/2)
		out, p := dst[:2*n], packed[:n/2]
		for i, c := range p {
			binary.LittleEndian.PutUint32(out[4*i:4*i+4], uint32(halves[c>>4])|uint32(halves[c&15])<<16)
		}
		if n%2 != 0 {
			binary.LittleEndian.PutUint16(out[2*n-2:], halves[packed[n/2]>>4])
		}
		dst, packed = dst[2*n:], packed[n/2:]
	}
}

// dequantizeWide is dequantizeGeneric for float32.
func dequantizeWide(dst []byte, packed []byte, absmax []float32, blockSize int, book *Codebook) {
	var values [16]float32
	for _, a := range absmax {
		scaleLevels(&values, a, book)
		n := min(blockSize, len(dst)/4)
		out, p := dst[:4*n], packed[:n/2]
		for i, c := range p {
			binary.LittleEndian.PutUint64(out[8*i:8*i+8],
				uint64(math.Float32bits(values[c>>4]))|uint64(math.Float32bits(values[c&15]))<<32)
		}
		if n%2 != 0 {
			binary.LittleEndian.PutUint32(out[4*n-4:], math.Float32bits(values[packed[n/2]>>4]))
		}
		dst, packed = dst[4*n:], packed[n/2:]
	}
}

func dequantizeF32Generic(dst []float32, packed []byte, absmax []float32, blockSize int, book *Codebook) {
	var values [16]float32
	for _, a := range absmax {
		scaleLevels(&values, a, book)
		n := min(blockSize, len(dst))
		out, p := dst[:n], packed[:n/2]
		for i, c := range p {
			pair := out[2*i : 2*i+2 : 2*i+2]
			pair[0], pair[1] = values[c>>4], values[c&15]
		}
		if n%2 != 0 {
			out[n-1] = values[packed[n/2]>>4]
		}
		dst, packed = dst[n:], packed[n/2:]
	}
}

func scaleLevels(values *[16]float32, a float32, book *Codebook) {
	for i, level := range &book.Levels {
		values[i] = level * a
	}
}

func blockMomentsGeneric(src []byte, from kernels.Float, packed []byte, book *Codebook) Moments {
	var xx, xq, qq [8]float64
	var buf [chunk]float32
	size := from.Size()
	for len(src) > 0 {
		x := buf[:min(chunk, len(src)/size)]
		cast.ToF32(x, src[:len(x)*size], from)
		for i, v := range x {
			c := packed[i/2] >> 4
			if i%2 != 0 {
				c = packed[i/2] & 15
			}
			v, q := float64(v), float64(book.Levels[c])
			xx[i%8] += v * v
			xq[i%8] += v * q
			qq[i%8] += q * q
		}
		src, packed = src[len(x)*size:], packed[len(x)/2:]
	}
	return Moments{fold(&xx), fold(&xq), fold(&qq)}
}

func fold(acc *[8]float64) float64 {
	for half := 4; half > 0; half /= 2 {
		for j := range half {
			acc[j] += acc[half+j]
		}
	}
	return acc[0]
}
