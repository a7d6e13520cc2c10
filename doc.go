// Package nf4conv is the root of a toolchain that turns safetensors checkpoints
// into bitsandbytes 4-bit checkpoints. The binary is cmd/nf4conv.
//
// The route from the command line to the arithmetic:
//
//	cmd/nf4conv quantize SRC OUT           flags -> convert.QuantizeOptions
//	  formats/hf.Open                      headers, config.json, side files; no weights
//	  convert.Quantize -> convert.Plan     arch + formats/bnb decide what every tensor becomes
//	  convert.Run                          read chunk -> engine -> place chunk, journal, rename
//	    kernels/quant4, doublequant        the definition of the result
//
// merge takes the same route: formats/peft opens adapters, convert.Merge finds their
// tensors in the base, and lora adds between reading and the engine.
//
// docs/architecture.md explains the rooms, docs/format.md the files written.
package nf4conv
