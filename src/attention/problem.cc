#include "attention/problem.h"

namespace kvcache::internal {

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
