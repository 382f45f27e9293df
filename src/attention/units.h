// Units of a sequence: one cut of one part each, what becomes one partial result. They are counted
// over the parts of the sequence.
#ifndef KVCACHE_SRC_ATTENTION_UNITS_H_
#define KVCACHE_SRC_ATTENTION_UNITS_H_

#include <cstdint>

#include "kvcache/kv_view.h"

namespace kvcache::internal {

// Rows begin .. end of a part, before visibility.
struct Unit {
  std::int32_t part = 0;
  std::int64_t part_row = 0;  // row of the sequence that row 0 of the part is
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

std::int32_t num_units(const KvView& kv, std::int32_t seq);

// Unit `index` of a sequence; one without rows beyond the last.
Unit unit_at(const KvView& kv, std::int32_t seq, std::int32_t index);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_UNITS_H_
