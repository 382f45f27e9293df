// Attention over memory of your own: no cache of ours, a plan that is reused, parts that merge.
#include <cmath>
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType, kvcache::TensorView, kvcache::MutableTensorView;

constexpr std::int32_t kHeads = 4, kKvHeads = 2, kDim = 8, kTokens = 100;

// K and V lie as [tokens, heads, head_dim].
kvcache::KvPart part_of(const float* k, const float* v, const std::int32_t* length,
                        const std::int32_t* first_position) {
  kvcache::KvPart part;
  part.k = k;
  part.v = v;
  part.k_token_stride = part.v_token_stride = kKvHeads * kDim;
  part.k_head_stride = part.v_head_stride = kDim;
  part.page_size = *length;  // contiguous: one page holds the sequence
  part.lengths = length;
  part.first_position = first_position;
  return part;
}

kvcache::KvView view_of(const kvcache::KvPart* parts, std::int32_t count) {
  kvcache::KvView view;
  view.num_seqs = 1;
  view.num_kv_heads = kKvHeads;
  view.k_head_dim = view.v_head_dim = kDim;
  view.parts = parts;
  view.num_parts = count;
  return view;
}

kvcache::Status run() {
  std::vector<float> k(kTokens * kKvHeads * kDim), v(k.size()), q(kHeads * kDim);
  for (std::size_t i = 0; i < k.size(); ++i) k[i] = std::sin(static_cast<float>(i));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = std::cos(static_cast<float>(i));
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = std::sin(2 + static_cast<float>(i));
  const std::int32_t lengths[] = {kTokens, 60, kTokens - 60}, starts[] = {0, 0, 60};
  const std::int32_t queries[] = {0, 1};
  const TensorView query(q.data(), DType::kF32, {1, kHeads, kDim});

  struct Answer {
    std::vector<float> out = std::vector<float>(kHeads * kDim), lse = std::vector<float>(kHeads);
    MutableTensorView o() { return {out.data(), DType::kF32, {1, kHeads, kDim}}; }
    MutableTensorView l() { return {lse.data(), DType::kF32, {1, kHeads}}; }
  } whole, head, tail, merged;

  // Plan once a step, run once for every layer: here one.
  const kvcache::KvPart all = part_of(k.data(), v.data(), &lengths[0], &starts[0]);
  kvcache::AttentionPlan plan;
  KVC_RETURN_IF_ERROR(plan.plan(view_of(&all, 1), queries, kHeads));
  KVC_RETURN_IF_ERROR(plan.run(query, view_of(&all, 1), whole.o(), whole.l()));
  std::printf("%s read %lld rows: out %.4f, lse %.4f\n", plan.backend(),
              static_cast<long long>(plan.rows_read()), double(whole.out[0]), double(whole.lse[0]));

  // The same keys in two places, joined by their log-sum-exp.
  const std::size_t cut = 60 * kKvHeads * kDim;
  const kvcache::KvPart first = part_of(k.data(), v.data(), &lengths[1], &starts[1]);
  const kvcache::KvPart rest = part_of(k.data() + cut, v.data() + cut, &lengths[2], &starts[2]);
  KVC_RETURN_IF_ERROR(attend(query, queries, view_of(&first, 1), head.o(), head.l()));
  KVC_RETURN_IF_ERROR(attend(query, queries, view_of(&rest, 1), tail.o(), tail.l()));
  KVC_RETURN_IF_ERROR(
      kvcache::merge(head.o(), head.l(), tail.o(), tail.l(), merged.o(), merged.l()));
  std::printf("60 and 40 rows merged: out %.4f, lse %.4f\n", double(merged.out[0]),
              double(merged.lse[0]));

  // The last 16 keys and the first 4, each position's distance cut off.
  kvcache::AttentionOptions window;
  window.window = 16;
  window.sink_tokens = 4;
  KVC_RETURN_IF_ERROR(attend(query, queries, view_of(&all, 1), whole.o(), whole.l(), window));
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
