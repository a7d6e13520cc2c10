// Package attention is the forward pass of softmax attention on a CUDA device: what package
// flash computes, on tensors in device memory that are stored as binary16 or bfloat16.
//
// # Definition
//
// Scores, masks, the softmax and lse are those of package flash: bottom-right aligned
// causal masks and windows, groups of query heads that share a key head, sequences of
// different lengths one after the other, softcapping, block masks; a query that sees no
// key gives exactly 0 and lse = -Inf. ALiBi slopes, sinks and values of another dimension
// than keys are not offered.
//
// Products and sums are float32. Probabilities are rounded to the storage format for the
// product with the values, and so is the result, once: the error is that of textbook
// attention in the storage format or less, and lse is as exact as float32 makes it. Bits
// depend on the kernel, on shapes and masks, and are the same every time.
//
// # Kernels
//
// Compute capability 8.0 or newer is needed; kernels/cuda/src/flash_sm80.cu is the kernel
// and has the tiles. No memory is used beside the tensors. Head dimensions are multiples of
// 8 up to 256. Kernels are compiled for 64, 96, 128 and 256, and others cost what the next
// of these costs. Blocks of a mask are multiples of 128 queries and keys.
//
// # Calls
//
// [Kernels.Forward] queues a launch on a stream and returns; the tensors, [Sequences] and
// [Mask] must stay until it is done. Sequences and masks lie in device memory and are made
// once for many calls.
package attention
