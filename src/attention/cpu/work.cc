#include "attention/cpu/work.h"

#include <algorithm>

#include "attention/problem.h"
#include "attention/units.h"
#include "base/checked_math.h"
#include "base/door.h"
#include "kernels/cpu/cut.h"

namespace kvcache::internal {
namespace {

// Rows of a tile share the packing of keys and values: enough of them to make it cheap beside their
// products, few enough that their queries and results stay in the second level of cache. Fewer
// where the threads would lack items. Tiles of several sequences share a pass up to the lesser
// bound.
constexpr std::int64_t kTileRowsAtMost = 384;
constexpr std::int64_t kPassRowsAtMost = 96;

// Items for each thread, so that one that is held up delays the rest little.
constexpr std::int64_t kItemsPerThread = 4;

// What reading a row of keys and values costs, in query rows attended to: below it time goes into
// memory, not arithmetic.
constexpr std::int64_t kReadCost = 8;

// A group before it is split into items.
struct GroupShape {
  std::int32_t tile_begin = 0, tile_end = 0;
  std::int32_t unit_begin = 0, unit_end = 0;  // without those of the gap
  std::int32_t gap_begin = 0, gap = 0;
  std::int32_t parent = -1;  // index of the group of the units before
  std::int32_t num_queries = 0;
  std::int64_t cost = 0;  // of one KV head
  std::int32_t seq = 0;   // one whose units they are
  Path path = Path::kPrefill;

