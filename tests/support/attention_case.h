// A whole attention call that a test can repeat: data, options and storage, run through Plan.
#ifndef KVCACHE_TESTS_SUPPORT_ATTENTION_CASE_H_
#define KVCACHE_TESTS_SUPPORT_ATTENTION_CASE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "attention/plan.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kvcache/attention.h"
#include "kvcache/executor.h"
#include "support/kv_fixture.h"
#include "support/slow.h"
#include "support/tensors.h"

namespace kvcache::testing {

inline std::vector<std::string> backend_names(bool with_reference) {
  std::vector<std::string> names;
  std::int32_t count = 0;
  const internal::Backend* all = internal::all_backends(&count);
  for (std::int32_t i = 0; i < count; ++i) {
    if (!all[i].availability.here) continue;
    const bool definition = all[i].attends == internal::Attends::kByDefinition;
    if (with_reference || !definition) names.push_back(all[i].name);
  }
  if (kOneBackend) names.resize(1);
  return names;
}

struct Attended {
  std::vector<float> out;  // [total_q, num_heads, v_dim]
  std::vector<float> lse;  // [total_q, num_heads]
};

struct AttentionCase {
  KvRowsData data{{}, 1, 1, 1};
  KvStorageOptions storage;
  std::int32_t num_heads = 1;
  std::vector<std::int32_t> queries;  // [num_seqs]
  std::vector<float> q;               // [total_q, num_heads, k_dim]
  DType q_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  AttentionOptions options;  // its pointers are set from what follows
  std::vector<float> alibi_slopes;
  std::vector<float> sinks;
  HostTensor mask;
  bool has_mask = false;

  std::vector<std::int32_t> qo_indptr() const {
    std::vector<std::int32_t> indptr = {0};
    for (std::int32_t count : queries) indptr.push_back(indptr.back() + count);
    return indptr;
  }

  // Whether `backend` rounds queries or weights to bf16: prefill through dot products of pairs.
  bool rounds(const std::string& backend) const {
    if (backend != "avx512bf16" || options.reproducible) return false;
    if (storage.k_dtype != DType::kBF16 && storage.v_dtype != DType::kBF16) return false;
    return std::any_of(queries.begin(), queries.end(),
                       [](std::int32_t count) { return count > internal::kDecodeQueries; });
  }

  AttentionOptions options_for(const std::string& backend) const {
    AttentionOptions result = options;
    result.backend = backend.c_str();
    if (!alibi_slopes.empty()) result.alibi_slopes = alibi_slopes.data();
    if (!sinks.empty()) result.sinks = sinks.data();
    if (has_mask) result.mask = mask;
    return result;
  }

  // Outputs are poisoned before.
  Attended run(const std::string& backend, Executor& executor = serial_executor()) const {
    const KvStorage stored(data, storage);
    return run_on(stored.view(), backend, executor);
  }

  Attended run_on(const KvView& view, const std::string& backend,
                  Executor& executor = serial_executor()) const {
    const std::vector<std::int32_t> indptr = qo_indptr();
    const HostTensor q_tensor =
        tensor_of<float>({indptr.back(), num_heads, data.k_dim}, q, q_dtype);
    HostTensor out(out_dtype, {indptr.back(), num_heads, data.v_dim});
    HostTensor lse(DType::kF32, {indptr.back(), num_heads});
    for (std::int64_t i = 0; i < out.num_elements(); ++i) out.set(i, NAN);
    for (std::int64_t i = 0; i < lse.num_elements(); ++i) lse.set(i, NAN);
    const AttentionOptions all = options_for(backend);
    const ExecContext context{&executor, nullptr};
    internal::Plan plan;
    Status status = plan.plan(view, indptr, num_heads, all, context);
    EXPECT_TRUE(status.ok()) << status.to_string();
    status = plan.run(q_tensor, view, out.mutable_view(), lse.mutable_view(), all, context);
    EXPECT_TRUE(status.ok()) << status.to_string();
    return {values(out), values(lse)};
  }

