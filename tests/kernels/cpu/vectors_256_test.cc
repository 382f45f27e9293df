// See vector_widths.h.
#define KVC_SIMD vectors_256
#define KVC_SIMD_BYTES 32
#include "kernels/cpu/simd/portable.h"

#include "kernels/cpu/attention.inl"

#include "kernels/cpu/rows.inl"
