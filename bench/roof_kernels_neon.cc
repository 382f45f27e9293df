// See roof_kernels.inl.
#include "kernels/cpu/simd/neon.h"

#include "bench/roof_kernels.inl"

namespace kvcache::bench::neon {

extern const RoofKernels kRoofKernels;
const RoofKernels kRoofKernels = {"neon", KVC_SIMD_BYTES * 8, read, fma, widen_f16, widen_bf16};

}  // namespace kvcache::bench::neon
