// lm4: codes of 4 bits for rows that were rotated (rotate.h), whose elements are near a normal
// distribution then,
//
//   u = sqrt(mean x^2) * kLm4Unit, then twice:    q: the level nearest to x (1 / u)
//                                                 u = sum x L[q] / sum L[q]^2
//   s = u, to f16    x' = s L[q]
//
// The levels L are the 16 that a normal distribution is coded by with the least mean square error
// (Max, "Quantizing for minimum distortion", 1960; Lloyd 1957/1982), as whole numbers: +-.1284
// .3880 .6568 .9423 1.2562 1.6180 2.0690 2.7326 times 127 / 2.7326, so that they fit a byte and are
// found by one shuffle of 16. u is the best for the codes chosen (least squares), which makes up
// for rows that are not normal; the second time takes 2 to 4 % off the mean square error. The idea:
// TurboQuant, arXiv 2504.19874. tools/lloyd_max.py computes the levels.
#ifndef KVCACHE_SRC_TENSOR_CODECS_LM4_H_
#define KVCACHE_SRC_TENSOR_CODECS_LM4_H_

#include <cstdint>

#include "tensor/codecs/coded_row.h"

namespace kvcache::internal {

inline constexpr std::int8_t kLm4Levels[16] = {-127, -96, -75, -58, -44, -31, -18, -6,
                                               6,    18,  31,  44,  58,  75,  96,  127};
// Half way between the levels from 0 up: |x| / u at or past so many of them is that many levels up.
inline constexpr float kLm4Bounds[7] = {12.0f, 24.5f, 37.5f, 51.0f, 66.5f, 85.5f, 111.5f};
inline constexpr float kLm4Unit = 0.0215164533f;
inline constexpr int kLm4Passes = 2;
// Rows of lower units are zeros: the least f16 is 6e-8.
inline constexpr float kLm4LeastUnit = 0x1p-40f;

// Sums of floats are of 16 lanes, element i into lane i mod 16, which are added up by halves: 8, 4,
// 2,
// 1. So vectors of any width make the same bits.
inline constexpr int kLm4Lanes = 16;

// False, with nothing written, where an element is not finite or a scale does not fit f16.
// REQUIRES: a multiple of 16 elements.
bool encode_lm4(const float* row, std::int64_t elements, const CodedRow& to) noexcept;
void decode_lm4(const ConstCodedRow& from, std::int64_t elements, float* row) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_LM4_H_
