// See rows.inl.
#include "kernels/cpu/simd/neon.h"

#include "kernels/cpu/rows.inl"
