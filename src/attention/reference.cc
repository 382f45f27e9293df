#include "attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checked_math.h"
#include "tensor/codecs/codec.h"
#include "tensor/codecs/rotate.h"
#include "tensor/half.h"

namespace kvcache::internal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double element(const void* base, DType dtype, std::int64_t at) {
  switch (dtype) {
    case DType::kF16:
      return f16_to_f32(static_cast<const std::uint16_t*>(base)[at]);
    case DType::kBF16:
      return bf16_to_f32(static_cast<const std::uint16_t*>(base)[at]);
    default:
      return static_cast<const float*>(base)[at];
  }
}

void set_element(void* base, DType dtype, std::int64_t at, double value) {
  const float rounded = static_cast<float>(value);
  switch (dtype) {
    case DType::kF16:
      static_cast<Float16*>(base)[at] = to_float16(rounded);
      break;
    case DType::kBF16:
      static_cast<BFloat16*>(base)[at] = to_bfloat16(rounded);
      break;
    default:
      static_cast<float*>(base)[at] = rounded;
  }
}

// Memory of one worker: a row of values in double, and a query and a row of codes as floats.
struct Scratch {
  double* values;
  float* query;  // rotated, where keys are
  float* row;
};

// A row of a part as floats, rotated where it is stored so.
void read_row(const KvPart& part, const RowsView& rows, std::int32_t seq, std::int64_t local,
              std::int64_t kv_head, std::int64_t dim, float* to) {
  if (rows.format.is_coded()) {
    const RowPlace at = place_of(part, seq, local);
    return decode_rotated(rows.format, coded_row_at(rows, at.page, kv_head, at.slot), dim, to);
  }
  const std::byte* row = row_of(part, rows, seq, local, kv_head);
  for (std::int64_t d = 0; d < dim; ++d) {
    to[d] = static_cast<float>(element(row, rows.format.dtype, d));
  }
}

// One query row and head, and what they are asked about a key.
struct QueryRow {
  const AttentionProblem& problem;
  std::int32_t seq;
  std::int64_t query;
  std::int64_t head;
  std::int64_t row;       // of the query in its sequence: S - L + query
  std::int64_t position;  // of that row
  std::int64_t origin;    // of chunks
  Scratch scratch;

  float mask_at(std::int64_t key_row) const {
    return mask_row(problem, seq, query, head)[key_row * problem.mask.strides[3]];
  }

  // `key_row` counts over all parts, `local` within `part`.
  bool sees(const KvPart& part, std::int64_t key_row, std::int64_t local) const {
    if (local < first_visible_of(part, seq)) return false;
    if (problem.causal && key_row > row) return false;
    if (problem.window > 0) {
      const std::int64_t key_position = position_of(part, seq, local);
      const bool in_window = position - key_position < problem.window;
      const bool is_sink = key_position < problem.sink_tokens;
      if (!in_window && !is_sink) return false;
    }
    if (problem.chunk > 0) {
      const std::int64_t begin = chunk_begin(position, origin, problem.chunk);
      const std::int64_t key_position = position_of(part, seq, local);
      if (key_position < begin || key_position >= begin + problem.chunk) return false;
    }
    return !problem.mask.defined() || mask_at(key_row) != -kInfinity;
  }

  double score(const KvPart& part, std::int64_t key_row, std::int64_t local) const {
    const double dot = product(part, local);
    double s = problem.scale * dot;
    if (problem.softcap > 0) s = problem.softcap * std::tanh(s / problem.softcap);
    if (problem.alibi_slopes != nullptr) {
      s -= static_cast<double>(problem.alibi_slopes[head]) *
           static_cast<double>(position - position_of(part, seq, local));
    }
    if (problem.mask.defined()) s += mask_at(key_row);
    return s;
  }

  double product(const KvPart& part, std::int64_t local) const {
    const std::int64_t kv_head = head / problem.group();
    const std::int64_t dim = problem.kv.k_head_dim;
    double dot = 0;
    if (!part.k.format.is_coded() && !part.k.format.rotate) {
      const std::byte* k = row_of(part, part.k, seq, local, kv_head);
      const std::byte* q = row_of(problem.q, problem, seq, query, head);
      for (std::int64_t d = 0; d < dim; ++d) {
        dot += element(q, problem.q.dtype, d * problem.q.dim_stride) *
               element(k, part.k.format.dtype, d);
      }
      return dot;
    }
    read_row(part, part.k, seq, local, kv_head, dim, scratch.row);
    for (std::int64_t d = 0; d < dim; ++d) dot += double{scratch.query[d]} * scratch.row[d];
    return dot;
  }

  // Calls visit(part, local, score) for the visible keys, in key order.
  template <typename Visit>
  void for_each_visible(Visit visit) const {
    std::int64_t part_begin = 0;
    for (std::int32_t p = 0; p < problem.kv.num_parts; ++p) {
      const KvPart& part = problem.kv.parts[p];
      for (std::int64_t local = 0; local < length_of(part, seq); ++local) {
        if (sees(part, part_begin + local, local)) {
          visit(part, local, score(part, part_begin + local, local));
        }
      }
      part_begin += length_of(part, seq);
    }
  }
};

