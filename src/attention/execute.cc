#include "attention/execute.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/checked_math.h"
#include "tensor/convert.h"

namespace kvcache::internal {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

PartialRows partial_at(float* base, std::int64_t rows) {
  const std::int64_t padded = round_up(rows, kRowPadding);
  return {base, base + padded, base + 2 * padded};
}

// The tile's query rows as float, times the scale, padded with zeros.
void load_queries(const AttentionProblem& problem, const WorkItem& item, std::int32_t kv_head,
                  float* to) {
  const std::int64_t dim = problem.kv.k_head_dim;
  const std::int64_t stride = round_up(dim, kRowPadding);
  const std::int64_t group = problem.group();
  for (std::int64_t query = 0; query < item.num_queries; ++query) {
    for (std::int64_t member = 0; member < group; ++member) {
      const std::byte* from =
          row_of(problem.q, problem, item.seq, item.query_begin + query, kv_head * group + member);
      convert_row(from, problem.q.dtype, problem.q.dim_stride, to, DType::kF32, dim);
      for (std::int64_t d = 0; d < dim; ++d) to[d] *= problem.scale;
      for (std::int64_t d = dim; d < stride; ++d) to[d] = 0;
      to += stride;
    }
  }
}

void set_element(const RowTensor<std::byte>& tensor, std::byte* row, std::int64_t at, float value) {
  std::byte* to = row + at * tensor.dim_stride * size_of(tensor.dtype);
  convert_row(&value, DType::kF32, 1, to, tensor.dtype, 1);
}

// out = acc / sum, learned sinks in the denominator; lse = max + ln(sum).
void finish_rows(const AttentionProblem& problem, const WorkItem& item, std::int32_t kv_head,
                 const PartialRows& partial) {
  const std::int64_t dim = problem.kv.v_head_dim;
  const std::int64_t stride = round_up(dim, kRowPadding);
  const std::int64_t group = problem.group();
  std::int64_t r = 0;
  for (std::int64_t query = 0; query < item.num_queries; ++query) {
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

      std::byte* out = row_of(problem.out, problem, item.seq, item.query_begin + query, head);
      if (problem.out.dim_stride == 1) {
        convert_row(acc, DType::kF32, 1, out, problem.out.dtype, dim);
      } else {
        for (std::int64_t d = 0; d < dim; ++d) set_element(problem.out, out, d, acc[d]);
      }
      if (problem.lse.data != nullptr) {
        lse_of(problem, item.seq, item.query_begin + query, head) = static_cast<float>(lse);
      }
    }
  }
}

// One item at work: the arguments of its kernels' calls.
class ItemRun {
 public:
  ItemRun(const Execution& execution, const WorkItem& item, std::int32_t kv_head,
          std::byte* scratch)
      : execution_(execution), item_(item), kv_head_(kv_head) {
    const AttentionProblem& problem = execution.problem;
    const KvView& kv = problem.kv;
    num_queries_ = problem.num_queries(item.seq);
    first_query_row_ = total_length(kv, item.seq) - num_queries_ + item.query_begin;

    float* q = reinterpret_cast<float*>(scratch + execution.layout.q);
    load_queries(problem, item, kv_head, q);
    std::int64_t* position = reinterpret_cast<std::int64_t*>(scratch + execution.layout.position);
    for (std::int64_t query = 0; query < item.num_queries; ++query) {
      position[query] = position_in_view(kv, item.seq, first_query_row_ + query);
    }

    const std::int64_t group = problem.group();
    tile_.num_queries = item.num_queries;
    tile_.group = static_cast<std::int32_t>(group);
    tile_.k_dim = kv.k_head_dim;
    tile_.v_dim = kv.v_head_dim;
    tile_.path = problem.path(item.seq);
    tile_.q = q;
    tile_.position = position;
    tile_.softcap = problem.softcap;
    if (problem.alibi_slopes != nullptr)
      tile_.alibi_slopes = problem.alibi_slopes + kv_head * group;
    tile_.window = problem.window;
    tile_.sink_tokens = problem.sink_tokens;
    if (problem.mask.defined()) {
      tile_.mask = mask_row(problem, item.seq, item.query_begin, kv_head * group);
      tile_.mask_head_stride = problem.mask.shape[1] == 1 ? 0 : problem.mask.strides[1];
      tile_.mask_query_stride = problem.mask.strides[2];
      tile_.mask_key_stride = problem.mask.strides[3];
    }
    kernel_scratch_ = scratch + execution.layout.kernel;
  }

  std::int64_t rows() const { return std::int64_t{tile_.num_queries} * tile_.group; }

  // Attends to unit `index` of the sequence if any query of the tile sees any of it by the rules.
  bool attend(std::int32_t index, const PartialRows& partial) {
    const KvView& kv = execution_.problem.kv;
    const Unit unit = unit_at(kv, item_.seq, index);
    if (unit.part != part_) enter_part(unit);
    if (!visible_.touches(unit.begin, unit.end)) return false;
    CutTask task;
    task.tile = &tile_;
    task.rows = &rows_;
    task.begin = std::max(unit.begin, visible_.begin);
    task.end = std::min(unit.end, visible_.end);
    task.causal_end = execution_.rules.causal ? first_query_row_ - unit.part_row + 1
                                              : std::numeric_limits<std::int64_t>::max() / 2;
    task.mask_key = unit.part_row;
    task.partial = partial;
    task.scratch = kernel_scratch_;
    execution_.kernels.attend_cut(task);
    return true;
  }

  // Whether attend() would find the unit visible.
  bool sees(std::int32_t index) {
    const Unit unit = unit_at(execution_.problem.kv, item_.seq, index);
    if (unit.part != part_) enter_part(unit);
    return visible_.touches(unit.begin, unit.end);
  }

