// See attention.inl.
#include "kernels/cpu/simd/avx512.h"

#include "kernels/cpu/attention.inl"
