// 4-bit codes in bytes: the order that coded_row.h says.
#ifndef KVCACHE_SRC_TENSOR_CODECS_NIBBLES_H_
#define KVCACHE_SRC_TENSOR_CODECS_NIBBLES_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvcache/row_format.h"

namespace kvcache::internal {

// `codes` are below 16. REQUIRES: an even `count`.
inline void pack_nibbles(const std::uint8_t* codes, std::int64_t count, std::byte* to) noexcept {
  for (std::int64_t begin = 0; begin < count; begin += RowFormat::kGroup) {
    const std::int64_t half = std::min(RowFormat::kGroup, count - begin) / 2;
    for (std::int64_t i = 0; i < half; ++i) {
      *to++ = static_cast<std::byte>(codes[begin + i] | codes[begin + half + i] << 4);
    }
  }
}

inline void unpack_nibbles(const std::byte* from, std::int64_t count,
                           std::uint8_t* codes) noexcept {
  for (std::int64_t begin = 0; begin < count; begin += RowFormat::kGroup) {
    const std::int64_t half = std::min(RowFormat::kGroup, count - begin) / 2;
    for (std::int64_t i = 0; i < half; ++i) {
      const auto both = static_cast<std::uint8_t>(*from++);
      codes[begin + i] = both & 15u;
      codes[begin + half + i] = both >> 4;
    }
  }
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_NIBBLES_H_
