// The split of attention into work items: which queries, which cuts of keys, in which order.
//
// A unit is one cut of one part: what becomes one partial result. Units of a sequence are counted
// over its parts. An item is a tile of queries over a range of units; it is done once for each KV
// head. Tiles whose units are shared among several items keep one partial per unit in the
// workspace, and whoever finishes the last item merges them in ascending order, as a single item
// would have: the split moves no bit.
#ifndef KVCACHE_SRC_ATTENTION_WORK_H_
#define KVCACHE_SRC_ATTENTION_WORK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "attention/visible.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"

namespace kvcache::internal {

struct WorkItem {
  std::int32_t seq = 0;
  std::int32_t query_begin = 0;
  std::int32_t num_queries = 0;
  std::int32_t unit_begin = 0;
  std::int32_t unit_end = 0;
  std::int32_t split = -1;  // index of the tile it is a piece of; -1: the whole tile
  std::int64_t cost = 0;
};

// A tile whose units are shared among several items.
struct SplitTile {
  std::int32_t units = 0;
  std::int32_t num_items = 0;
  std::int64_t workspace = 0;  // floats before its partials: [num_kv_heads, units, partial_floats]
};

struct WorkShape {
  std::int64_t group = 1;
  std::int32_t num_kv_heads = 1;
  std::int32_t v_dim = 1;
  std::int32_t concurrency = 1;
  VisibilityRules rules;
};

// A unit of a sequence: rows begin .. end of a part, before visibility.
struct Unit {
  std::int32_t part = 0;
  std::int64_t part_row = 0;  // row of the sequence that row 0 of the part is
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

std::int32_t num_units(const KvView& kv, std::int32_t seq);
Unit unit_at(const KvView& kv, std::int32_t seq, std::int32_t index);

// Query rows a tile holds at most, and a partial of `rows` rows in floats: max, sum and acc.
std::int64_t tile_queries(std::int64_t group);
std::int64_t partial_floats(std::int64_t rows, std::int64_t v_dim);

// How much room a WorkList and its runs need.
struct WorkSize {
  std::int64_t num_items = 0;
  std::int64_t num_splits = 0;
  std::int64_t workspace_floats = 0;
  std::int64_t largest_tile = 0;  // queries
  std::int64_t target_cost = 0;   // of an item
};

// Errors: kOutOfMemory for sizes beyond any memory.
Status measure_work(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                    const WorkShape& shape, WorkSize* size);

class WorkList {
 public:
  // May throw bad_alloc, leaving the list as it was.
  void reserve(const WorkSize& size);

  // Splits the work of `kv` and its queries; largest items first. Allocates nothing.
  // REQUIRES: `size` is measure_work's of the same arguments, and was reserved.
  void fill(const KvView& kv, std::span<const std::int32_t> qo_indptr, const WorkShape& shape,
            const WorkSize& size);

  const std::vector<WorkItem>& items() const { return items_; }
  const std::vector<SplitTile>& splits() const { return splits_; }

 private:
  std::vector<WorkItem> items_;
  std::vector<SplitTile> splits_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_WORK_H_
