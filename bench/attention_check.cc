#include "bench/attention_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "kvcache/attention.h"

namespace kvcache::bench {
namespace {

constexpr double kMostElements = 3e8;  // that the reference may read

// One query of a sequence, for the query heads of one KV head.
struct Sample {
  std::int32_t seq = 0;
  std::int64_t query = 0;
  std::int32_t kv_head = 0;
};

class Samples {
 public:
  Samples(const AttentionAnswer& answer, std::uint64_t seed) : answer_(answer), random_(seed) {}

  // All of them, those of the first and the last query in front and the rest in random order.
  std::vector<Sample> in_order() {
    std::vector<Sample> samples;
    for (std::int32_t seq = 0; seq < answer_.view.num_seqs; ++seq) {
      for (std::int64_t query = 0; query < answer_.queries; ++query) {
        for (std::int32_t head = 0; head < answer_.view.num_kv_heads; ++head) {
          samples.push_back({seq, query, head});
        }
      }
    }
    std::shuffle(samples.begin(), samples.end(), random_);
    std::stable_partition(samples.begin(), samples.end(), [&](const Sample& sample) {
      return sample.kv_head == 0 && (sample.query == 0 || sample.query == answer_.queries - 1);
    });
    return samples;
  }

 private:
  const AttentionAnswer& answer_;
  std::mt19937_64 random_;
};

// The rows that a sample sees, as a view of one sequence and one KV head.
struct SampleView {
  KvPart part;
  std::int32_t length = 0;
  KvView view;

  SampleView(const AttentionAnswer& answer, const Sample& sample) : part(answer.view.parts[0]) {
    length =
        static_cast<std::int32_t>(part.lengths[sample.seq] - answer.queries + sample.query + 1);
    std::int64_t page = 0;
    if (part.block_table != nullptr) {
      part.block_table += sample.seq * part.block_table_stride;
    } else {
      page = sample.seq;
    }
    for (RowsView* rows : {&part.k, &part.v}) {
      rows->offset += page * rows->page_stride + sample.kv_head * rows->head_stride;
    }
    part.lengths = &length;
    view = answer.view;
    view.num_seqs = 1;
    view.num_kv_heads = 1;
    view.parts = &part;
  }
  SampleView(const SampleView&) = delete;
  SampleView& operator=(const SampleView&) = delete;
};

}  // namespace

Result<double> check_attention(const AttentionAnswer& answer, std::uint64_t seed,
                               const ExecContext& context) {
  for (const float x : answer.out) {
    if (!std::isfinite(x)) return std::numeric_limits<double>::infinity();
  }
  const std::int64_t group = answer.heads / answer.view.num_kv_heads;
  const std::int64_t k_dim = answer.view.k_head_dim;
  const std::int64_t v_dim = answer.view.v_head_dim;
  AttentionOptions options;
  options.backend = "reference";
  std::vector<float> expected(static_cast<std::size_t>(group * v_dim));
  double difference = 0;
  double norm = 0;
  double elements = 0;
  for (const Sample& sample : Samples(answer, seed).in_order()) {
    const SampleView rows(answer, sample);
    const std::int64_t row = sample.seq * answer.queries + sample.query;
    const std::int64_t first = row * answer.heads + sample.kv_head * group;
    const TensorView q(answer.q.data() + first * k_dim, DType::kF32, {1, group, k_dim});
    const MutableTensorView out(expected.data(), DType::kF32, {1, group, v_dim});
    const std::int32_t qo_indptr[] = {0, 1};
    KVC_RETURN_IF_ERROR(attend(q, qo_indptr, rows.view, out, {}, options, context));
    const float* found = answer.out.data() + first * v_dim;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double want = expected[i];
      difference += (found[i] - want) * (found[i] - want);
      norm += want * want;
    }
    elements += static_cast<double>(rows.length) * static_cast<double>(group * (2 * k_dim + v_dim));
    if (elements > kMostElements) break;
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

}  // namespace kvcache::bench