// Attention of one query and one head over the keys of its sequence: writes its row of `out` and
// its element of `lse`.
void reference_row(const AttentionProblem& problem, std::int32_t seq, std::int64_t query,
                   std::int64_t head, const Scratch& scratch) {
  const std::int64_t v_dim = problem.kv.v_head_dim;
  const std::int64_t row = total_length(problem.kv, seq) - problem.num_queries(seq) + query;
  const QueryRow self{problem,
                      seq,
                      query,
                      head,
                      row,
                      position_in_view(problem.kv, seq, row),
                      chunk_origin(problem.kv, seq),
                      scratch};
  const std::byte* q = row_of(problem.q, problem, seq, query, head);
  for (std::int64_t d = 0; d < problem.kv.k_head_dim; ++d) {
    scratch.query[d] = static_cast<float>(element(q, problem.q.dtype, d * problem.q.dim_stride));
  }
  if (rotates_keys(problem.kv)) rotate_row(scratch.query, problem.kv.k_head_dim);
  double* const values = scratch.values;

  double max = -kInfinity;
  self.for_each_visible([&](const KvPart&, std::int64_t, double s) {
    if (s > max || std::isnan(s)) max = s;
  });

  // Weights are relative to the largest score. Where every score is -inf (a product overflowed)
  // they are all 0, as if nothing were seen.
  double sum = 0;
  for (std::int64_t d = 0; d < v_dim; ++d) values[d] = 0;
  if (max != -kInfinity) {
    self.for_each_visible([&](const KvPart& part, std::int64_t local, double s) {
      const double weight = std::exp(s - max);
      read_row(part, part.v, seq, local, head / problem.group(), v_dim, scratch.row);
      sum += weight;
      for (std::int64_t d = 0; d < v_dim; ++d) values[d] += weight * scratch.row[d];
    });
  }

  const double lse = sum == 0 ? -kInfinity : max + std::log(sum);
  double denominator = sum == 0 ? 1 : sum;
  // A learned sink is one more term of the denominator, and none of lse.
  if (problem.sinks != nullptr) denominator *= 1 + std::exp(problem.sinks[head] - lse);
  for (std::int64_t d = 0; d < v_dim; ++d) values[d] = sum == 0 ? 0 : values[d] / denominator;
  if (rotates_values(problem.kv)) rotate_row(values, v_dim);

  std::byte* out = row_of(problem.out, problem, seq, query, head);
  for (std::int64_t d = 0; d < v_dim; ++d) {
    set_element(out, problem.out.dtype, d * problem.out.dim_stride, values[d]);
  }
  if (problem.lse.data != nullptr) {
    lse_of(problem, seq, query, head) = static_cast<float>(lse);
  }
}

// Of one worker, at `memory`: null where only the bytes are asked for.
std::int64_t carve(const PlanView& plan, std::byte* memory, Scratch* scratch) {
  std::int64_t used = 0;
  const auto take = [&](std::int64_t bytes) {
    std::byte* const at = memory == nullptr ? nullptr : memory + used;
    used += round_up(bytes, 64);
    return at;
  };
  constexpr std::int64_t kFloat = sizeof(float);
  scratch->values = reinterpret_cast<double*>(take(plan.v_head_dim * std::int64_t{sizeof(double)}));
  scratch->query = reinterpret_cast<float*>(take(plan.k_head_dim * kFloat));
  scratch->row =
      reinterpret_cast<float*>(take(std::max(plan.k_head_dim, plan.v_head_dim) * kFloat));
  return used;
}

std::int64_t scratch_bytes(const PlanView& plan) {
  Scratch scratch;
  return carve(plan, nullptr, &scratch);
}

Result<std::int64_t> workspace(const PlanView& plan) {
  return scratch_bytes(plan) * plan.concurrency;
}

Status run(const PlanView& plan, const AttentionProblem& problem, const ExecContext& context) {
  struct Job {
    const PlanView& plan;
    const AttentionProblem& problem;
  } job{plan, problem};
  context.get().parallel_for(
      problem.kv.num_seqs * problem.num_heads,
      [](void* self, std::int64_t task, std::int32_t worker) noexcept {
        const Job& here = *static_cast<const Job*>(self);
        Scratch scratch;
        carve(here.plan, here.plan.workspace + worker * scratch_bytes(here.plan), &scratch);
        const std::int32_t seq = static_cast<std::int32_t>(task / here.problem.num_heads);
        const std::int64_t head = task % here.problem.num_heads;
        for (std::int64_t query = 0; query < here.problem.num_queries(seq); ++query) {
          reference_row(here.problem, seq, query, head, scratch);
        }
      },
      &job);
  return {};
}

}  // namespace

const Attention& reference_attention() noexcept {
  static constexpr Attention attention = {workspace, run};
  return attention;
}

}  // namespace kvcache::internal
