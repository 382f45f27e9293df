#include "attention/cpu/execute.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/units.h"
#include "base/checked_math.h"
#include "tensor/row_copy.h"

namespace kvcache::internal {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

PartialRows partial_at(float* base, std::int64_t rows) {
  const std::int64_t padded = round_up(rows, kRowPadding);
  return {base, base + padded, base + 2 * padded};
}

// The rows of a partial from `row` on.
PartialRows rows_from(const PartialRows& partial, std::int64_t row, std::int64_t v_dim) {
  return {partial.max + row, partial.sum + row, partial.acc + row * round_up(v_dim, kRowPadding)};
}

// The rows of a tile for the query heads of one KV head.
RowCopy tile_rows(const AttentionProblem& problem, const WorkTile& tile, std::int64_t dim) {
  RowCopy rows;
  rows.shape[0] = 1;
  rows.shape[1] = tile.num_queries;
  rows.shape[2] = problem.group();
  rows.shape[3] = dim;
  return rows;
}

// Strides of those rows in a tensor, or in the worker's memory.
template <typename Byte>
void set_strides(const RowTensor<Byte>& tensor, std::int64_t (&strides)[4]) {
  const std::int64_t size = size_of(tensor.dtype);
  strides[1] = tensor.query_stride * size;
  strides[2] = tensor.head_stride * size;
  strides[3] = tensor.dim_stride * size;
}
void set_strides(std::int64_t group, std::int64_t dim, std::int64_t (&strides)[4]) {
  strides[3] = sizeof(float);
  strides[2] = round_up(dim, kRowPadding) * strides[3];
  strides[1] = group * strides[2];
}

// The tile's query rows as float, times the scale, padded with zeros.
void load_queries(const AttentionProblem& problem, const RowKernels& kernels, const WorkTile& tile,
                  std::int32_t kv_head, float* to) {
  const std::int64_t dim = problem.kv.k_head_dim;
  const std::int64_t stride = round_up(dim, kRowPadding);
  const std::int64_t group = problem.group();
  RowCopy rows = tile_rows(problem, tile, dim);
  rows.src = row_of(problem.q, problem, tile.seq, tile.query_begin, kv_head * group);
  rows.src_dtype = problem.q.dtype;
  set_strides(problem.q, rows.src_strides);
  rows.dst = to;
  set_strides(group, dim, rows.dst_strides);
  kernels.load(rows);
  for (std::int64_t r = 0; r < tile.num_queries * group; ++r, to += stride) {
    for (std::int64_t d = 0; d < dim; ++d) to[d] *= problem.scale;
    for (std::int64_t d = dim; d < stride; ++d) to[d] = 0;
  }
  if (!rotates_keys(problem.kv)) return;
  const std::int64_t count = tile.num_queries * group;
  kernels.rotate(to - count * stride, count, stride, dim);
}

// out = acc / sum, learned sinks in the denominator; lse = max + ln(sum).
void finish_rows(const AttentionProblem& problem, const RowKernels& kernels, const WorkTile& tile,
                 std::int32_t kv_head, const PartialRows& partial) {
  const std::int64_t dim = problem.kv.v_head_dim;
  const std::int64_t stride = round_up(dim, kRowPadding);
  const std::int64_t group = problem.group();
  std::int64_t r = 0;
  for (std::int64_t query = 0; query < tile.num_queries; ++query) {
    for (std::int64_t member = 0; member < group; ++member, ++r) {
      const std::int64_t head = kv_head * group + member;
      const double sum = partial.sum[r];
      const bool empty = sum == 0;
      const double lse = empty ? -kInfinity : partial.max[r] + std::log(sum);
      double denominator = empty ? 1 : sum;
      if (problem.sinks != nullptr && !empty) {
        denominator *= 1 + std::exp(problem.sinks[head] - lse);
      }
      float* acc = partial.acc + r * stride;
      const float factor = static_cast<float>(1 / denominator);
      for (std::int64_t d = 0; d < dim; ++d) acc[d] = empty ? 0 : acc[d] * factor;
      if (problem.lse.data != nullptr) {
        lse_of(problem, tile.seq, tile.query_begin + query, head) = static_cast<float>(lse);
      }
    }
  }
  if (rotates_values(problem.kv)) kernels.rotate(partial.acc, r, stride, dim);
  RowCopy rows = tile_rows(problem, tile, dim);
  rows.src = partial.acc;
  set_strides(group, dim, rows.src_strides);
  rows.dst = row_of(problem.out, problem, tile.seq, tile.query_begin, kv_head * group);
  rows.dst_dtype = problem.out.dtype;
  set_strides(problem.out, rows.dst_strides);
  kernels.store(rows);
}

// Tiles that take a pass over a unit together, for one KV head: the arguments of the kernels'
// calls.
class Pass {
 public:
  Pass(const Execution& execution, std::int32_t kv_head, std::byte* scratch)
      : execution_(execution), kv_head_(kv_head), scratch_(scratch) {
    const AttentionProblem& problem = execution.problem;
    tile_.group = static_cast<std::int32_t>(problem.group());
    tile_.k_dim = problem.kv.k_head_dim;
    tile_.v_dim = problem.kv.v_head_dim;
    tile_.exact = problem.reproducible;
    tile_.prefetch = execution.prefetch;
    tile_.softcap = problem.softcap;
    if (problem.alibi_slopes != nullptr) {
      tile_.alibi_slopes = problem.alibi_slopes + kv_head * problem.group();
    }
    tile_.window = problem.window;
    tile_.sink_tokens = problem.sink_tokens;
    tile_.chunk = problem.chunk;
    tile_.q = reinterpret_cast<float*>(scratch + execution.layout.q);
    tile_.position = reinterpret_cast<std::int64_t*>(scratch + execution.layout.position);
  }

