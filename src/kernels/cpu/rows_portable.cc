// See rows.inl.
#include "kernels/cpu/simd/portable.h"

#include "kernels/cpu/rows.inl"
