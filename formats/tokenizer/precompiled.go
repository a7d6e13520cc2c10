package tokenizer

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// precompiled is SentencePiece's character map: a double-array trie (darts-clone,
// https://github.com/s-yata/darts-clone) from byte strings to offsets into
// replacements that end with a zero byte.
//
//	bytes 0-3       n, the size of the trie in bytes, little endian
//	bytes 4..4+n    units of 4 bytes, little endian
//	the rest        replacements
//
// A unit: bits 0-7 and 31 label, bit 8 has a leaf, bit 9 the offset is in units of
// 256, bits 10-31 offset; of a leaf, bits 0-30 the value.
type precompiled struct {
	units  []uint32
	values string
}

func unitOffset(u uint32) uint32 { return u >> 10 << (u & (1 << 9) >> 6) }

// lookup returns the replacement of the shortest prefix of s in the trie. tokenizers
// replaces the whole of s by it, and ids must equal its ids.
func (p *precompiled) lookup(s string) (string, bool) {
	node := unitOffset(p.units[0])
	for i := 0; i < len(s) && s[i] != 0; i++ {
		node ^= uint32(s[i])
		if node >= uint32(len(p.units)) {
			return "", false
		}
		u := p.units[node]
		if u&(1<<31|0xFF) != uint32(s[i]) {
			return "", false
		}
		node ^= unitOffset(u)
		if u>>8&1 == 1 {
			if node >= uint32(len(p.units)) {
				return "", false
			}
			v := p.units[node] & (1<<31 - 1)
			if v > uint32(len(p.values)) {
				return "", false
			}
			text := p.values[v:]
			if end := strings.IndexByte(text, 0); end >= 0 {
				text = text[:end]
			}
			return text, true
		}
	}
	return "", false
}

// maxCluster is the size in bytes from which a grapheme cluster is looked up
// character by character only.
const maxCluster = 6

func (p *precompiled) normalize(_ *machine, s stretch) (stretch, error) {
	var b strings.Builder
	rest, state := s.text, -1
	for rest != "" {
		var cluster string
		if len(rest) > 1 && rest[0] < utf8.RuneSelf && rest[0] != '\r' && rest[1] < utf8.RuneSelf {
			cluster, rest, state = rest[:1], rest[1:], -1
		} else {
			cluster, rest, _, state = uniseg.FirstGraphemeClusterInString(rest, state)
		}
		if len(cluster) < maxCluster {
			if text, ok := p.lookup(cluster); ok {
				b.WriteString(text)
				continue
			}
		}
		for _, r := range cluster {
			c := string(r)
			if text, ok := p.lookup(c); ok {
				c = text
			}
			b.WriteString(c)
		}
	}
	return stretch{b.String(), s.first}, nil
}

func buildPrecompiled(what string, raw json.RawMessage) (normalizer, error) {
	var c struct {
		Type string  `json:"type"`
		Map  *string `json:"precompiled_charsmap"`
	}
	if err := decode(what, raw, &c); err != nil {
		return nil, err
	}
	if c.Map == nil {
		return nil, refuse("%s: no precompiled_charsmap", what)
	}
	blob, err := base64.StdEncoding.DecodeString(*c.Map)
	if err != nil {
		return nil, refuse("%s: precompiled_charsmap: %w", what, err)
	}
	if len(blob) < 8 {
		return nil, refuse("%s: precompiled_charsmap of %d bytes", what, len(blob))
	}
	n := binary.LittleEndian.Uint32(blob)
	if n < 4 || n%4 != 0 || uint64(n) > uint64(len(blob)-4) {
		return nil, refuse("%s: a trie of %d bytes in %d", what, n, len(blob))
	}
	p := &precompiled{units: make([]uint32, n/4), values: string(blob[4+n:])}
	for i := range p.units {
		p.units[i] = binary.LittleEndian.Uint32(blob[4+4*i:])
	}
	if !utf8.ValidString(p.values) {
		return nil, refuse("%s: replacements that are not UTF-8", what)
	}
	return p, nil
}
