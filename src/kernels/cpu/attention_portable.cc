// See attention.inl.
#include "kernels/cpu/simd/portable.h"

#include "kernels/cpu/attention.inl"
