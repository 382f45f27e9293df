// Rows that try codecs: random ones, and those that break careless arithmetic.
#ifndef KVCACHE_TESTS_TENSOR_CODECS_ROWS_H_
#define KVCACHE_TESTS_TENSOR_CODECS_ROWS_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kvcache/row_format.h"
#include "tensor/codecs/codec.h"

namespace kvcache::internal {

struct NamedRow {
  std::string name;
  std::vector<float> values;
};

inline std::vector<float> normal_row(std::int64_t elements, std::uint32_t seed, float sigma = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, sigma);
  std::vector<float> row(static_cast<std::size_t>(elements));
  for (float& x : row) x = normal(random);
  return row;
}

// All finite, and all in reach of every form.
inline std::vector<NamedRow> finite_rows(std::int64_t elements) {
  const auto n = static_cast<std::size_t>(elements);
  std::vector<NamedRow> rows;
  const auto add = [&](const char* name, auto&& value) {
    rows.push_back({name, std::vector<float>(n)});
    for (std::size_t i = 0; i < n; ++i) rows.back().values[i] = value(i);
  };
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    rows.push_back({"normal " + std::to_string(seed), normal_row(elements, seed)});
  }
  for (const float sigma : {1e-4f, 1e-2f, 30.0f, 1e4f}) {
    rows.push_back({"normal of " + std::to_string(sigma), normal_row(elements, 7, sigma)});
  }
  add("zero", [](std::size_t) { return 0.0f; });
  add("minus zero", [](std::size_t) { return -0.0f; });
  add("one huge",
      [&](std::size_t i) { return i == n / 2 ? 60000.0f : 1e-3f * static_cast<float>(i); });
  add("one alone", [&](std::size_t i) { return i == n - 1 ? -3.0f : 0.0f; });
  add("alternating", [](std::size_t i) { return i % 2 == 0 ? 1.5f : -1.5f; });
  add("constant", [](std::size_t) { return -0.37f; });
  add("positive", [](std::size_t i) { return 5.0f + static_cast<float>(i % 7); });
  add("halves", [](std::size_t i) { return static_cast<float>(i % 255) - 126.5f; });
  add("denormal", [](std::size_t i) {
    return static_cast<float>(i + 1) * std::numeric_limits<float>::denorm_min();
  });
  add("least", [](std::size_t i) { return i % 3 == 0 ? std::numeric_limits<float>::min() : 0.0f; });
  add("below half", [](std::size_t i) { return static_cast<float>(i % 5) * 1e-9f; });
  return rows;
}

struct FormCase {
  std::string name;
  RowFormat format;
};

inline std::vector<FormCase> coded_forms() {
  return {{"int8", coded(RowFormat::kInt8)},
          {"int8_rotated", coded(RowFormat::kInt8, true)},
          {"fp8_e4m3", coded(RowFormat::kFp8E4M3)},
          {"fp8_e4m3_rotated", coded(RowFormat::kFp8E4M3, true)},
          {"int4", coded(RowFormat::kInt4, false)},
          {"int4_rotated", coded(RowFormat::kInt4, true)},
          {"lm4", coded(RowFormat::kLm4)},
          {"q8_0", coded(RowFormat::kQ8_0)},
          {"q8_0_rotated", coded(RowFormat::kQ8_0, true)},
          {"q4_0", coded(RowFormat::kQ4_0)},
          {"q4_0_rotated", coded(RowFormat::kQ4_0, true)}};
}

// The bytes of one row, in memory of their own: codes, then scales side by side, then zeros.
struct RowBytes {
  std::vector<std::byte> bytes;
  std::int64_t codes = 0, scales = 0;

  RowBytes(const RowFormat& format, std::int64_t elements)
      : bytes(static_cast<std::size_t>(format.bytes(elements)), std::byte{0xa5}),
        codes(format.code_bytes(elements)),
        scales(format.num_scales(elements)) {}

  CodedRow row() {
    return {bytes.data(), bytes.data() + codes, bytes.data() + codes + 2 * scales, 2};
  }
  ConstCodedRow row() const {
    return {bytes.data(), bytes.data() + codes, bytes.data() + codes + 2 * scales, 2};
  }
};

}  // namespace kvcache::internal

#endif  // KVCACHE_TESTS_TENSOR_CODECS_ROWS_H_
