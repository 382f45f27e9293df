// See roof_kernels.inl.
#include "kernels/cpu/simd/portable.h"

#include "bench/roof_kernels.inl"

namespace kvcache::bench::portable {

extern const RoofKernels kRoofKernels;
const RoofKernels kRoofKernels = {"portable", KVC_SIMD_BYTES * 8, read, fma, widen_f16, widen_bf16};

}  // namespace kvcache::bench::portable
