// What a cache stores: one attention head of size 2 reads "The cat sat on", word by word.
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType;

struct Word {
  const char* text;
  std::vector<float> embedding;
};

// One projection of a model: 2 x 2 weights.
std::vector<float> project(const float (&w)[4], const std::vector<float>& x) {
  return {w[0] * x[0] + w[1] * x[1], w[2] * x[0] + w[3] * x[1]};
}

kvcache::Status run() {
  const Word words[] = {{"The", {1, 0}}, {"cat", {0, 1}}, {"sat", {1, 1}}, {"on", {2, 1}}};
  const float wq[] = {1, 0, 0, 1}, wk[] = {0, 1, 1, 0}, wv[] = {1, 1, 0, 2};
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::DynamicCache::create());
  std::printf("word  computed now            keys in the cache              attention\n");
  for (const Word& word : words) {
    // Of this word alone. Those of the words before it are in the cache.
    const std::vector<float> q = project(wq, word.embedding), k = project(wk, word.embedding),
                             v = project(wv, word.embedding);
    std::vector<float> out(2);
    KVC_ASSIGN_OR_RETURN(const auto rows, cache.update({k.data(), DType::kF32, {1, 1, 1, 2}},
                                                       {v.data(), DType::kF32, {1, 1, 1, 2}}));
    KVC_ASSIGN_OR_RETURN(const auto view, cache.view(0));
    KVC_RETURN_IF_ERROR(kvcache::attend({q.data(), DType::kF32, {1, 1, 1, 2}}, {}, view,
                                        {out.data(), DType::kF32, {1, 1, 1, 2}}));
    std::printf("%-4s  K (%.0f, %.0f)  V (%.0f, %.0f)  ", word.text, double(k[0]), double(k[1]),
                double(v[0]), double(v[1]));
    const auto* keys = static_cast<const float*>(rows.key.data);
    for (std::int64_t s = 0; s < 4; ++s) {
      if (s < rows.key.shape[2]) {
        std::printf(" (%.0f, %.0f)", double(keys[2 * s]), double(keys[2 * s + 1]));
      } else {
        std::printf("       ");
      }
    }
    std::printf("   (%.2f, %.2f)\n", double(out[0]), double(out[1]));
  }
  std::printf("with the cache 4 keys were computed; without it 1 + 2 + 3 + 4 = 10\n");
  return {};
}

}  // namespace

int main() {
  const kvcache::Status status = run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