  // Brings in the queries of tiles begin .. end of the list, unless they are there.
  void load(std::int32_t begin, std::int32_t end) {
    if (begin == tile_begin_ && end == tile_end_) return;
    const AttentionProblem& problem = execution_.problem;
    tile_begin_ = begin;
    tile_end_ = end;
    part_ = -1;
    first_ = &execution_.work.tiles()[static_cast<std::size_t>(begin)];
    num_queries_ = problem.num_queries(first_->seq);
    first_query_row_ = total_length(problem.kv, first_->seq) - num_queries_ + first_->query_begin;
    tile_.path = problem.path(first_->seq);
    if (problem.chunk > 0) tile_.chunk_origin = chunk_origin(problem.kv, first_->seq);
    tile_.num_queries = 0;
    for (std::int32_t t = begin; t < end; ++t) add(execution_.work.tiles()[std::size_t(t)]);
    if (problem.mask.defined()) {  // then the pass has one tile
      tile_.mask =
          mask_row(problem, first_->seq, first_->query_begin, std::int64_t{kv_head_} * tile_.group);
      tile_.mask_head_stride = problem.mask.shape[1] == 1 ? 0 : problem.mask.strides[1];
      tile_.mask_query_stride = problem.mask.strides[2];
      tile_.mask_key_stride = problem.mask.strides[3];
    }
  }

  std::int64_t rows() const { return std::int64_t{tile_.num_queries} * tile_.group; }

  // Attends to unit `index` if any query sees any of it by the rules.
  // Unit `next` is read after it; -1: nobody knows.
  bool attend(std::int32_t index, std::int32_t next, const PartialRows& partial) {
    const KvView& kv = execution_.problem.kv;
    const Unit unit = unit_at(kv, first_->seq, index, tile_.path);
    if (unit.part != part_) enter_part(unit);
    if (!visible_.touches(unit.begin, unit.end)) return false;
    CutTask task;
    task.tile = &tile_;
    task.rows = &rows_;
    task.begin = std::max(unit.begin, visible_.begin);
    task.end = std::min(unit.end, visible_.end);
    task.cut = unit.cut;
    if (next >= 0) {
      const Unit after = unit_at(kv, first_->seq, next, tile_.path);
      if (after.part == unit.part) task.next = after.cut;
    }
    // Every query of tiles that share a pass sees all of the unit.
    const bool causal = execution_.rules.causal && tile_end_ - tile_begin_ == 1;
    task.causal_end = causal ? first_query_row_ - unit.part_row + 1
                             : std::numeric_limits<std::int64_t>::max() / 2;
    task.mask_key = unit.part_row;
    task.partial = partial;
    task.scratch = scratch_ + execution_.layout.kernel;
    execution_.kernels.attend_cut(task);
    return true;
  }

 private:
  void add(const WorkTile& tile) {
    const AttentionProblem& problem = execution_.problem;
    float* q = reinterpret_cast<float*>(scratch_ + execution_.layout.q);
    load_queries(problem, execution_.rows, tile, kv_head_,
                 q + rows() * round_up(tile_.k_dim, kRowPadding));
    std::int64_t* position =
        reinterpret_cast<std::int64_t*>(scratch_ + execution_.layout.position) + tile_.num_queries;
    const std::int64_t row =
        total_length(problem.kv, tile.seq) - problem.num_queries(tile.seq) + tile.query_begin;
    for (std::int64_t query = 0; query < tile.num_queries; ++query) {
      position[query] = position_in_view(problem.kv, tile.seq, row + query);
    }
    tile_.num_queries += tile.num_queries;
  }

