// fp8_e4m3: bytes of sign, 4 bits of exponent (bias 7) and 3 of mantissa, without infinities, whose
// largest is 448 and whose NaN is 0x7f (OCP 8-bit Floating Point Specification, revision 1.0),
//
//   s = max |x| / 448, rounded up to f16    q = x (1 / s) to the nearest E4M3, ties to even    x' =
//   s q
//
// The maximum is that of finite elements. NaN stays NaN, and infinities become NaN. NaN of rotated
// rows has no sign.
#ifndef KVCACHE_SRC_TENSOR_CODECS_FP8_H_
#define KVCACHE_SRC_TENSOR_CODECS_FP8_H_

#include <cstdint>

#include "tensor/codecs/coded_row.h"

namespace kvcache::internal {

// One number. What rounds past 448 becomes NaN.
std::uint8_t f32_to_e4m3(float value) noexcept;
float e4m3_to_f32(std::uint8_t code) noexcept;

// False, with nothing written, where a scale does not fit f16.
bool encode_fp8(const float* row, std::int64_t elements, const CodedRow& to) noexcept;
void decode_fp8(const ConstCodedRow& from, std::int64_t elements, float* row) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_FP8_H_
