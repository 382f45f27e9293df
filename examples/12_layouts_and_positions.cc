// Two layouts, one meaning; and tokens written where they belong instead of at the end.
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType, kvcache::TensorView;

void print(const char* name, const TensorView& tensor) {
  std::printf("%s: [%lld, %lld, %lld, %lld]\n", name, static_cast<long long>(tensor.shape[0]),
              static_cast<long long>(tensor.shape[1]), static_cast<long long>(tensor.shape[2]),
              static_cast<long long>(tensor.shape[3]));
}

kvcache::Status layouts() {
  // Head-first: [batch, heads, tokens, head_dim].
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::DynamicCache::create());
  const std::vector<float> rows(2 * 8 * 1 * 64, 0.5f);
  const TensorView token(rows.data(), DType::kF32, {2, 8, 1, 64});
  KVC_RETURN_IF_ERROR(cache.update(token, token, 0).status());
  KVC_ASSIGN_OR_RETURN(const auto all, cache.update(token, token, 0));
  print("head-first K after two tokens", all.key);

  // Sequence-first: [batch, tokens, heads, head_dim].
  kvcache::CacheOptions options;
  options.layout = kvcache::Layout::kNHD;
  KVC_ASSIGN_OR_RETURN(auto sequence_first, kvcache::DynamicCache::create(options));
  const TensorView word(rows.data(), DType::kF32, {1, 1, 4, 8});
  for (int i = 0; i < 3; ++i) KVC_RETURN_IF_ERROR(sequence_first.update(word, word).status());
  KVC_ASSIGN_OR_RETURN(const auto words, sequence_first.get(0));
  print("sequence-first K after three tokens", words.key);
  return {};
}

kvcache::Status positions() {
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::StaticCache::create(8, 1));
  const std::vector<float> tokens = {7, 8, 9};
  const auto write = [&](std::size_t token, std::int64_t position) {
    const TensorView row(&tokens[token], DType::kF32, {1, 1, 1, 1});
    return cache.update(row, row, 0, TensorView(&position, DType::kI64, {1})).status();
  };
  KVC_RETURN_IF_ERROR(write(0, 5));
  KVC_RETURN_IF_ERROR(write(1, 6));
  KVC_RETURN_IF_ERROR(write(2, 1));
  KVC_ASSIGN_OR_RETURN(const auto rows, cache.get(0));
  std::printf("7 at 5, 8 at 6, 9 at 1:");
  for (std::int64_t i = 0; i < rows.key.shape[2]; ++i) {
    std::printf(" %.0f", static_cast<double>(static_cast<const float*>(rows.key.data)[i]));
  }
  std::printf("\npast the capacity of 8: %s\n", write(0, 8).to_string().c_str());
  return {};
}

}  // namespace

int main() {
  kvcache::Status status = layouts();
  if (status.ok()) status = positions();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