  // Sequence `seq` of the batch in `view` as a batch of its own.
  Attended run_alone(const KvView& view, std::int32_t seq, const std::string& backend) const {
    std::vector<KvPart> parts(view.parts, view.parts + view.num_parts);
    for (KvPart& part : parts) {
      if (part.block_table != nullptr) {
        part.block_table += seq * part.block_table_stride;
      } else {
        for (RowsView* rows : {&part.k, &part.v}) {
          const std::byte* const page = rows->page_at(seq);
          rows->scale_offset = rows->scales_at(seq, 0) - page;
          rows->zero_offset = rows->zeros_at(seq, 0) - page;
          rows->data = page;
          rows->chunks = nullptr;
          rows->offset = 0;
        }
      }
      part.lengths += seq;
      if (part.first_position != nullptr) part.first_position += seq;
      if (part.first_visible != nullptr) part.first_visible += seq;
      if (part.positions != nullptr) part.positions += seq * part.positions_stride;
    }
    KvView single = view;
    single.num_seqs = 1;
    single.parts = parts.data();

    AttentionCase c = *this;
    const std::int64_t row = std::int64_t{num_heads} * data.k_dim;
    c.queries = {queries[static_cast<std::size_t>(seq)]};
    const std::vector<std::int32_t> indptr = qo_indptr();
    c.q.assign(q.begin() + indptr[static_cast<std::size_t>(seq)] * row,
               q.begin() + indptr[static_cast<std::size_t>(seq) + 1] * row);
    if (has_mask && mask.view().shape[0] > 1) {
      const TensorView all = mask;
      c.mask = HostTensor(DType::kF32, {1, all.shape[1], all.shape[2], all.shape[3]});
      const std::int64_t count = c.mask.num_elements();
      const std::vector<float> biases = values(all);
      for (std::int64_t i = 0; i < count; ++i) {
        c.mask.set(i, biases[static_cast<std::size_t>(seq * count + i)]);
      }
    }
    return c.run_on(single, backend);
  }

  template <typename Rng>
  void randomize(Rng& rng, float k_scale = 1) {
    data.randomize(rng, k_scale);
    std::normal_distribution<float> normal;
    q.resize(static_cast<std::size_t>(qo_indptr().back()) * num_heads * data.k_dim);
    for (float& x : q) x = normal(rng);
  }
};

// Relative root mean square of found - expected; infinite where one is finite and the other not.
inline double relative_rms(const std::vector<float>& found, const std::vector<float>& expected) {
  if (found.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!std::isfinite(expected[i])) {
      if (std::isfinite(found[i])) return std::numeric_limits<double>::infinity();
      continue;
    }
    if (!std::isfinite(found[i])) return std::numeric_limits<double>::infinity();
    const double difference = static_cast<double>(found[i]) - expected[i];
    error += difference * difference;
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return error == 0 ? 0 : std::sqrt(error / norm);
}

inline void expect_close(const Attended& found, const Attended& expected, double tolerance = 1e-5,
                         double lse_tolerance = 1e-5) {
  EXPECT_LE(relative_rms(found.out, expected.out), tolerance);
  ASSERT_EQ(found.lse.size(), expected.lse.size());
  for (std::size_t i = 0; i < found.lse.size(); ++i) {
    const float want = expected.lse[i];
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(found.lse[i])) << "lse at " << i;
    } else if (std::isinf(want)) {
      EXPECT_EQ(found.lse[i], want) << "lse at " << i;
    } else {
      EXPECT_NEAR(found.lse[i], want, lse_tolerance * (1 + std::abs(want))) << "lse at " << i;
    }
  }
}

// Bit for bit; NaN equals NaN.
inline void expect_same_bits(const std::vector<float>& found, const std::vector<float>& expected,
                             const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (std::isnan(found[i]) && std::isnan(expected[i])) continue;
    ASSERT_EQ(std::signbit(found[i]), std::signbit(expected[i])) << what << ", at " << i;
    ASSERT_EQ(found[i], expected[i]) << what << ", at " << i;
  }
}
inline void expect_same_bits(const Attended& found, const Attended& expected,
                             const std::string& what) {
  expect_same_bits(found.out, expected.out, what + ", out");
  expect_same_bits(found.lse, expected.lse, what + ", lse");
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_ATTENTION_CASE_H_
