// A cache, two updates, and attention over it in place.
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

// One layer of a decoder: 1 text, 2 heads of size 4. Returns the first error.
kvcache::Status decode() {
  using kvcache::DType, kvcache::TensorView, kvcache::MutableTensorView;
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::DynamicCache::create());

  // A prompt of three tokens, then one token at a time: [batch, heads, tokens, head_dim].
  std::vector<float> rows(1 * 2 * 3 * 4, 0.5f), out(1 * 2 * 1 * 4);
  TensorView prompt(rows.data(), DType::kF32, {1, 2, 3, 4});
  TensorView token(rows.data(), DType::kF32, {1, 2, 1, 4});
  KVC_RETURN_IF_ERROR(cache.update(prompt, prompt).status());
  for (int step = 0; step < 3; ++step) {
    KVC_RETURN_IF_ERROR(cache.update(token, token).status());
    KVC_ASSIGN_OR_RETURN(auto view, cache.view(0));
    MutableTensorView result(out.data(), DType::kF32, {1, 2, 1, 4});
    KVC_RETURN_IF_ERROR(kvcache::attend(token, {}, view, result));
    std::printf("%lld tokens, %lld bytes, out %.2f\n", static_cast<long long>(*cache.seq_length()),
                static_cast<long long>(cache.nbytes()), static_cast<double>(out[0]));
  }
  return {};
}

}  // namespace

int main() {
  const kvcache::Status status = decode();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
