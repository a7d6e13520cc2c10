// Package verify measures what a conversion did to a model, from cheap to thorough, and
// judges it.
//
// # Stages
//
//	container   the tensors of the base are there in the right shapes, config.json agrees
//	            with them, simulated loaders expect 4 bits where they are
//	weights     every tensor against the base's: error, gain, and for 4-bit ones the error
//	            that quantizing the base's tensor gives, and whether quantizing what is
//	            stored once more changes it
//	layers      the residual stream of both models after every layer
//	logits      the distributions over the next token: divergence, perplexity
//	rederive    the conversion that made the candidate, repeated: the same bytes or not
//
// Both models are computed side by side, one layer at a time over all sequences (package
// model), in float32. Memory is one layer of either, two residual streams of 4 bytes x tokens
// x hidden size each, 4096 rows of both heads, and some 200 bytes for every token.
// [Options].Memory caps it.
//
// # What is run
//
// [Tokenize] makes token ids of a text, [ParseAttention] block masks, [Unmerged] the low-rank
// part of an adapter that a model runs with.
//
// # Figures
//
// Run returns a [Result], which is data. Its figures have names (docs/verify.md lists them):
//
//	kld.mean ...      one figure of the run, package metric has the definitions
//	fourbit.NAME      one of every tensor that is 4-bit in the candidate
//	kept.NAME         one of every tensor that is not
//	layer.NAME        one of every layer
//
// # Gates
//
// A [Policy] is limits of figures. [Policy.Judge] is a pure function of a result. What was
// not measured, is not a number, or has no samples does not pass.
//
// # Same numbers everywhere
//
// Figures of tokens and rows are computed on all threads, each by itself, and added up in
// their order on one: results do not depend on the number of threads. They depend on the
// CPU tier in the last digits, because sums of matrix products do.
package verify
