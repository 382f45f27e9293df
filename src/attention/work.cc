#include "attention/work.h"

#include <algorithm>

#include "base/checked_math.h"
#include "base/door.h"
#include "kernels/kernel_table.h"

namespace kvcache::internal {
namespace {

// Rows of a tile share a pass over the keys: enough of them to make the widening and transposing
// of a block cheap beside its products, few enough that their scores stay in the nearer caches.
constexpr std::int64_t kTileRowsAtMost = 96;

// Items for each thread, so that one that is held up delays the rest little.
constexpr std::int64_t kItemsPerThread = 4;

// What reading a row of keys and values costs, in query rows attended to: below it time goes into
// memory, not arithmetic.
constexpr std::int64_t kReadCost = 8;

// Cuts that rows 0 .. length of a part touch.
std::int64_t cuts_of(std::int64_t first_index, std::int64_t length) {
  if (length == 0) return 0;
  return (first_index + length - 1) / kCutKeys - first_index / kCutKeys + 1;
}

struct Tile {
  std::int32_t seq = 0;
  std::int32_t query_begin = 0;
  std::int32_t num_queries = 0;
  std::int32_t units = 0;
  std::int64_t cost = 0;
};

template <typename Visit>
void for_each_tile(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                   const WorkShape& shape, Visit visit) {
  const std::int64_t queries_at_most = tile_queries(shape.group);
  for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
    const std::int64_t num_queries = qo_indptr[seq + 1] - qo_indptr[seq];
    const std::int32_t units = num_queries == 0 ? 0 : num_units(kv, seq);
    for (std::int64_t first = 0; first < num_queries; first += queries_at_most) {
      const std::int64_t count = std::min(queries_at_most, num_queries - first);
      std::int64_t keys = 0;
      for (std::int32_t p = 0; p < kv.num_parts; ++p) {
        keys +=
            visible_rows(kv, p, seq, num_queries, first, first + count - 1, shape.rules).count();
      }
      visit(Tile{seq, static_cast<std::int32_t>(first), static_cast<std::int32_t>(count), units,
                 (keys + 1) * (count * shape.group + kReadCost)});
    }
  }
}

// Into how many items a tile goes when each should cost about `target`.
std::int64_t pieces_of(const Tile& tile, std::int64_t target, const WorkShape& shape) {
  if (shape.concurrency == 1 || tile.units < 2 || tile.cost <= target + target / 4) return 1;
  return std::min<std::int64_t>(tile.units, ceil_div(tile.cost, target));
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

std::int64_t tile_queries(std::int64_t group) {
  return std::max<std::int64_t>(1, kTileRowsAtMost / group);
}

std::int64_t partial_floats(std::int64_t rows, std::int64_t v_dim) {
  return 2 * round_up(rows, kRowPadding) + rows * round_up(v_dim, kRowPadding);
}

Status measure_work(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                    const WorkShape& shape, WorkSize* size) {
  *size = WorkSize();
  std::int64_t total = 0;
  for_each_tile(kv, qo_indptr, shape, [&](const Tile& tile) { total += tile.cost; });
  // Costs are those of one KV head; every item is done for each of them.
  size->target_cost = total / (kItemsPerThread * shape.concurrency) * shape.num_kv_heads + 1;

  bool fits = true;
  for_each_tile(kv, qo_indptr, shape, [&](const Tile& tile) {
    const std::int64_t pieces = pieces_of(tile, size->target_cost, shape);
    size->num_items += pieces;
    size->largest_tile = std::max<std::int64_t>(size->largest_tile, tile.num_queries);
    if (pieces > 1) {
      ++size->num_splits;
      std::int64_t floats = 0;
      fits = fits &&
             checked_product({shape.num_kv_heads, tile.units,
                              partial_floats(tile.num_queries * shape.group, shape.v_dim)},
                             &floats) &&
             checked_add(size->workspace_floats, floats, &size->workspace_floats);
    }
  });
  return fits ? Status() : out_of_memory();
}

void WorkList::reserve(const WorkSize& size) {
  items_.reserve(static_cast<std::size_t>(size.num_items));
  splits_.reserve(static_cast<std::size_t>(size.num_splits));
}

void WorkList::fill(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                    const WorkShape& shape, const WorkSize& size) {
  items_.clear();
  splits_.clear();
  std::int64_t workspace = 0;
  for_each_tile(kv, qo_indptr, shape, [&](const Tile& tile) {
    const std::int32_t pieces = static_cast<std::int32_t>(pieces_of(tile, size.target_cost, shape));
    std::int32_t split = -1;
    if (pieces > 1) {
      split = static_cast<std::int32_t>(splits_.size());
      splits_.push_back({tile.units, pieces, workspace});
      workspace += std::int64_t{shape.num_kv_heads} * tile.units *
                   partial_floats(tile.num_queries * shape.group, shape.v_dim);
    }
    for (std::int32_t piece = 0; piece < pieces; ++piece) {
      const auto bound = [&](std::int64_t i) {
        return static_cast<std::int32_t>(i * tile.units / pieces);
      };
      items_.push_back({tile.seq, tile.query_begin, tile.num_queries, bound(piece),
                        bound(piece + 1), split, tile.cost / pieces});
    }
  });
  std::sort(items_.begin(), items_.end(), [](const WorkItem& a, const WorkItem& b) {
    if (a.cost != b.cost) return a.cost > b.cost;
    if (a.seq != b.seq) return a.seq < b.seq;
    if (a.query_begin != b.query_begin) return a.query_begin < b.query_begin;
    return a.unit_begin < b.unit_begin;
  });
}

}  // namespace kvcache::internal
