package tokenizer

import (
	"slices"
	"sort"
)

// trie maps byte strings to numbers and finds those that begin a text.
type trie struct {
	first []int32 // per node, where its edges begin; they end where the next node's begin
	value []int32 // per node, -1 for none
	label []byte  // per edge
	child []int32 // per edge
	root  [256]int32
}

// newTrie needs keys without duplicates; the empty key is left out.
func newTrie(keys []string, values []int32) *trie {
	order := make([]int, 0, len(keys))
	for i, k := range keys {
		if k != "" {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		switch {
		case keys[a] < keys[b]:
			return -1
		case keys[a] > keys[b]:
			return 1
		}
		return 0
	})
	type span struct{ lo, hi, depth int }
	t := &trie{}
	queue := []span{{0, len(order), 0}}
	for n := 0; n < len(queue); n++ { // breadth first: the edges of a node are together
		s := queue[n]
		t.first = append(t.first, int32(len(t.label)))
		value := int32(-1)
		if s.lo < s.hi && len(keys[order[s.lo]]) == s.depth {
			value = values[order[s.lo]]
			s.lo++
		}
		t.value = append(t.value, value)
		for s.lo < s.hi {
			b := keys[order[s.lo]][s.depth]
			end := s.lo + sort.Search(s.hi-s.lo, func(i int) bool { return keys[order[s.lo+i]][s.depth] > b })
			t.label = append(t.label, b)
			t.child = append(t.child, int32(len(queue)))
			queue = append(queue, span{s.lo, end, s.depth + 1})
			s.lo = end
		}
	}
	t.first = append(t.first, int32(len(t.label)))
	for b := range t.root {
		t.root[b] = -1
	}
	for e := t.first[0]; e < t.first[1]; e++ {
		t.root[t.label[e]] = t.child[e]
	}
	return t
}

// step follows the edge b of a node; -1 where there is none.
func (t *trie) step(node int32, b byte) int32 {
	if node == 0 {
		return t.root[b]
	}
	lo, hi := t.first[node], t.first[node+1]
	for lo < hi {
		mid := (lo + hi) / 2
		switch l := t.label[mid]; {
		case l == b:
			return t.child[mid]
		case l < b:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return -1
}

// longest returns the value and the length of the longest key that begins s.
func (t *trie) longest(s string) (value int32, length int) {
	value = -1
	node := int32(0)
	for i := 0; i < len(s); i++ {
		if node = t.step(node, s[i]); node < 0 {
			break
		}
		if v := t.value[node]; v >= 0 {
			value, length = v, i+1
		}
	}
	return value, length
}
