// See attention.inl.
#include "kernels/cpu/simd/avx2.h"

#include "kernels/cpu/attention.inl"
