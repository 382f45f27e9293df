#include "attention/problem.h"

#include <algorithm>

namespace kvcache::internal {

std::int64_t chunk_origin(const KvView& kv, std::int32_t seq) {
  bool hidden = false;
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    const KvPart& part = kv.parts[p];
    const std::int64_t first = std::min(first_visible_of(part, seq), length_of(part, seq));
    hidden = hidden || first > 0;
    if (first < length_of(part, seq)) return hidden ? position_of(part, seq, first) : 0;
  }
  return 0;
}

std::int64_t position_in_view(const KvView& kv, std::int32_t seq, std::int64_t row) {
  const KvPart* last = nullptr;
  std::int64_t local = row;
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    const KvPart& part = kv.parts[p];
    const std::int64_t length = length_of(part, seq);
    if (length == 0) continue;
    if (local < length) {
      if (local >= 0) return position_of(part, seq, local);
      return position_of(part, seq, 0) + local;
    }
    local -= length;
    last = &part;
  }
  if (last == nullptr) return row;
  return position_of(*last, seq, length_of(*last, seq) - 1) + local + 1;
}

}  // namespace kvcache::internal
