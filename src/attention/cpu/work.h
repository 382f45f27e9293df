// The split of attention into work items: which queries, which cuts of keys, in which order.
//
// A tile is the query rows of a sequence that are finished together. Tiles whose sequences share a
// prefix form a group over the units they share (prefixes.h); a tile alone over the units left to
// it is a group too. A group's partial results are merged in ascending order of the units into one
// running result, and a group continues where the one before it ended, so that each row's sums are
// the same with whomever it shares a pass.
//
// Units that none of a tile's queries sees are no part of its group: they are left out of its
// count, at its ends and in the gap between sinks and window.
//
// An item is a group over a range of its units; it is done once for each KV head. The first item of
// a group merges as it goes. The others leave a partial result per unit, and whoever finishes the
// group's last item merges these: the split moves no bit. Items of a level wait for none of the
// same level.
#ifndef KVCACHE_SRC_ATTENTION_CPU_WORK_H_
#define KVCACHE_SRC_ATTENTION_CPU_WORK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "attention/prefixes.h"
#include "attention/visible.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"

namespace kvcache::internal {

struct WorkTile {
  std::int32_t seq = 0;
  std::int32_t query_begin = 0;
  std::int32_t num_queries = 0;
  std::int32_t first_query = 0;  // counted over the tiles before this one
  std::int32_t last_group = 0;   // the tile is finished with it
  Path path = Path::kPrefill;    // of its sequence
};

// Unit number `index` where `gap` of them, from gap_begin on, are not counted.
constexpr std::int32_t unit_past_gap(std::int32_t index, std::int32_t gap_begin,
                                     std::int32_t gap) noexcept {
  return index < gap_begin ? index : index + gap;
}

struct WorkGroup {
  std::int32_t tile_begin = 0, tile_end = 0;
  std::int32_t unit_begin = 0, unit_end = 0;  // without those of the gap
  std::int32_t gap_begin = 0, gap = 0;
  std::int32_t root = 0;  // the group of the first units; holds the running result of them all
  std::int32_t level = 0;
  std::int32_t num_queries = 0;  // of all its tiles
  std::int32_t num_items = 0;
  std::int32_t num_spilled = 0;  // partial results of the items after the first
  // Floats of workspace before them: [num_kv_heads, num_spilled, partial_floats(rows)], and
  // [num_kv_heads, partial_floats(rows)] of a root. -1: the worker's own memory will do.
  std::int64_t spilled = 0;
  std::int64_t running = 0;

  // Which unit of the sequence is number `index` of unit_begin .. unit_end.
  std::int32_t unit(std::int32_t index) const { return unit_past_gap(index, gap_begin, gap); }
  // Whether its results begin with that unit.
  bool begins_with(std::int32_t index) const { return level == 0 && index == unit_begin; }
};

struct WorkItem {
  std::int32_t group = 0;
  std::int32_t unit_begin = 0, unit_end = 0;
  std::int32_t spilled = -1;  // place of its first partial; -1: merged into the running result
  std::int64_t cost = 0;
};

struct WorkShape {
  std::int64_t group = 1;  // query heads of a KV head
  std::int32_t num_kv_heads = 1;
  std::int32_t v_dim = 1;
  std::int32_t concurrency = 1;
  bool reproducible = false;  // one path for every number of queries
  VisibilityRules rules;
};

// Queries of one pass of several tiles at most, and a partial of `rows` rows in floats: max, sum
// and acc.
std::int64_t tile_queries(std::int64_t group);
std::int64_t partial_floats(std::int64_t rows, std::int64_t v_dim);

// How much room a WorkList and its runs need.
struct WorkSize {
  std::int64_t num_tiles = 0;
  std::int64_t num_groups = 0;
  std::int64_t num_items = 0;
  std::int64_t workspace_floats = 0;
  std::int64_t largest_pass = 0;  // queries
  std::int64_t target_cost = 0;   // of an item
};

// Errors: kOutOfMemory for sizes beyond any memory.
Status measure_work(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                    const SharedPrefixes& prefixes, const WorkShape& shape, WorkSize* size);

class WorkList {
 public:
  // May throw bad_alloc, leaving the list as it was.
  void reserve(const WorkSize& size);

  // Splits the work of `kv` and its queries; level by level, largest items first. Allocates
  // nothing. REQUIRES: `size` is measure_work's of the same arguments, and was reserved.
  void fill(const KvView& kv, std::span<const std::int32_t> qo_indptr,
            const SharedPrefixes& prefixes, const WorkShape& shape, const WorkSize& size);

  // Whether the tiles of every group have the same rows in `kv` too.
  bool shared_in(const KvView& kv) const;

  std::int32_t level_of(const WorkItem& item) const {
    return groups_[static_cast<std::size_t>(item.group)].level;
  }

  const std::vector<WorkTile>& tiles() const { return tiles_; }
  const std::vector<WorkGroup>& groups() const { return groups_; }
  const std::vector<WorkItem>& items() const { return items_; }

 private:
  std::vector<WorkTile> tiles_;
  std::vector<WorkGroup> groups_;
  std::vector<WorkItem> items_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_CPU_WORK_H_
