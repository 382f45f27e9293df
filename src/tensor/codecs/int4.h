// int4: codes of 4 bits by groups of 32 elements, each with a scale and a zero,
//
//   lo = min(0, x), hi = max(0, x) of the group    s = (hi - lo) / 15, rounded up to f16
//   z = -lo (1 / s) to the nearest    q = (x (1 / s) to the nearest) + z, held to 0 .. 15    x' = s
//   (q - z)
//
// Nearest means ties to even. The range holds 0, so that z is 0 .. 15 and 0 is exact.
#ifndef KVCACHE_SRC_TENSOR_CODECS_INT4_H_
#define KVCACHE_SRC_TENSOR_CODECS_INT4_H_

#include <cstdint>

#include "tensor/codecs/coded_row.h"

namespace kvcache::internal {

// False, with nothing written, where an element is not finite or a scale does not fit f16.
// REQUIRES: a multiple of 32 elements.
bool encode_int4(const float* row, std::int64_t elements, const CodedRow& to) noexcept;
void decode_int4(const ConstCodedRow& from, std::int64_t elements, float* row) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_INT4_H_
