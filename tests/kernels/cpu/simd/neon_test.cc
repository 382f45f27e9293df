// See simd_test.inl.
#if KVC_ARM64
#include "kernels/cpu/simd/neon.h"

#define KVC_SIMD_SUITE SimdNeon
#include "kernels/cpu/simd/simd_test.inl"
#endif
