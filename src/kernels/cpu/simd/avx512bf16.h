// SIMD for x86-64 with AVX-512 F, BW, VL and BF16. Include it in files compiled with those flags
// only.
#ifndef KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512BF16_H_
#define KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512BF16_H_

#define KVC_SIMD avx512bf16
#define KVC_SIMD_DOT 1

#include "kernels/cpu/simd/avx512.h"

namespace kvcache::internal::KVC_SIMD {

KVC_SIMD_FN F32 dot_bf16(F32 sum, U32 a, U32 b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

}  // namespace kvcache::internal::KVC_SIMD

#endif  // KVCACHE_SRC_KERNELS_CPU_SIMD_AVX512BF16_H_
