// Attention over memory of your own: no cache of ours, a plan that is reused, parts that merge.
#include <cmath>
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType, kvcache::TensorView, kvcache::MutableTensorView, kvcache::OwnedKvView;

constexpr std::int32_t kHeads = 4, kKvHeads = 2, kDim = 8, kTokens = 100;

// Tokens begin .. end of one sequence whose K and V lie as [tokens, heads, head_dim].
kvcache::Result<OwnedKvView> view_of(const std::vector<float>& k, const std::vector<float>& v,
                                     std::int32_t begin, std::int32_t end) {
  const auto rows = [&](const std::vector<float>& all) {
    return TensorView(all.data() + begin * kKvHeads * kDim, DType::kF32,
                      {1, end - begin, kKvHeads, kDim});
  };
  return kvcache::dense_view({rows(k), rows(v)}, kvcache::Layout::kNHD, begin);
}

kvcache::Status run() {
  std::vector<float> k(kTokens * kKvHeads * kDim), v(k.size()), q(kHeads * kDim);
  for (std::size_t i = 0; i < k.size(); ++i) k[i] = std::sin(static_cast<float>(i));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = std::cos(static_cast<float>(i));
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = std::sin(2 + static_cast<float>(i));
  const std::int32_t queries[] = {0, 1};
  const TensorView query(q.data(), DType::kF32, {1, kHeads, kDim});

  struct Answer {
    std::vector<float> out = std::vector<float>(kHeads * kDim), lse = std::vector<float>(kHeads);
    MutableTensorView o() { return {out.data(), DType::kF32, {1, kHeads, kDim}}; }
    MutableTensorView l() { return {lse.data(), DType::kF32, {1, kHeads}}; }
  } whole, head, tail, merged;

  // Plan once a step, run once for every layer: here one.
  KVC_ASSIGN_OR_RETURN(const OwnedKvView all, view_of(k, v, 0, kTokens));
  kvcache::AttentionPlan plan;
  KVC_RETURN_IF_ERROR(plan.plan(all, queries, kHeads));
  KVC_RETURN_IF_ERROR(plan.run(query, all, whole.o(), whole.l()));
  std::printf("%s read %lld rows: out %.4f, lse %.4f\n", plan.backend(),
              static_cast<long long>(plan.rows_read()), double(whole.out[0]), double(whole.lse[0]));

  // The same keys in two places, joined by their log-sum-exp.
  KVC_ASSIGN_OR_RETURN(const OwnedKvView first, view_of(k, v, 0, 60));
  KVC_ASSIGN_OR_RETURN(const OwnedKvView rest, view_of(k, v, 60, kTokens));
  KVC_RETURN_IF_ERROR(attend(query, queries, first, head.o(), head.l()));
  KVC_RETURN_IF_ERROR(attend(query, queries, rest, tail.o(), tail.l()));
  KVC_RETURN_IF_ERROR(
      kvcache::merge(head.o(), head.l(), tail.o(), tail.l(), merged.o(), merged.l()));
  std::printf("60 and 40 rows merged: out %.4f, lse %.4f\n", double(merged.out[0]),
              double(merged.lse[0]));

  // The last 16 keys and the first 4, each position's distance cut off.
  kvcache::AttentionOptions window;
  window.window = 16;
  window.sink_tokens = 4;
  KVC_RETURN_IF_ERROR(attend(query, queries, all, whole.o(), whole.l(), window));
  std::printf("window 16 with 4 sinks: out %.4f, lse %.4f\n", double(whole.out[0]),
              double(whole.lse[0]));
  return {};
}

}  // namespace

int main() {
  const kvcache::Status status = run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
