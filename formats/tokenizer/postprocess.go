package tokenizer

import (
	"encoding/json"
)

// around are the ids that the post-processor puts before and after the text.
type around struct{ before, after []int }

func (a around) empty() bool { return len(a.before)+len(a.after) == 0 }

// tokenID is ["token", id].
type tokenID []json.RawMessage

func (t tokenID) id(what string) (int, error) {
	var name string
	var id int
	if len(t) != 2 || json.Unmarshal(t[0], &name) != nil || json.Unmarshal(t[1], &id) != nil || id < 0 {
		return 0, refuse("%s: sep and cls are a token and its id", what)
	}
	return id, nil
}

func buildPostProcessor(what string, raw json.RawMessage, depth int) (around, error) {
	kind, err := typeOf(what, raw)
	if err != nil {
		return around{}, err
	}
	what += " " + kind
	switch kind {
	case "Sequence":
		var c struct {
			Type  string            `json:"type"`
			Parts []json.RawMessage `json:"processors"`
		}
		if err := decode(what, raw, &c); err != nil {
			return around{}, err
		}
		list, err := sequence(what, c.Parts, depth, buildPostProcessor)
		if err != nil {
			return around{}, err
		}
		var out around
		for _, a := range list {
			if !a.empty() && !out.empty() {
				return around{}, refuse("%s: two processors that add ids", what)
			}
			if out.empty() {
				out = a
			}
		}
		return out, nil
	case "ByteLevel":
		var c struct {
			Type   string `json:"type"`
			Prefix bool   `json:"add_prefix_space"`
			Trim   bool   `json:"trim_offsets"`
			Regex  bool   `json:"use_regex"`
		}
		return around{}, decode(what, raw, &c) // it changes offsets only
	case "BertProcessing", "RobertaProcessing":
		var c struct {
			Type   string  `json:"type"`
			Sep    tokenID `json:"sep"`
			Cls    tokenID `json:"cls"`
			Trim   bool    `json:"trim_offsets"`
			Prefix bool    `json:"add_prefix_space"`
		}
		if err := decode(what, raw, &c); err != nil {
			return around{}, err
		}
		cls, err := c.Cls.id(what)
		if err != nil {
			return around{}, err
		}
		sep, err := c.Sep.id(what)
		return around{[]int{cls}, []int{sep}}, err
	case "TemplateProcessing":
		return buildTemplate(what, raw)
	}
	return around{}, refuse("%s is not known", what)
}

// piece is a part of a template: one of the two.
type piece struct {
	Sequence *struct {
		ID     string `json:"id"`
		TypeID int    `json:"type_id"`
	}
	SpecialToken *struct {
		ID     string `json:"id"`
		TypeID int    `json:"type_id"`
	}
}

func buildTemplate(what string, raw json.RawMessage) (around, error) {
	var c struct {
		Type    string          `json:"type"`
		Single  []piece         `json:"single"`
		Pair    json.RawMessage `json:"pair"` // for two texts, which are not encoded here
		Special map[string]struct {
			ID     string   `json:"id"`
			IDs    []int    `json:"ids"`
			Tokens []string `json:"tokens"`
		} `json:"special_tokens"`
	}
	var out around
	if err := decode(what, raw, &c); err != nil {
		return out, err
	}
	seen := false
	for _, p := range c.Single {
		switch {
		case p.Sequence != nil && p.SpecialToken == nil:
			if seen || p.Sequence.ID != "A" {
				return out, refuse("%s: single is not the text A once", what)
			}
			seen = true
		case p.SpecialToken != nil && p.Sequence == nil:
			token, ok := c.Special[p.SpecialToken.ID]
			if !ok {
				return out, refuse("%s: %q is not among special_tokens", what, p.SpecialToken.ID)
			}
			for _, id := range token.IDs {
				if id < 0 {
					return out, refuse("%s: %q has the id %d", what, p.SpecialToken.ID, id)
				}
			}
			if seen {
				out.after = append(out.after, token.IDs...)
			} else {
				out.before = append(out.before, token.IDs...)
			}
		default:
			return out, refuse("%s: a piece is a Sequence or a SpecialToken", what)
		}
	}
	if !seen {
		return out, refuse("%s: single is not the text A once", what)
	}
	return out, nil
}
