#include "attention/units.h"

#include <algorithm>

#include "attention/problem.h"
#include "kernels/kernel_table.h"

namespace kvcache::internal {
namespace {

// Cuts that rows 0 .. length of a part touch.
std::int64_t cuts_of(std::int64_t first_index, std::int64_t length) {
  if (length == 0) return 0;
  return (first_index + length - 1) / kCutKeys - first_index / kCutKeys + 1;
}

}  // namespace

std::int32_t num_units(const KvView& kv, std::int32_t seq) {
  std::int64_t units = 0;
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    units += cuts_of(first_index_of(kv.parts[p], seq), length_of(kv.parts[p], seq));
  }
  return static_cast<std::int32_t>(units);
}

Unit unit_at(const KvView& kv, std::int32_t seq, std::int32_t index) {
  Unit unit;
  std::int64_t rest = index;
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    const KvPart& part = kv.parts[p];
    const std::int64_t first_index = first_index_of(part, seq);
    const std::int64_t length = length_of(part, seq);
    const std::int64_t cuts = cuts_of(first_index, length);
    if (rest < cuts) {
      const std::int64_t cut = first_index / kCutKeys + rest;
      unit.part = p;
      unit.begin = std::max<std::int64_t>(0, cut * kCutKeys - first_index);
      unit.end = std::min(length, (cut + 1) * kCutKeys - first_index);
      return unit;
    }
    rest -= cuts;
    unit.part_row += length;
  }
  return unit;
}

}  // namespace kvcache::internal
