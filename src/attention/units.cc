#include "attention/units.h"

#include <algorithm>

#include "attention/problem.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kShortCuts = kLongCutKeys / kCutKeys;  // decode begins with so many

// The number of the cut that holds the key of this index.
std::int64_t cut_of(Path path, std::int64_t index) {
  if (path == Path::kPrefill || index < kLongCutKeys) return index / kCutKeys;
  return kShortCuts - 1 + index / kLongCutKeys;
}

Cut cut_at(Path path, std::int64_t number) {
  if (path == Path::kPrefill || number < kShortCuts) return {number * kCutKeys, kCutKeys};
  return {(number - kShortCuts + 1) * kLongCutKeys, kLongCutKeys};
}

// Cuts that rows 0 .. length of a part touch.
std::int64_t cuts_of(Path path, std::int64_t first_index, std::int64_t length) {
  if (length == 0) return 0;
  return cut_of(path, first_index + length - 1) - cut_of(path, first_index) + 1;
}

}  // namespace

std::int32_t num_units(const KvView& kv, std::int32_t seq, Path path) {
  std::int64_t units = 0;
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    units += cuts_of(path, first_index_of(kv.parts[p], seq), length_of(kv.parts[p], seq));
  }
  return static_cast<std::int32_t>(units);
}

UnitRange seen_units(const KvView& kv, std::int32_t seq, Path path, std::int64_t num_queries,
                     std::int64_t first, std::int64_t last, const VisibilityRules& rules) {
  UnitRange range;
  std::int64_t before = 0;  // units of the parts before
  const auto add = [&range](std::int64_t begin, std::int64_t end) {
    if (range.begin == range.end) range.begin = range.end = static_cast<std::int32_t>(begin);
    const auto gap = static_cast<std::int32_t>(begin) - range.end;
    if (gap > range.gap) {
      range.gap_begin = range.end;
      range.gap = gap;
    }
    range.end = static_cast<std::int32_t>(end);
  };
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    const std::int64_t first_index = first_index_of(kv.parts[p], seq);
    const auto add_rows = [&](std::int64_t begin, std::int64_t end) {
      if (begin >= end) return;
      const std::int64_t cut = cut_of(path, first_index);
      add(before + cut_of(path, first_index + begin) - cut,
          before + cut_of(path, first_index + end - 1) - cut + 1);
    };
    const VisibleRows rows = visible_rows(kv, p, seq, num_queries, first, last, rules);
    add_rows(rows.begin, rows.sink_end);
    add_rows(rows.window_begin, rows.end);
    before += cuts_of(path, first_index, length_of(kv.parts[p], seq));
  }
  return range;
}

Unit unit_at(const KvView& kv, std::int32_t seq, std::int32_t index, Path path) {
  Unit unit;
  std::int64_t rest = index;
  for (std::int32_t p = 0; p < kv.num_parts; ++p) {
    const KvPart& part = kv.parts[p];
    const std::int64_t first_index = first_index_of(part, seq);
    const std::int64_t length = length_of(part, seq);
    const std::int64_t cuts = cuts_of(path, first_index, length);
    if (rest < cuts) {
      unit.part = p;
      unit.cut = cut_at(path, cut_of(path, first_index) + rest);
      unit.begin = std::max<std::int64_t>(0, unit.cut.first - first_index);
      unit.end = std::min(length, unit.cut.first + unit.cut.keys - first_index);
      return unit;
    }
    rest -= cuts;
    unit.part_row += length;
  }
  return unit;
}

}  // namespace kvcache::internal
