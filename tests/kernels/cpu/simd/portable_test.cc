// See simd_test.inl.
#include "kernels/cpu/simd/portable.h"

#define KVC_SIMD_SUITE SimdPortable
#include "kernels/cpu/simd/simd_test.inl"
