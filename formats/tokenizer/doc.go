// Package tokenizer turns text into token ids as a tokenizer.json of Hugging Face
// tokenizers says, and refuses the files it cannot follow to the letter.
//
// The pipeline, in the order of the tokenizers documentation ("The tokenization
// pipeline", https://huggingface.co/docs/tokenizers/pipeline; release 0.23):
//
//	text
//	  added tokens whose "normalized" is false are cut out, leftmost and longest first
//	  normalizer, on each stretch between them
//	  added tokens whose "normalized" is true are cut out, in their normalized form
//	  pre-tokenizer: the stretches become words
//	  model: each word becomes ids
//	  post-processor: ids such as beginning-of-sequence are put around them
//
// What is known:
//
//	normalizers      NFC NFD NFKC NFKD Lowercase Strip StripAccents Replace Prepend
//	                 BertNormalizer Nmt Precompiled ByteLevel Sequence
//	pre-tokenizers   ByteLevel Split Metaspace Digits Punctuation Whitespace
//	                 WhitespaceSplit BertPreTokenizer CharDelimiterSplit Sequence
//	models           BPE (byte fallback, fused unknowns, ignore_merges, prefixes and
//	                 suffixes), Unigram (Viterbi), WordPiece, WordLevel
//	post-processors  TemplateProcessing BertProcessing RobertaProcessing ByteLevel
//	                 Sequence
//
// Every other component, every unknown field of a known one, BPE with dropout and
// regular expressions outside the subset of parsePattern are errors of class
// fault.Input whose hint is to pass ids. "truncation" and "padding" of the file are
// not applied: they shape batches of a fixed length, and whoever evaluates a model
// cuts the ids himself. Decoders are not read.
//
// Regular expressions follow Oniguruma's Ruby syntax, which tokenizers compiles them
// with; https://github.com/kkos/oniguruma/blob/master/doc/RE. The matcher is our own:
// Go's regexp has no lookahead, and the exact meaning of \s, of (?i:...) and of
// {n,m}+ is what ids depend on. It backtracks over an explicit stack and counts its
// steps, so that a hostile pattern ends in an error, at a count that does not depend
// on the machine.
//
// Unicode: the release of the Unicode tables differs between Go, Oniguruma and the
// crates of tokenizers. Encode refuses characters that Go's tables do not have (but
// for private use), as their class cannot be known here, and, where BERT's components or
// Punctuation or StripAccents are used, those of newer.go, which their older tables class
// differently.
//
// BPE is Sennrich et al. 2016 (https://aclanthology.org/P16-1162), Unigram is
// Kudo 2018 (https://aclanthology.org/P18-1007), WordPiece is the greedy matching of
// BERT (https://github.com/google-research/bert/blob/master/tokenization.py).
package tokenizer
