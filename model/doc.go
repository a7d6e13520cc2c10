// Package model computes the forward pass of transformers from a checkpoint, exactly as
// their definition has it, in float32: the reference side and the quantized side of a
// verification.
//
// # Walk
//
// A [Model] is a [Spec], an architecture as data made of parts, bound to the tensors of a
// checkpoint. [Forward] goes through it layer by layer and takes all sequences through a
// layer before it reads the next one:
//
//	embed                   rows of the tables, for the tokens that occur
//	for every layer         read its weights; all sequences, some thousand tokens at a time;
//	                        forget the weights; call the observer
//	final norm
//	head                    logits of some tokens at a time, of the whole vocabulary
//	                        (Projection) or of a part of it (Slices)
//
// Memory is therefore the weights of one layer, as they are stored, the residual stream of
// all tokens (4 bytes x tokens x hidden size), and the scratch of a few thousand tokens.
// [Pass] is the same walk one step at a time, for two models side by side.
//
// # Parts
//
// One small file each: embedding, norms (RMSNorm, LayerNorm), rotary positions of every
// kind, attention with its projections, gated and plain feed-forward blocks, mixtures of
// experts, head. x is a row vector of the residual stream, W a matrix [out, in], as torch
// stores it, so that a linear layer is x W^T + b. A layer is wired in one of three ways:
//
//	sequential   x += c*n2(attn(n1(x)));   x += c*n4(mlp(n3(x)))     any n may be absent
//	parallel     x += attn(n1(x)) + mlp(n3(x))                       n3 may be n1
//	post-norm    x = n2(x + attn(x));      x = n4(x + mlp(x))
//
// # Sequences
//
// Sequences are packed: padding does not exist. A [Sequence] says how many columns of
// padding stood before it, because learned positions count them when transformers is
// called without position ids, and how wide the padded row was, which ropes whose
// frequencies depend on the length look at.
//
// # Weights
//
// Matrices stay in the format they are stored in and are widened in cache (package gemm).
// 4-bit ones are held for one layer in the 16-bit format that their consumers compute
// with, so that the values are theirs to the bit. [Options.LowRank] adds an adapter
// without merging it: W x + s B A x.
//
// # Results
//
// Numbers depend on the CPU tier and the sequence alone: not on threads, nor on the other
// sequences of a batch. Sums are float32, as in torch, in another order; functions are
// computed in float64 and rounded.
//
// # What cannot be computed is refused
//
// An architecture that has no entry in the table, an option with another value than those
// implemented, a tensor that no part uses, a missing or misshapen one: each is an error of
// class fault.Input that names it. Nothing is approximated.
//
// Sources: transformers 5.23 (models/*/modeling_*.py, modeling_rope_utils.py), and the
// papers named at the parts.
package model
