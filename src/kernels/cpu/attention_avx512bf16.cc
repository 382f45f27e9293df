// See attention.inl.
#include "kernels/cpu/simd/avx512bf16.h"

#include "kernels/cpu/attention.inl"