 private:
  void enter_part(const Unit& unit) {
    const KvView& kv = execution_.problem.kv;
    const KvPart& part = kv.parts[unit.part];
    part_ = unit.part;
    visible_ = visible_rows(kv, unit.part, item_.seq, num_queries_, item_.query_begin,
                            item_.query_begin + item_.num_queries - 1, execution_.rules);
    // Without a table sequence s is page s.
    const std::int64_t page = part.block_table == nullptr ? item_.seq : 0;
    rows_ = KvRows();
    rows_.k =
        static_cast<const std::byte*>(part.k) +
        (page * part.k_page_stride + kv_head_ * part.k_head_stride) * size_of(part.k_format.dtype);
    rows_.v =
        static_cast<const std::byte*>(part.v) +
        (page * part.v_page_stride + kv_head_ * part.v_head_stride) * size_of(part.v_format.dtype);
    rows_.k_dtype = part.k_format.dtype;
    rows_.v_dtype = part.v_format.dtype;
    rows_.k_page_stride = part.k_page_stride;
    rows_.k_token_stride = part.k_token_stride;
    rows_.v_page_stride = part.v_page_stride;
    rows_.v_token_stride = part.v_token_stride;
    rows_.page_size = part.page_size;
    if (part.block_table != nullptr) {
      rows_.block_table = part.block_table + item_.seq * part.block_table_stride;
    }
    rows_.num_rows = length_of(part, item_.seq);
    rows_.first_index = first_index_of(part, item_.seq);
    if (part.positions != nullptr) {
      rows_.positions = part.positions + item_.seq * part.positions_stride;
    }
  }

  const Execution& execution_;
  const WorkItem& item_;
  const std::int32_t kv_head_;
  std::int64_t num_queries_ = 0;      // of the sequence
  std::int64_t first_query_row_ = 0;  // row in the sequence of the tile's first query
  QueryTile tile_;
  void* kernel_scratch_ = nullptr;
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

void run_whole(const Execution& execution, const WorkItem& item, std::int32_t kv_head,
               std::byte* scratch) {
  ItemRun run(execution, item, kv_head, scratch);
  const PartialRows running =
      partial_at(reinterpret_cast<float*>(scratch + execution.layout.running), run.rows());
  const PartialRows next =
      partial_at(reinterpret_cast<float*>(scratch + execution.layout.next), run.rows());
  bool first = true;
  for (std::int32_t unit = item.unit_begin; unit < item.unit_end; ++unit) {
    if (!run.attend(unit, first ? running : next)) continue;
    if (!first) {
      execution.kernels.merge(running, next, run.rows(), execution.problem.kv.v_head_dim);
    }
    first = false;
  }
  if (first) set_empty(running, run.rows());
  finish_rows(execution.problem, item, kv_head, running);
}

void run_piece(const Execution& execution, const WorkItem& item, std::int32_t kv_head,
               std::byte* scratch) {
  ItemRun run(execution, item, kv_head, scratch);
  const AttentionProblem& problem = execution.problem;
  const SplitTile& split = execution.work.splits()[static_cast<std::size_t>(item.split)];
  const std::int64_t floats = partial_floats(run.rows(), problem.kv.v_head_dim);
  float* partials =
      execution.workspace + split.workspace + std::int64_t{kv_head} * split.units * floats;
  for (std::int32_t unit = item.unit_begin; unit < item.unit_end; ++unit) {
    run.attend(unit, partial_at(partials + unit * floats, run.rows()));
  }

  std::atomic_ref<std::int32_t> left(
      execution.items_left[item.split * problem.kv.num_kv_heads + kv_head]);
  if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  PartialRows result;
  for (std::int32_t unit = 0; unit < split.units; ++unit) {
    if (!run.sees(unit)) continue;
    const PartialRows next = partial_at(partials + unit * floats, run.rows());
    if (result.max == nullptr) {
      result = next;
    } else {
      execution.kernels.merge(result, next, run.rows(), problem.kv.v_head_dim);
    }
  }
  if (result.max == nullptr) {
    result = partial_at(partials, run.rows());
    set_empty(result, run.rows());
  }
  finish_rows(problem, item, kv_head, result);
}

}  // namespace

WorkerScratch worker_scratch(const Backend& backend, const KvView& kv, std::int64_t group,
                             std::int64_t queries) {
  WorkerScratch layout;
  const auto take = [&](std::int64_t bytes) {
    const std::int64_t at = layout.bytes;
    layout.bytes += round_up(bytes, 64);
    return at;
  };
  constexpr std::int64_t kFloat = sizeof(float);
  if (backend.attention == nullptr) {
    take(kv.v_head_dim * std::int64_t{sizeof(double)});
    return layout;
  }
  const std::int64_t rows = queries * group;
  layout.q = take(rows * round_up(kv.k_head_dim, kRowPadding) * kFloat);
  layout.position = take(queries * std::int64_t{sizeof(std::int64_t)});
  layout.running = take(partial_floats(rows, kv.v_head_dim) * kFloat);
  layout.next = take(partial_floats(rows, kv.v_head_dim) * kFloat);
  layout.kernel = take(backend.attention->scratch_bytes(rows, kv.k_head_dim, kv.v_head_dim));
  return layout;
}

void run_item(const Execution& execution, const WorkItem& item, std::int32_t kv_head,
              std::int32_t worker) noexcept {
  std::byte* scratch = execution.scratch + worker * execution.layout.bytes;
  if (item.split < 0) {
    run_whole(execution, item, kv_head, scratch);
  } else {
    run_piece(execution, item, kv_head, scratch);
  }
}

}  // namespace kvcache::internal