  // The rows of this pass's head; `page` is what the kernels call page 0 where there is no table.
  RowsView head_rows(const RowsView& rows, std::int64_t page) const {
    RowsView result = rows;
    if (page != 0) {
      // One start serves both kinds of pages: what lies between them goes into the offset.
      const std::byte* const start = rows.start(page, rows.page_stride);
      if (rows.scale_page_stride != 0) {
        const std::int64_t between = rows.start(page, rows.scale_page_stride) - start;
        result.scale_offset += between;
        result.zero_offset += between;
      }
      result.data = start;
      result.chunks = nullptr;
    }
    result.offset += kv_head_ * rows.head_stride;
    result.scale_offset += kv_head_ * rows.scale_head_stride;
    result.zero_offset += kv_head_ * (rows.scale_head_stride / 2);
    return result;
  }

  void enter_part(const Unit& unit) {
    const KvView& kv = execution_.problem.kv;
    const KvPart& part = kv.parts[unit.part];
    const std::int32_t seq = first_->seq;
    part_ = unit.part;
    visible_ = visible_rows(kv, unit.part, seq, num_queries_, first_->query_begin,
                            first_->query_begin + first_->num_queries - 1, execution_.rules);
    // Without a table sequence s is page s.
    const std::int64_t page = part.block_table == nullptr ? seq : 0;
    rows_ = KvRows();
    rows_.k = head_rows(part.k, page);
    rows_.v = head_rows(part.v, page);
    rows_.page_size = part.page_size;
    if (part.block_table != nullptr) {
      rows_.block_table = part.block_table + seq * part.block_table_stride;
    }
    rows_.hole_begin = hole_begin_of(part, seq);
    rows_.hole_pages = hole_pages_of(part, seq);
    if (rows_.hole_pages > 0) {
      rows_.first_row = (rows_.hole_begin + rows_.hole_pages) * part.page_size;
    }
    rows_.num_rows = length_of(part, seq);
    rows_.first_index = first_index_of(part, seq);
    if (part.positions != nullptr) {
      rows_.positions = part.positions + seq * part.positions_stride;
    }
  }

  const Execution& execution_;
  const std::int32_t kv_head_;
  std::byte* scratch_;
  std::int32_t tile_begin_ = 0, tile_end_ = 0;
  const WorkTile* first_ = nullptr;   // whose rows are read
  std::int64_t num_queries_ = 0;      // of its sequence
  std::int64_t first_query_row_ = 0;  // row in the sequence of its first query
  QueryTile tile_;
  std::int32_t part_ = -1;
  KvRows rows_;
  VisibleRows visible_;
};

void set_empty(const PartialRows& partial, std::int64_t rows) {
  for (std::int64_t r = 0; r < rows; ++r) {
    partial.max[r] = -kInfinity;
    partial.sum[r] = 0;
  }
}

// One item at work, for one KV head.
class ItemRun {
 public:
  ItemRun(const Execution& execution, const WorkItem& item, std::int32_t kv_head,
          std::byte* scratch)
      : execution_(execution),
        item_(item),
        group_(execution.work.groups()[static_cast<std::size_t>(item.group)]),
        kv_head_(kv_head),
        heads_(execution.problem.group()),
        v_dim_(execution.problem.kv.v_head_dim),
        pass_(execution, kv_head, scratch),
        next_(reinterpret_cast<float*>(scratch + execution.layout.next)) {
    const WorkGroup& root = execution.work.groups()[static_cast<std::size_t>(group_.root)];
    const std::int64_t rows = root.num_queries * heads_;
    float* base = root.running < 0
                      ? reinterpret_cast<float*>(scratch + execution.layout.running)
                      : execution.workspace + root.running + kv_head * partial_floats(rows, v_dim_);
    running_ = rows_from(partial_at(base, rows), first_row(group_.tile_begin, root), v_dim_);
  }

