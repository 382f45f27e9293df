// See rows.inl.
#include "kernels/cpu/simd/avx512.h"

#include "kernels/cpu/rows.inl"
