// Requests of different length decode together, join and leave. A token is a number here, and its
// key and value too, so that the batch can be read.
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType, kvcache::TensorView, kvcache::MutableTensorView;

// One request, already prefilled.
kvcache::Result<kvcache::FullCache> request(std::vector<float> tokens) {
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::FullCache::create());
  const TensorView rows(tokens.data(), DType::kF32,
                        {1, 1, static_cast<std::int64_t>(tokens.size()), 1});
  KVC_RETURN_IF_ERROR(cache.update_and_fetch(rows, rows).status());
  return cache;
}

// Right-aligned rows of every slot, and who may see them.
void print(const kvcache::BatchFetch& fetch, std::int64_t queries) {
  const auto* key = static_cast<const float*>(fetch.key.data);
  const auto* mask = static_cast<const float*>(fetch.mask.data);
  for (std::int64_t slot = 0; slot < fetch.key.shape[0]; ++slot) {
    std::printf("slot %lld  keys", static_cast<long long>(slot));
    for (std::int64_t s = 0; s < fetch.length; ++s) {
      std::printf(" %2.0f",
                  static_cast<double>(key[slot * fetch.key.strides[0] + s * fetch.key.strides[2]]));
    }
    for (std::int64_t i = 0; i < queries; ++i) {
      std::printf("   query %lld sees ", static_cast<long long>(i));
      for (std::int64_t s = 0; s < fetch.length; ++s) {
        std::printf("%c", mask[slot * fetch.mask.strides[0] + i * fetch.mask.strides[2] + s] == 0
                              ? 'x'
                              : '.');
      }
    }
    std::printf("\n");
  }
}

kvcache::Status run() {
  kvcache::BatchingOptions options;
  options.max_seq_len = 64;
  KVC_ASSIGN_OR_RETURN(auto batch, kvcache::BatchingCache::create(3, options));
  KVC_ASSIGN_OR_RETURN(auto first, request({10}));
  KVC_ASSIGN_OR_RETURN(auto second, request({20, 21}));
  KVC_RETURN_IF_ERROR(batch.add_request(first, 0));
  KVC_RETURN_IF_ERROR(batch.add_request(second, 2));

  // Two new tokens a slot, [slots, heads, tokens, head_dim]; slot 1 is idle.
  const std::vector<float> tokens = {12, 13, 0, 0, 22, 23};
  const TensorView rows(tokens.data(), DType::kF32, {3, 1, 2, 1});
  KVC_ASSIGN_OR_RETURN(const auto fetch,
                       batch.update_and_fetch(rows, rows, 2, kvcache::Mask::causal()));
  print(fetch, 2);

  // The same without dense copies: append one token and attend over each slot's own rows.
  KVC_RETURN_IF_ERROR(batch.remove_request(0));
  const std::vector<float> next = {0, 0, 24}, zero(3, 0.0f);
  std::vector<float> out(3);
  const TensorView token(next.data(), DType::kF32, {3, 1, 1, 1});
  KVC_RETURN_IF_ERROR(batch.attend({zero.data(), DType::kF32, {3, 1, 1, 1}}, token, token,
                                   {out.data(), DType::kF32, {3, 1, 1, 1}}));
  std::printf("request 0 left; slot 2 means %.1f over %lld tokens, idle slots %.1f\n",
              static_cast<double>(out[2]), static_cast<long long>(*batch.seq_length(2)),
              static_cast<double>(out[0]));
  return batch.rewind(2, 1);
}

}  // namespace

int main() {
  const kvcache::Status status = run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
