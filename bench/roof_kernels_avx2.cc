// See roof_kernels.inl.
#include "kernels/cpu/simd/avx2.h"

#include "bench/roof_kernels.inl"

namespace kvcache::bench::avx2 {

extern const RoofKernels kRoofKernels;
const RoofKernels kRoofKernels = {"avx2", KVC_SIMD_BYTES * 8, read, fma, widen_f16, widen_bf16};

}  // namespace kvcache::bench::avx2
