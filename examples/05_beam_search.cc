// Beams: the batch is repeated, then reordered after each step. Over rows of memory that moves
// rows; over pages it moves references. A token's key is the token, so that beams can be read.
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType, kvcache::TensorView, kvcache::MutableTensorView, kvcache::SequenceId;
using Tokens = std::vector<float>;

TensorView rows_of(const Tokens& tokens, std::int64_t batch) {
  return {
      tokens.data(), DType::kF32, {batch, 1, static_cast<std::int64_t>(tokens.size()) / batch, 1}};
}

TensorView indices(const std::vector<std::int64_t>& beams) {
  return {beams.data(), DType::kI64, {static_cast<std::int64_t>(beams.size())}};
}

// What each step decides: which beam every new beam goes on from, and with which token.
const std::vector<std::int64_t> kFrom[] = {{3, 1, 0, 2}, {0, 0, 2, 2}};
const Tokens kNext[] = {{13, 14, 15, 16}, {23, 24, 25, 26}};

kvcache::Status layered() {
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::DynamicCache::create());
  const Tokens prompt = {1, 2, 3, 4, 5}, branches = {6, 7, 8, 9};
  KVC_RETURN_IF_ERROR(cache.update(rows_of(prompt, 1), rows_of(prompt, 1)).status());
  KVC_RETURN_IF_ERROR(cache.batch_repeat_interleave(4));
  KVC_RETURN_IF_ERROR(cache.update(rows_of(branches, 4), rows_of(branches, 4)).status());
  for (int step = 0; step < 2; ++step) {
    KVC_RETURN_IF_ERROR(cache.reorder(indices(kFrom[step])));
    KVC_RETURN_IF_ERROR(cache.update(rows_of(kNext[step], 4), rows_of(kNext[step], 4)).status());
  }
  KVC_ASSIGN_OR_RETURN(const auto kv, cache.get(0));
  for (std::int64_t beam = 0; beam < 4; ++beam) {
    std::printf("beam %lld:", static_cast<long long>(beam));
    for (std::int64_t s = 0; s < kv.key.shape[2]; ++s) {
      const auto* key = static_cast<const float*>(kv.key.data);
      std::printf(" %.0f", double(key[beam * kv.key.strides[0] + s * kv.key.strides[2]]));
    }
    std::printf("\n");
  }
  std::printf("layered: %lld bytes of old rows copied\n",
              static_cast<long long>(cache.copied_bytes()));
  return {};
}

kvcache::Status append(kvcache::PagedCache& cache, const std::vector<SequenceId>& seqs,
                       const Tokens& tokens) {
  std::vector<kvcache::Append> appends;
  const auto each = static_cast<std::int64_t>(tokens.size() / seqs.size());
  for (const SequenceId seq : seqs) appends.push_back({seq, each});
  KVC_ASSIGN_OR_RETURN(auto step, cache.reserve(appends));
  const TensorView rows(tokens.data(), DType::kF32, {step.num_new_tokens(), 1, 1});
  KVC_RETURN_IF_ERROR(cache.write(step, 0, rows, rows));
  return cache.commit(step);
}

kvcache::Status paged() {
  kvcache::CacheConfig config = kvcache::CacheConfig::uniform(1, 1, 1);
  config.page_size = 4;
  config.num_pages = 32;
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::PagedCache::create(config));
  std::vector<SequenceId> beams(1);
  KVC_ASSIGN_OR_RETURN(beams[0], cache.open());
  KVC_RETURN_IF_ERROR(append(cache, beams, {1, 2, 3, 4, 5}));
  while (beams.size() < 4) {
    KVC_ASSIGN_OR_RETURN(const SequenceId beam, cache.fork(beams[0], 5));
    beams.push_back(beam);
  }
  KVC_RETURN_IF_ERROR(append(cache, beams, {6, 7, 8, 9}));
  for (int step = 0; step < 2; ++step) {
    const std::int64_t before = cache.stats().rows_copied;
    KVC_RETURN_IF_ERROR(cache.reorder(beams, indices(kFrom[step])));
    const std::int64_t moved = cache.stats().rows_copied - before;
    KVC_RETURN_IF_ERROR(append(cache, beams, kNext[step]));
    std::printf("paged: reorder copied %lld rows, the write after it %lld (shared tail pages)\n",
                static_cast<long long>(moved),
                static_cast<long long>(cache.stats().rows_copied - before - moved));
  }
  std::printf("paged: 4 beams of 8 tokens in %lld pages of 4\n",
              static_cast<long long>(cache.stats().pages_held));
  return {};
}

}  // namespace

int main() {
  kvcache::Status status = layered();
  if (status.ok()) status = paged();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
