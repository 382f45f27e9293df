#include "tensor/codecs/rotate.h"

#include <cmath>

namespace kvcache::internal {
namespace {

template <typename T>
void rotate(T* row, std::int64_t elements, T factor) noexcept {
  const std::int64_t block = rotation_block(elements);
  for (std::int64_t distance = 1; distance < block; distance *= 2) {
    for (std::int64_t begin = 0; begin < elements; begin += 2 * distance) {
      for (std::int64_t i = begin; i < begin + distance; ++i) {
        const T a = row[i];
        const T b = row[i + distance];
        row[i] = a + b;
        row[i + distance] = a - b;
      }
    }
  }
  for (std::int64_t i = 0; i < elements; ++i) row[i] *= factor;
}

}  // namespace

void rotate_row(float* row, std::int64_t elements) noexcept {
  rotate(row, elements, rotation_factor(rotation_block(elements)));
}

void rotate_row(double* row, std::int64_t elements) noexcept {
  rotate(row, elements, 1 / std::sqrt(static_cast<double>(rotation_block(elements))));
}

void rotate_rows(float* rows, std::int64_t count, std::int64_t stride,
                 std::int64_t elements) noexcept {
  for (std::int64_t r = 0; r < count; ++r) rotate_row(rows + r * stride, elements);
}

void drop_signs_of_nan(float* row, std::int64_t elements) noexcept {
  for (std::int64_t i = 0; i < elements; ++i) {
    if (std::isnan(row[i])) row[i] = std::abs(row[i]);
  }
}

}  // namespace kvcache::internal