  void run() {
    // All passes over a unit follow one another while it is in cache.
    for (std::int32_t unit = item_.unit_begin; unit < item_.unit_end; ++unit) {
      for (std::int32_t begin = group_.tile_begin; begin < group_.tile_end;) {
        const std::int32_t end = pass_end(begin);
        pass_.load(begin, end);
        attend(unit, first_row(begin, group_));
        begin = end;
      }
    }
    if (group_.unit_begin == group_.unit_end) set_empty(running_, rows());  // no key is seen

    std::atomic_ref<std::int32_t> left(
        execution_
            .items_left[std::int64_t{item_.group} * execution_.problem.kv.num_kv_heads + kv_head_]);
    if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) finish_group();
  }

 private:
  std::int64_t rows() const { return group_.num_queries * heads_; }
  const WorkTile& tile(std::int32_t index) const {
    return execution_.work.tiles()[static_cast<std::size_t>(index)];
  }
  // Rows of a group before those of a tile.
  std::int64_t first_row(std::int32_t index, const WorkGroup& group) const {
    return (tile(index).first_query - tile(group.tile_begin).first_query) * heads_;
  }

  // The tiles from `begin` on that take a pass together.
  std::int32_t pass_end(std::int32_t begin) const {
    std::int32_t end = begin + 1;
    if (!execution_.stacked) return end;
    std::int64_t queries = tile(begin).num_queries;
    while (end < group_.tile_end) {
      queries += tile(end).num_queries;
      if (queries > tile_queries(heads_)) break;
      ++end;
    }
    return end;
  }

  PartialRows spilled_at(std::int32_t place) const {
    const std::int64_t floats = partial_floats(rows(), v_dim_);
    return partial_at(execution_.workspace + group_.spilled +
                          (std::int64_t{kv_head_} * group_.num_spilled + place) * floats,
                      rows());
  }

  // The pass over a unit; its rows are those of the group from `row` on.
  void attend(std::int32_t unit, std::int64_t row) {
    const std::int32_t next_unit = unit + 1 < item_.unit_end ? group_.unit(unit + 1) : -1;
    if (item_.spilled < 0 && !group_.begins_with(unit)) {
      const PartialRows next = partial_at(next_, pass_.rows());
      if (!pass_.attend(group_.unit(unit), next_unit, next)) return;
      execution_.kernels.merge(rows_from(running_, row, v_dim_), next, pass_.rows(), v_dim_);
      return;
    }
    const PartialRows all =
        item_.spilled < 0 ? running_ : spilled_at(item_.spilled + unit - item_.unit_begin);
    const PartialRows partial = rows_from(all, row, v_dim_);
    if (!pass_.attend(group_.unit(unit), next_unit, partial)) set_empty(partial, pass_.rows());
  }

  // Merges what the items left, the earliest units first, and finishes the tiles that end here.
  void finish_group() {
    for (std::int32_t place = 0; place < group_.num_spilled; ++place) {
      execution_.kernels.merge(running_, spilled_at(place), rows(), v_dim_);
    }
    for (std::int32_t t = group_.tile_begin; t < group_.tile_end; ++t) {
      if (tile(t).last_group != item_.group) continue;
      finish_rows(execution_.problem, execution_.rows, tile(t), kv_head_,
                  rows_from(running_, first_row(t, group_), v_dim_));
    }
  }

  const Execution& execution_;
  const WorkItem& item_;
  const WorkGroup& group_;
  const std::int32_t kv_head_;
  const std::int64_t heads_;  // query heads of the KV head
  const std::int64_t v_dim_;
  Pass pass_;
  float* next_;
  PartialRows running_;  // of the group's rows
};

}  // namespace

WorkerScratch worker_scratch(const PlanView& plan) {
  WorkerScratch layout;
  const auto take = [&](std::int64_t bytes) {
    const std::int64_t at = layout.bytes;
    layout.bytes += round_up(bytes, 64);
    return at;
  };
  constexpr std::int64_t kFloat = sizeof(float);
  const std::int64_t queries = plan.size.largest_pass;
  const std::int64_t rows = queries * plan.group;
  layout.q = take(rows * round_up(plan.k_head_dim, kRowPadding) * kFloat);
  layout.position = take(queries * std::int64_t{sizeof(std::int64_t)});
  layout.running = take(partial_floats(rows, plan.v_head_dim) * kFloat);
  layout.next = take(partial_floats(rows, plan.v_head_dim) * kFloat);
  layout.kernel = take(plan.backend->cuts->scratch_bytes(rows, plan.k_head_dim, plan.v_head_dim));
  return layout;
}

void run_item(const Execution& execution, const WorkItem& item, std::int32_t kv_head,
              std::int32_t worker) noexcept {
  ItemRun(execution, item, kv_head, execution.scratch + worker * execution.layout.bytes).run();
}

}  // namespace kvcache::internal
