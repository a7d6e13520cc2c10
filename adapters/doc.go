// Package adapters makes LoRA adapters from checkpoints and from other adapters.
//
// [Extract] finds the adapter that turns one checkpoint into another: for every weight W
// of a linear layer the best B A of low rank for D = W(tuned) - W(base), taken in float32
// from the stored values, and everything that has no factors (norms, biases, embeddings, a
// vocabulary of another size) as replacements. package lora has the decomposition.
//
// [Combine] makes one adapter of several, or a smaller one of one, by any of PEFT's
// combination types: layer by layer of the factors, whose scales go into the result.
// What takes the place of tensors of the base is taken over or refused. docs/lora.md has
// the methods and where PEFT's results differ.
//
// # What is written
//
// A directory that PEFT loads (see formats/peft), float32 factors:
//
//	Linear [out, in]   D = L R     B = L, A = R
//	Conv1D [in, out]   D = L R     B = R^T, A = L^T
//
// lora_alpha equals r, here and for every layer of another rank in rank_pattern and
// alpha_pattern, so that the scaling is 1. Modules are named by their full paths in
// transformers 5, so that no other module is matched. nf4conv.json records the BLAKE3-256
// of every tensor of the base that the adapter is a difference to; merge compares them.
package adapters
