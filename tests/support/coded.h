// Coded forms by name, and rows as their codes leave them.
#ifndef KVCACHE_TESTS_SUPPORT_CODED_H_
#define KVCACHE_TESTS_SUPPORT_CODED_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/row_format.h"
#include "tensor/codecs/codec.h"
#include "tensor/codecs/rows.h"

namespace kvcache::testing {

using internal::coded_forms;
using internal::FormCase;

inline bool is_of_8_bits(const RowFormat& format) {
  return format.kind == RowFormat::kInt8 || format.kind == RowFormat::kFp8E4M3 ||
         format.kind == RowFormat::kQ8_0;
}

// What a row of floats is once it was encoded and decoded; the row itself where it is plain.
inline std::vector<float> coded_and_back(const RowFormat& format, const float* row,
                                         std::int64_t elements) {
  std::vector<float> result(row, row + elements);
  if (!format.is_coded()) return result;
  internal::RowBytes bytes(format, elements);
  EXPECT_TRUE(internal::encode_row(format, result.data(), elements, bytes.row()));
  const internal::RowBytes& stored = bytes;
  internal::decode_row(format, stored.row(), elements, result.data());
  return result;
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_CODED_H_