  std::int32_t unit(std::int32_t index) const { return unit_past_gap(index, gap_begin, gap); }
};

// Queries of a tile at most, no fewer than tile_queries(): a sequence that shares has one tile.
std::int64_t queries_at_most(std::span<const std::int32_t> qo_indptr, const WorkShape& shape) {
  const std::int64_t rows = (qo_indptr.back() - qo_indptr.front()) * shape.group;
  // One thread needs no items to share out.
  const std::int64_t items = shape.concurrency == 1 ? 1 : kItemsPerThread * shape.concurrency;
  const std::int64_t of_item = rows * shape.num_kv_heads / items;
  return std::max<std::int64_t>(
      1, std::clamp(of_item, kPassRowsAtMost, kTileRowsAtMost) / shape.group);
}

template <typename Visit>
void for_each_tile(std::span<const std::int32_t> qo_indptr, const SharedPrefixes& prefixes,
                   const WorkShape& shape, Visit visit) {
  const auto at_most = static_cast<std::int32_t>(queries_at_most(qo_indptr, shape));
  std::int32_t at = 0;
  for (const std::int32_t seq : prefixes.order()) {
    const std::int32_t num_queries = qo_indptr[seq + 1] - qo_indptr[seq];
    const Path path = path_of(num_queries, shape.reproducible);
    for (std::int32_t first = 0; first < num_queries;) {
      const std::int32_t count = std::min(at_most, num_queries - first);
      visit(at, WorkTile{seq, first, count, 0, 0, path});
      first += count;
    }
    ++at;
  }
}

// Groups of several tiles first, each behind the one it continues. A sequence that shares has one
// tile: the tiles of a run are those at the run's places in the order.
template <typename Visit>
void for_each_group(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                    const SharedPrefixes& prefixes, const WorkShape& shape, Visit visit) {
  const auto cost_of = [&](std::int64_t keys, std::int64_t queries) {
    return (keys + 1) * (queries * shape.group + kReadCost);
  };
  for (const SharedRun& run : prefixes.runs()) {
    std::int32_t queries = 0;
    std::int32_t seq = 0;
    for (std::int32_t at = run.begin; at < run.end; ++at) {
      seq = prefixes.order()[static_cast<std::size_t>(at)];
      queries += qo_indptr[seq + 1] - qo_indptr[seq];
    }
    visit(GroupShape{run.begin, run.end, run.unit_begin, run.unit_end, run.unit_end, 0, run.parent,
                     queries, cost_of(run.keys, queries), seq,
                     path_of(qo_indptr[seq + 1] - qo_indptr[seq], shape.reproducible)});
  }
  std::int32_t index = 0;
  for_each_tile(qo_indptr, prefixes, shape, [&](std::int32_t at, const WorkTile& tile) {
    const std::int64_t num_queries = qo_indptr[tile.seq + 1] - qo_indptr[tile.seq];
    std::int64_t keys = 0;
    for (std::int32_t p = 0; p < kv.num_parts; ++p) {
      keys += visible_rows(kv, p, tile.seq, num_queries, tile.query_begin,
                           tile.query_begin + tile.num_queries - 1, shape.rules)
                  .count();
    }
    const UnitRange seen = seen_units(kv, tile.seq, tile.path, num_queries, tile.query_begin,
                                      tile.query_begin + tile.num_queries - 1, shape.rules);
    GroupShape group{index,
                     index + 1,
                     seen.begin,
                     seen.end - seen.gap,
                     seen.gap_begin,
                     seen.gap,
                     prefixes.last_run(at),
                     tile.num_queries,
                     0,
                     tile.seq,
                     tile.path};
    ++index;
    if (group.parent >= 0) {  // what is shared has no gap
      const SharedRun& run = prefixes.runs()[static_cast<std::size_t>(group.parent)];
      if (run.unit_end >= seen.end) return;  // nothing is left to it
      group.unit_begin = run.unit_end;
      group.unit_end = seen.end;
      group.gap = 0;
      keys -= run.keys_before + run.keys;
    }
    group.cost = cost_of(keys, tile.num_queries);
    visit(group);
  });
}

// Into how many items a group goes when each should cost about `target`.
std::int32_t pieces_of(const GroupShape& group, std::int64_t target, const WorkShape& shape) {
  const std::int32_t units = group.unit_end - group.unit_begin;
  if (shape.concurrency == 1 || units < 2 || group.cost <= target + target / 4) return 1;
  return static_cast<std::int32_t>(std::min<std::int64_t>(units, ceil_div(group.cost, target)));
}

// Calls visit(unit_begin, unit_end) for the pieces of a group: about as many rows in each, one unit
// at least.
template <typename Visit>
void for_each_piece(const KvView& kv, const GroupShape& group, std::int32_t pieces, Visit visit) {
  const auto rows_of = [&](std::int32_t index) {
    const Unit unit = unit_at(kv, group.seq, group.unit(index), group.path);
    return unit.end - unit.begin;
  };
  std::int64_t rows = 0;
  for (std::int32_t unit = group.unit_begin; pieces > 1 && unit < group.unit_end; ++unit) {
    rows += rows_of(unit);
  }
  std::int32_t begin = group.unit_begin;
  std::int64_t before = 0;
  for (std::int32_t piece = 1; piece < pieces; ++piece) {
    const std::int64_t target = rows * piece / pieces;
    std::int32_t end = begin;
    do {
      before += rows_of(end++);
    } while (before < target && group.unit_end - end > pieces - piece);
    visit(begin, end);
    begin = end;
  }
  visit(begin, group.unit_end);
}

// Units of the pieces after the first.
std::int32_t spilled_of(const KvView& kv, const GroupShape& group, std::int32_t pieces) {
  std::int32_t first_end = -1;
  for_each_piece(kv, group, pieces, [&](std::int32_t, std::int32_t end) {
    if (first_end < 0) first_end = end;
  });
  return group.unit_end - first_end;
}

// Whether the running result is the workspace's: a group of its own with one item needs no more
// than its worker has.
bool keeps_running(const GroupShape& group, std::int32_t pieces) {
  return group.parent < 0 && (pieces > 1 || group.tile_end - group.tile_begin > 1);
}

}  // namespace

std::int64_t tile_queries(std::int64_t group) {
  return std::max<std::int64_t>(1, kPassRowsAtMost / group);
}

std::int64_t partial_floats(std::int64_t rows, std::int64_t v_dim) {
  return 2 * round_up(rows, kRowPadding) + rows * round_up(v_dim, kRowPadding);
}

Status measure_work(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                    const SharedPrefixes& prefixes, const WorkShape& shape, WorkSize* size) {
  *size = WorkSize();
  for_each_tile(qo_indptr, prefixes, shape,
                [&](std::int32_t, const WorkTile&) { ++size->num_tiles; });
  std::int64_t total = 0;
  for_each_group(kv, qo_indptr, prefixes, shape,
                 [&](const GroupShape& group) { total += group.cost; });
  // Costs are those of one KV head; every item is done for each of them.
  size->target_cost = total / (kItemsPerThread * shape.concurrency) * shape.num_kv_heads + 1;

  bool fits = true;
  for_each_group(kv, qo_indptr, prefixes, shape, [&](const GroupShape& group) {
    const std::int32_t pieces = pieces_of(group, size->target_cost, shape);
    ++size->num_groups;
    size->num_items += pieces;
    const bool alone = group.tile_end - group.tile_begin == 1;
    const std::int64_t pass =
        alone ? group.num_queries
              : std::min<std::int64_t>(group.num_queries, tile_queries(shape.group));
    size->largest_pass = std::max(size->largest_pass, pass);
    const std::int64_t partials =
        spilled_of(kv, group, pieces) + (keeps_running(group, pieces) ? 1 : 0);
    // partial_floats() at most, so that it fits too.
    const std::int64_t row = round_up(shape.v_dim, kRowPadding) + 2 * kRowPadding;
    std::int64_t floats = 0;
    fits = fits &&
           checked_product({shape.num_kv_heads, partials, group.num_queries, shape.group, row},
                           &floats) &&
           checked_add(size->workspace_floats, floats, &size->workspace_floats);
  });
  return fits ? Status() : out_of_memory();
}

void WorkList::reserve(const WorkSize& size) {
  tiles_.reserve(static_cast<std::size_t>(size.num_tiles));
  groups_.reserve(static_cast<std::size_t>(size.num_groups));
  items_.reserve(static_cast<std::size_t>(size.num_items));
}

void WorkList::fill(const KvView& kv, std::span<const std::int32_t> qo_indptr,
                    const SharedPrefixes& prefixes, const WorkShape& shape, const WorkSize& size) {
  tiles_.clear();
  groups_.clear();
  items_.clear();
  std::int32_t queries = 0;
  for_each_tile(qo_indptr, prefixes, shape, [&](std::int32_t, const WorkTile& tile) {
    tiles_.push_back(tile);
    tiles_.back().first_query = queries;
    queries += tile.num_queries;
  });

  std::int64_t workspace = 0;
  for_each_group(kv, qo_indptr, prefixes, shape, [&](const GroupShape& from) {
    const std::int32_t pieces = pieces_of(from, size.target_cost, shape);
    const auto index = static_cast<std::int32_t>(groups_.size());
    WorkGroup group{from.tile_begin,
                    from.tile_end,
                    from.unit_begin,
                    from.unit_end,
                    from.gap_begin,
                    from.gap,
                    index,
                    0,
                    from.num_queries,
                    pieces,
                    spilled_of(kv, from, pieces),
                    0,
                    -1};
    if (from.parent >= 0) {
      const WorkGroup& parent = groups_[static_cast<std::size_t>(from.parent)];
      group.root = parent.root;
      group.level = parent.level + 1;
    }
    const std::int64_t partial = std::int64_t{shape.num_kv_heads} *
                                 partial_floats(from.num_queries * shape.group, shape.v_dim);
    group.spilled = workspace;
    workspace += group.num_spilled * partial;
    if (keeps_running(from, pieces)) {
      group.running = workspace;
      workspace += partial;
    }
    groups_.push_back(group);
    // A group behind this one may take the tile further.
    for (std::int32_t t = from.tile_begin; t < from.tile_end; ++t) {
      tiles_[static_cast<std::size_t>(t)].last_group = index;
    }
    const std::int32_t first_spilled = from.unit_end - group.num_spilled;
    for_each_piece(kv, from, pieces, [&](std::int32_t begin, std::int32_t end) {
      const std::int32_t spilled = begin == from.unit_begin ? -1 : begin - first_spilled;
      items_.push_back({index, begin, end, spilled, from.cost / pieces});
    });
  });
  std::sort(items_.begin(), items_.end(), [this](const WorkItem& a, const WorkItem& b) {
    if (level_of(a) != level_of(b)) return level_of(a) < level_of(b);
    if (a.cost != b.cost) return a.cost > b.cost;
    if (a.group != b.group) return a.group < b.group;
    return a.unit_begin < b.unit_begin;
  });
}

bool WorkList::shared_in(const KvView& kv) const {
  return std::all_of(groups_.begin(), groups_.end(), [&](const WorkGroup& group) {
    const WorkTile& first = tiles_[static_cast<std::size_t>(group.tile_begin)];
    for (std::int32_t t = group.tile_begin + 1; t < group.tile_end; ++t) {
      for (std::int32_t unit = group.unit_begin; unit < group.unit_end; ++unit) {
        const std::int32_t seq = tiles_[static_cast<std::size_t>(t)].seq;
        if (!same_rows(kv, first.seq, seq, group.unit(unit), first.path)) return false;
      }
    }
    return true;
  });
}

}  // namespace kvcache::internal
