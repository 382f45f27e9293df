// See attention.inl.
#include "kernels/cpu/simd/neon.h"

#include "kernels/cpu/attention.inl"
