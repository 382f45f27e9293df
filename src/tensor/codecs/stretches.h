// Rows whose scales each serve a stretch of elements: int8, fp8_e4m3 and lm4.
#ifndef KVCACHE_SRC_TENSOR_CODECS_STRETCHES_H_
#define KVCACHE_SRC_TENSOR_CODECS_STRETCHES_H_

#include <algorithm>
#include <cstdint>

#include "kvcache/row_format.h"

namespace kvcache::internal {

// fn(stretch, first element, how many) for each; ends where fn says false, and then is false.
template <typename Fn>
bool for_each_stretch(RowFormat::Kind kind, std::int64_t elements, Fn&& fn) noexcept {
  const std::int64_t shared = RowFormat{kind}.scale_elements(elements);
  for (std::int64_t g = 0, begin = 0; begin < elements; ++g, begin += shared) {
    if (!fn(g, begin, std::min(shared, elements - begin))) return false;
  }
  return true;
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_STRETCHES_H_
