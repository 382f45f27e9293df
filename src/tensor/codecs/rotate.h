// Rotation of a row: y = H x, where H is block diagonal in Hadamard matrices of n = the largest
// power of two that divides the row,
//
//   H_1 = (1),  H_2n = 1 / sqrt(2) (H_n  H_n; H_n  -H_n)
//
// H is symmetric and orthogonal: rotating twice gives the row back, and rotating queries and keys
// alike leaves their products what they were. It spreads an outlier over n elements, so that one
// scale serves them all (QuaRot, arXiv 2404.00456).
#ifndef KVCACHE_SRC_TENSOR_CODECS_ROTATE_H_
#define KVCACHE_SRC_TENSOR_CODECS_ROTATE_H_

#include <cstdint>

namespace kvcache::internal {

// Blocks of fewer elements are not worth rotating, and refused at the door.
inline constexpr std::int64_t kLeastRotation = 16;

constexpr std::int64_t rotation_block(std::int64_t elements) noexcept {
  return elements & -elements;
}

// 1 / sqrt(block), rounded to float.
constexpr float rotation_factor(std::int64_t block) noexcept {
  float factor = 1;
  for (; block >= 4; block /= 4) factor *= 0.5f;
  return block == 2 ? factor * 0.70710678118654752f : factor;
}

// In place: butterflies (a, b) -> (a + b, a - b) of distance 1, 2, 4, .., then rotation_factor()
// once an element. In that order, which is what makes the bits.
void rotate_row(float* row, std::int64_t elements) noexcept;
void rotate_row(double* row, std::int64_t elements) noexcept;  // for the reference

// `count` rows that start `stride` elements apart.
void rotate_rows(float* rows, std::int64_t count, std::int64_t stride,
                 std::int64_t elements) noexcept;

// For rows that were just rotated: of two NaNs that meet either is left, as compilers and
// processors have it.
void drop_signs_of_nan(float* row, std::int64_t elements) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_ROTATE_H_
