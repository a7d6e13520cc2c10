package model

import (
	"slices"
	"strings"
)

// Pick is which tokens of a sequence a head looks at.
type Pick int

// The picks.
const (
	AllTokens  Pick = iota
	LastToken       // the last one that is not the padding token
	FirstToken      // which stands for the sequence in BERT's relatives
)

// Picked are the indices, among the tokens of all sequences, of those that the head looks at.
func (h *Head) Picked(sequences []Sequence) []int {
	var out []int
	at := 0
	for _, s := range sequences {
		switch h.Pick {
		case AllTokens:
			for i := range s.IDs {
				out = append(out, at+i)
			}
		case FirstToken:
			out = append(out, at)
		case LastToken:
			last := len(s.IDs) - 1
			for last > 0 && s.IDs[last] == h.Pad {
				last--
			}
			out = append(out, at+last)
		}
		at += len(s.IDs)
	}
	return out
}

// class takes the head off a base model, gives it the head of a classifier, and refuses
// classes with another one.
func (b *builder) class(name string) {
	ends := func(list ...string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.HasSuffix(name, s) })
	}
	switch {
	case ends("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration"):
	case ends("ForPreTraining"): // BERT: the second head, of sentence pairs, is left out
		b.spec.ignored = append(b.spec.ignored, "cls.seq_relationship.", "@pooler.")
	case ends("ForSequenceClassification"):
		b.sequenceHead(name)
	case ends("ForTokenClassification"):
		b.tokenHead(name, "classifier", b.labels())
	case ends("ForQuestionAnswering") && !b.spec.Causal:
		b.tokenHead(name, "qa_outputs", b.labels())
	case ends("Model"):
		b.spec.Head = nil
		b.spec.ignored = append(b.spec.ignored, "@pooler.")
	default:
		b.unknownClass(name)
	}
}

func (b *builder) unknownClass(name string) {
	b.fail("architectures %q: expected a class with the head of a language model or a classifier, or none", name)
}

// labels are those of id2label, which is two when nothing is said.
func (b *builder) labels() int {
	v, ok := b.get("id2label")
	if !ok {
		n := b.intOr(2, "num_labels")
		if n < 1 {
			b.fail("num_labels: expected a positive number, found %d", n)
		}
		return n
	}
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 {
		b.fail("id2label: expected an object, found %v", v)
		return 1
	}
	return len(m)
}

// headless is a head of a classifier without its parts.
func (b *builder) headless(out string, labels int, bias bool) *Head {
	b.at = ""
	h := &Head{Out: b.linear(out, b.spec.Hidden, labels, bias), Scale: 1, Labels: true, Pad: -1}
	if b.spec.Project != nil {
		h.Out.In = b.spec.Project.Out
	}
	b.at = "@"
	return h
}

// sequenceHead is that of a class that labels sequences: of decoders a matrix applied to the
// last token, of encoders a layer and a matrix applied to the first.
func (b *builder) sequenceHead(name string) {
	if b.spec.Causal {
		b.spec.Head = b.headless("score", b.labels(), false)
		b.spec.Head.Pick, b.spec.Head.Pad = LastToken, b.intOr(-1, "pad_token_id")
		return
	}
	only := func(prefix, layer string, act Activation, out string) {
		h := b.headless(out, b.labels(), true)
		h.Pick, h.Act = FirstToken, act
		h.Transform = &Linear{Weight: prefix + layer + ".weight", Bias: prefix + layer + ".bias", In: b.spec.Hidden, Out: b.spec.Hidden}
		b.spec.Head = h
	}
	switch b.spec.Type {
	case "bert":
		only("@", "pooler.dense", Tanh, "classifier")
	case "roberta", "xlm-roberta", "camembert":
		only("", "classifier.dense", Tanh, "classifier.out_proj")
	case "electra":
		only("", "classifier.dense", GELU, "classifier.out_proj")
	case "distilbert":
		only("", "pre_classifier", ReLU, "classifier")
	case "modernbert":
		b.only("classifier_pooling", "cls")
		b.modernClassifier(FirstToken)
	default:
		b.unknownClass(name)
	}
}

// tokenHead is that of a class that labels tokens: a matrix.
func (b *builder) tokenHead(name, out string, labels int) {
	switch b.spec.Type {
	case "modernbert":
		if out != "classifier" {
			b.unknownClass(name)
			return
		}
		b.modernClassifier(AllTokens)
		return
	case "gpt2", "gpt_bigcode", "gpt_neo", "bloom", "falcon", "gpt_neox":
	default:
		if b.spec.Causal {
			out = "score"
		}
	}
	b.spec.Head = b.headless(out, labels, true)
	b.spec.ignored = append(b.spec.ignored, "@pooler.")
}

// modernClassifier keeps the layer and the norm of the head of the language model.
func (b *builder) modernClassifier(pick Pick) {
	lm := b.spec.Head
	b.spec.Head = b.headless("classifier", b.labels(), true)
	b.spec.Head.Transform, b.spec.Head.Act, b.spec.Head.Norm, b.spec.Head.Pick = lm.Transform, lm.Act, lm.Norm, pick
}
