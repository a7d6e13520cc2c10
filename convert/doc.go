// Package convert turns one checkpoint into another: it plans, then runs.
//
// # Plan
//
// [Quantize], [Dequantize] and [Merge] read headers and configuration only and return a
// [Plan]: pure data that can be printed, hashed and compared. A plan is a list of
// jobs. A job is one logical tensor and everything that becomes of it: where it
// is read, the steps it goes through, and the exact place of every output tensor.
// Whatever can be refused is refused here: shapes, dtypes, names, loaders that
// would disagree, too little memory. [Check] tells, without changing anything, whether
// what stands at the output's name lets the plan be run.
//
// # Run
//
// [Run] decides nothing. It walks the jobs in order, cuts each into chunks of
// [Schedule.ChunkElems] elements, and lets workers read, transform (by an
// [Engine]) and place them:
//
//	dispatcher -> chunks -> worker: read -> Transform.Chunk -> pwrite, digests
//	                        last chunk of a job: Transform.Finish -> journal
//
// Output bytes are a function of the job alone, never of chunking, thread count or
// engine. Memory is one set of buffers per worker plus, per job in flight, the
// absmax of its blocks, which the mean of double quantization needs whole.
//
// A merge adds the deltas of adapters to a chunk between reading and the engine, in
// float32; package lora defines the sum. Factors are in memory while their job is.
//
// # Files
//
// Output grows in OUT.partial, at offsets the plan fixed. OUT.partial.journal
// records every finished job with the digests of what was read and written; a later
// run with the same plan checks those digests and does only what is missing. At
// the end the headers are written, everything is synced, and OUT.partial takes the
// name OUT in one rename. An error of class fault.Input while running, such
// as a weight that is NaN, removes OUT.partial and the journal. docs/format.md describes the files.
package convert
