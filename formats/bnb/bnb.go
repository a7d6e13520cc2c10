// Package bnb is the bitsandbytes 4-bit checkpoint on disk (bitsandbytes 0.50,
// functional.py QuantState.as_dict and nn/modules.py Linear4bit), as transformers, vLLM
// and PEFT load it.
//
// A quantized weight P.weight of logical shape [out, in] with n = out*in elements and
// nb = ceil(n/blockSize) blocks, taken over the flattened matrix, is
//
//	P.weight                                 U8  [ceil(n/2), 1]   two codes a byte
//	P.weight.absmax                          F32 [nb]             scale of each block
//	P.weight.quant_map                       F32 [16]             the code book
//	P.weight.quant_state.bitsandbytes__nf4   U8  [len]            JSON, see QuantState
//
// and with double quantization absmax becomes codes of an 8-bit dynamic map:
//
//	P.weight.absmax                          U8  [nb]
//	P.weight.nested_absmax                   F32 [ceil(nb/256)]
//	P.weight.nested_quant_map                F32 [256]
//
// Byte j of the packed weight holds elements 2j and 2j+1:
//
//	bit   7 6 5 4   3 2 1 0
//	      element   element
//	        2j       2j+1
//
// An odd n leaves the last low nibble at the code of 0.0. This costs 4.5 bits a weight
// with blocks of 64, 4.127 with double quantization.
package bnb

import (
	"github.com/nf4conv/nf4conv/nf4"
)

// Suffixes of the tensors beside a packed weight, after the weight's own name.
const (
	AbsmaxSuffix         = ".absmax"
	QuantMapSuffix       = ".quant_map"
	NestedAbsmaxSuffix   = ".nested_absmax"
	NestedQuantMapSuffix = ".nested_quant_map"

	stateSuffix = ".quant_state.bitsandbytes__"
)

// StateSuffix is the suffix of the quant-state JSON.
func StateSuffix(t nf4.Type) string { return stateSuffix + t.String() }
