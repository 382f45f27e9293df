#include "attention/reference.h"

#include <cmath>
#include <limits>

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

// One query row and head, and what they are asked about a key.
struct QueryRow {
  const AttentionProblem& problem;
  std::int32_t seq;
  std::int64_t query;
  std::int64_t head;
  std::int64_t row;       // of the query in its sequence: S - L + query
  std::int64_t position;  // of that row

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
    return !problem.mask.defined() || mask_at(key_row) != -kInfinity;
  }

  double score(const KvPart& part, std::int64_t key_row, std::int64_t local) const {
    const std::int64_t kv_head = head / problem.group();
    const std::byte* k = row_of(part, part.k, seq, local, kv_head);
    const std::byte* q = row_of(problem.q, problem, seq, query, head);
    double dot = 0;
    for (std::int64_t d = 0; d < problem.kv.k_head_dim; ++d) {
      dot += element(q, problem.q.dtype, d * problem.q.dim_stride) *
             element(k, part.k.format.dtype, d);
    }
    double s = problem.scale * dot;
    if (problem.softcap > 0) s = problem.softcap * std::tanh(s / problem.softcap);
    if (problem.alibi_slopes != nullptr) {
      s -= static_cast<double>(problem.alibi_slopes[head]) *
           static_cast<double>(position - position_of(part, seq, local));
    }
    if (problem.mask.defined()) s += mask_at(key_row);
    return s;
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

}  // namespace

void reference_row(const AttentionProblem& problem, std::int32_t seq, std::int64_t query,
                   std::int64_t head, double* scratch) {
  const std::int64_t v_dim = problem.kv.v_head_dim;
  const std::int64_t row = total_length(problem.kv, seq) - problem.num_queries(seq) + query;
  const QueryRow self{problem, seq, query, head, row, position_in_view(problem.kv, seq, row)};

  double max = -kInfinity;
  self.for_each_visible([&](const KvPart&, std::int64_t, double s) {
    if (s > max || std::isnan(s)) max = s;
  });

  // Weights are relative to the largest score. Where every score is -inf (a product overflowed)
  // they are all 0, as if nothing were seen.
  double sum = 0;
  for (std::int64_t d = 0; d < v_dim; ++d) scratch[d] = 0;
  if (max != -kInfinity) {
    self.for_each_visible([&](const KvPart& part, std::int64_t local, double s) {
      const double weight = std::exp(s - max);
      const std::byte* v = row_of(part, part.v, seq, local, head / problem.group());
      sum += weight;
      for (std::int64_t d = 0; d < v_dim; ++d) {
        scratch[d] += weight * element(v, part.v.format.dtype, d);
      }
    });
  }

  const double lse = sum == 0 ? -kInfinity : max + std::log(sum);
  double denominator = sum == 0 ? 1 : sum;
  // A learned sink is one more term of the denominator, and none of lse.
  if (problem.sinks != nullptr) denominator *= 1 + std::exp(problem.sinks[head] - lse);

  std::byte* out = row_of(problem.out, problem, seq, query, head);
  for (std::int64_t d = 0; d < v_dim; ++d) {
    const double value = sum == 0 ? 0 : scratch[d] / denominator;
    set_element(out, problem.out.dtype, d * problem.out.dim_stride, value);
  }
  if (problem.lse.data != nullptr) {
    lse_of(problem, seq, query, head) = static_cast<float>(lse);
  }
}

}  // namespace kvcache::internal
