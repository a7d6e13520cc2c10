// All kernels in one module: one image per architecture.
//
//	nvcc -ptx -arch=compute_90 --fmad=false --prec-div=true --prec-sqrt=true --ftz=false kernels.cu
//
// build.sh says how images are made of it.
#include "quantize.cu"
#include "dequantize.cu"
#include "convert.cu"
#include "finite.cu"
#include "doublequant.cu"
#include "probe.cu"
