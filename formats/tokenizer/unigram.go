package tokenizer

import (
	"encoding/json"
	"slices"
	"unicode/utf8"
)

// unigram takes, of all ways to cut a word into tokens, the one with the highest sum
// of scores.
type unigram struct {
	ids      map[string]int32
	scores   []float64
	trie     *trie
	unk      int // -1: none, words with unknown characters are errors
	unkScore float64
	bytes    *[256]int // nil without byte_fallback
}

// unkPenalty is how much less than the worst token an unknown character counts.
const unkPenalty = 10

func buildUnigram(what string, raw json.RawMessage) (model, error) {
	var c struct {
		Type     string               `json:"type"`
		Unk      *int                 `json:"unk_id"`
		Vocab    *[][]json.RawMessage `json:"vocab"`
		Fallback bool                 `json:"byte_fallback"`
		Alpha    json.RawMessage      `json:"alpha"`
		NBest    json.RawMessage      `json:"nbest_size"`
	}
	if err := decode(what, raw, &c); err != nil {
		return nil, err
	}
	if c.Vocab == nil {
		return nil, refuse("%s: no vocab", what)
	}
	if !isNull(c.Alpha) || !isNull(c.NBest) {
		return nil, refuse("%s: alpha and nbest_size draw ids at random", what)
	}
	u := &unigram{ids: make(map[string]int32, len(*c.Vocab)), unk: -1}
	if c.Unk != nil {
		if u.unk = *c.Unk; u.unk < 0 || u.unk >= len(*c.Vocab) {
			return nil, refuse("%s: unk_id %d of %d tokens", what, u.unk, len(*c.Vocab))
		}
	}
	worst := 0.0
	for i, entry := range *c.Vocab {
		var token string
		var score float64
		if len(entry) != 2 || json.Unmarshal(entry[0], &token) != nil || json.Unmarshal(entry[1], &score) != nil {
			return nil, refuse("%s: entry %d of the vocab is not a token and its score", what, i)
		}
		u.ids[token] = int32(i) // of equal tokens, the last counts
		u.scores = append(u.scores, score)
		if i == 0 || score < worst {
			worst = score
		}
	}
	u.unkScore = worst - unkPenalty
	keys := make([]string, 0, len(u.ids))
	values := make([]int32, 0, len(u.ids))
	for k, v := range u.ids {
		keys, values = append(keys, k), append(values, v)
	}
	u.trie = newTrie(keys, values)
	if c.Fallback {
		ids := byteTokens(u.id)
		u.bytes = &ids
	}
	return u, nil
}

func (u *unigram) size() int { return len(u.scores) }

func (u *unigram) id(token string) (int, bool) {
	id, ok := u.ids[token]
	return int(id), ok
}

// ending is the best way to cut the text up to a place.
type ending struct {
	score float64
	from  int32 // where its last token begins; -1: no way yet
	id    int32
}

func (u *unigram) encode(dst []int, word string) ([]int, error) {
	best := make([]ending, len(word)+1)
	for i := range best {
		best[i].from = -1
	}
	for at := 0; at < len(word); {
		here := best[at].score
		_, size := utf8.DecodeRuneInString(word[at:])
		single := false
		offer := func(end int, id int32, score float64) {
			if b := &best[end]; b.from < 0 || score > b.score {
				*b = ending{score, int32(at), id}
			}
		}
		node := int32(0)
		for i := at; i < len(word); i++ {
			if node = u.trie.step(node, word[i]); node < 0 {
				break
			}
			if id := u.trie.value[node]; id >= 0 {
				offer(i+1, id, u.scores[id]+here)
				single = single || i+1 == at+size
			}
		}
		if !single {
			if u.unk < 0 {
				// Only an error if no better way exists already, as in tokenizers.
				if b := best[at+size]; b.from < 0 || u.unkScore+here > b.score {
					return nil, refuse("the character %q is not in the vocabulary, which has no unk_id", word[at:at+size])
				}
			} else {
				offer(at+size, int32(u.unk), u.unkScore+here)
			}
		}
		at += size
	}
	return u.tokens(dst, word, best)
}

// tokens follows the best way back. Unknown neighbours count as one token, which may
// itself be in the vocabulary.
func (u *unigram) tokens(dst []int, word string, best []ending) ([]int, error) {
	type span struct{ from, to int }
	var spans []span
	fused := false
	for end := len(word); end > 0; {
		b := best[end]
		unknown := u.unk >= 0 && int(b.id) == u.unk
		if unknown && fused {
			spans[len(spans)-1].from = int(b.from)
		} else {
			spans = append(spans, span{int(b.from), end})
		}
		fused = unknown
		end = int(b.from)
	}
	slices.Reverse(spans)
	for _, s := range spans {
		token := word[s.from:s.to]
		if id, ok := u.ids[token]; ok {
			dst = append(dst, int(id))
			continue
		}
		if u.bytes != nil {
			var ok bool
			if dst, ok = spelled(dst, token, u.bytes); ok {
				continue
			}
		}
		if u.unk < 0 {
			return nil, refuse("%q is not in the vocabulary, which has no unk_id", token)
		}
		dst = append(dst, u.unk)
	}
	return dst, nil
}
