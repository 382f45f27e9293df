// An attention layer as Qwen2 has it: biased projections, rotary positions, grouped heads. With a
// cache it computes the keys and values of new tokens alone; the answers are those without one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType, kvcache::TensorView, kvcache::MutableTensorView;
using Rows = std::vector<float>;

constexpr int kHidden = 32, kHeads = 4, kKvHeads = 2, kDim = 8;

struct AttentionLayer {
  Rows wq, bq, wk, bk, wv, bv, wo;
  long long kv_rows = 0;  // keys computed so far

  explicit AttentionLayer(std::mt19937& rng) {
    std::normal_distribution<float> normal(0, 0.3f);
    const auto fill = [&](Rows* rows, int count) {
      for (int i = 0; i < count; ++i) rows->push_back(normal(rng));
    };
    fill(&wq, kHeads * kDim * kHidden), fill(&bq, kHeads * kDim);
    fill(&wk, kKvHeads * kDim * kHidden), fill(&bk, kKvHeads * kDim);
    fill(&wv, kKvHeads * kDim * kHidden), fill(&bv, kKvHeads * kDim);
    fill(&wo, kHidden * kHeads * kDim);
  }

  // y [tokens, outputs] = x [tokens, inputs] w^T + b
  static Rows linear(const Rows& x, const Rows& w, const Rows& b, int inputs) {
    const int outputs = static_cast<int>(w.size()) / inputs;
    Rows y;
    for (std::size_t t = 0; t < x.size() / inputs; ++t) {
      for (int o = 0; o < outputs; ++o) {
        float sum = b.empty() ? 0 : b[o];
        for (int i = 0; i < inputs; ++i) sum += w[o * inputs + i] * x[t * inputs + i];
        y.push_back(sum);
      }
    }
    return y;
  }

  // Turns pairs (i, i + kDim / 2) of every head by an angle that grows with the position.
  static void rotate(Rows* x, int heads, std::int64_t position) {
    for (std::size_t row = 0; row < x->size() / kDim; ++row) {
      const auto at = static_cast<double>(position + static_cast<std::int64_t>(row) / heads);
      for (int i = 0; i < kDim / 2; ++i) {
        const double angle = at * std::pow(1e6, -2.0 * i / kDim);
        float &a = (*x)[row * kDim + i], &b = (*x)[row * kDim + i + kDim / 2];
        const auto c = static_cast<float>(std::cos(angle)), s = static_cast<float>(std::sin(angle));
        const float turned = a * c - b * s;
        b = b * c + a * s;
        a = turned;
      }
    }
  }

  // x [tokens, hidden] -> out [tokens, hidden]; the cache holds all tokens before.
  kvcache::Status forward(const Rows& x, const kvcache::LayerHandle& cache, Rows* out) {
    const auto tokens = static_cast<std::int64_t>(x.size()) / kHidden;
    KVC_ASSIGN_OR_RETURN(const std::int64_t position, cache.next_position());
    Rows q = linear(x, wq, bq, kHidden), k = linear(x, wk, bk, kHidden),
         v = linear(x, wv, bv, kHidden), mixed(q.size());
    rotate(&q, kHeads, position);
    rotate(&k, kKvHeads, position);
    kv_rows += tokens;
    KVC_RETURN_IF_ERROR(cache
                            .update_and_fetch({k.data(), DType::kF32, {1, tokens, kKvHeads, kDim}},
                                              {v.data(), DType::kF32, {1, tokens, kKvHeads, kDim}})
                            .status());
    KVC_ASSIGN_OR_RETURN(const auto view, cache.view());
    const std::int32_t queries[] = {0, static_cast<std::int32_t>(tokens)};
    KVC_RETURN_IF_ERROR(kvcache::attend({q.data(), DType::kF32, {tokens, kHeads, kDim}}, queries,
                                        view, {mixed.data(), DType::kF32, {tokens, kHeads, kDim}}));
    *out = linear(mixed, wo, {}, kHeads * kDim);
    return {};
  }
};

kvcache::Status run() {
  std::mt19937 rng(1);
  AttentionLayer layer(rng);
  kvcache::CacheOptions options;
  options.layout = kvcache::Layout::kNHD;  // projections come out token by token
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::DynamicCache::create(options));
  Rows text, last, whole;
  std::normal_distribution<float> normal;
  double worst = 0;
  long long with = 0, without = 0;
  for (int step = 0; step < 12; ++step) {
    Rows token;
    for (int i = 0; i < kHidden; ++i) token.push_back(normal(rng));
    text.insert(text.end(), token.begin(), token.end());
    layer.kv_rows = 0;
    KVC_RETURN_IF_ERROR(layer.forward(token, cache.layer(0), &last));
    with += std::exchange(layer.kv_rows, 0);
    KVC_ASSIGN_OR_RETURN(auto fresh, kvcache::DynamicCache::create(options));
    KVC_RETURN_IF_ERROR(layer.forward(text, fresh.layer(0), &whole));
    without += layer.kv_rows;
    for (int i = 0; i < kHidden; ++i) {
      worst = std::max(worst, std::abs(double(last[i]) - whole[whole.size() - kHidden + i]));
    }
  }
  std::printf("12 tokens: K and V computed %lld times with a cache, %lld without\n", with, without);
  std::printf("answers agree within 1e-4: %s\n", worst < 1e-4 ? "yes" : "no");
  if (worst >= 1e-4) return {kvcache::StatusCode::kInternal, "the answers differ"};
  return {};
}

}  // namespace

int main() {
  const kvcache::Status status = run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
