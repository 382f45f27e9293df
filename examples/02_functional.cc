// The cache as a value: update gives a new state, and the old one stays as it was.
#include <cstdio>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

namespace functional = kvcache::functional;
using kvcache::DType, kvcache::TensorView, kvcache::MutableTensorView;

void say(const char* name, const functional::CacheState& state) {
  std::printf("%-10s %lld tokens\n", name, static_cast<long long>(state.position()));
}

kvcache::Status run() {
  functional::InitOptions sizes;
  sizes.num_layers = 2;
  sizes.num_heads = 8;
  sizes.head_dim = 64;
  KVC_ASSIGN_OR_RETURN(functional::CacheState empty, functional::init(sizes));

  // Two tokens into both layers: [batch, heads, tokens, head_dim].
  std::vector<float> rows(8 * 2 * 64, 0.5f), out(8 * 64);
  const TensorView two(rows.data(), DType::kF32, {1, 8, 2, 64});
  const TensorView one(rows.data(), DType::kF32, {1, 8, 1, 64});
  functional::CacheState state = empty;
  for (int layer = 0; layer < 2; ++layer) {
    KVC_ASSIGN_OR_RETURN(auto updated, functional::update(state, layer, two, two));
    state = updated.state;
  }
  say("empty", empty);
  say("state", state);

  // Append and attend in one call, from the same state twice: a text and its alternative.
  KVC_ASSIGN_OR_RETURN(const auto attention, functional::build_cached_attention(8, 64, 0));
  const MutableTensorView result(out.data(), DType::kF32, {1, 1, 8 * 64});
  KVC_ASSIGN_OR_RETURN(const auto left, attention(one, one, one, state, result));
  std::printf("going forward copied %lld bytes\n", static_cast<long long>(left.copied_bytes()));
  KVC_ASSIGN_OR_RETURN(const auto right, attention(one, one, one, state, result));
  std::printf("branching copied     %lld bytes\n", static_cast<long long>(right.copied_bytes()));
  say("left", left);
  say("right", right);
  say("state", state);

  KVC_ASSIGN_OR_RETURN(const auto rows_of_left, functional::get(left, 0));
  std::printf("K of left: [%lld, %lld, %lld, %lld]; out %.2f\n",
              static_cast<long long>(rows_of_left.key.shape[0]),
              static_cast<long long>(rows_of_left.key.shape[1]),
              static_cast<long long>(rows_of_left.key.shape[2]),
              static_cast<long long>(rows_of_left.key.shape[3]), static_cast<double>(out[0]));
  return {};
}

}  // namespace

int main() {
  const kvcache::Status status = run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
