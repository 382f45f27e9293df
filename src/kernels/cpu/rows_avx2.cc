// See rows.inl.
#include "kernels/cpu/simd/avx2.h"

#include "kernels/cpu/rows.inl"
