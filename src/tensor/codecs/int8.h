// int8: symmetric codes of a byte,
//
//   s = max |x| / 127, rounded up to f16    q = x (1 / s) to the nearest, ties to even    x' = s q
//
// Rounding s up keeps |q| <= 127. The error of an element is at most s / 2.
#ifndef KVCACHE_SRC_TENSOR_CODECS_INT8_H_
#define KVCACHE_SRC_TENSOR_CODECS_INT8_H_

#include <cstdint>

#include "tensor/codecs/coded_row.h"

namespace kvcache::internal {

// False, with nothing written, where an element is not finite or a scale does not fit f16.
bool encode_int8(const float* row, std::int64_t elements, const CodedRow& to) noexcept;
void decode_int8(const ConstCodedRow& from, std::int64_t elements, float* row) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_INT8_H_
