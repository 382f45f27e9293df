// Any bytes as operations on a dynamic or static cache, beside the model of its property tests.
#include <vector>

#include "api/layered_model.h"
#include "support/fuzz.h"

using kvcache::DType;
using kvcache::Layout;
using kvcache::testing::LayeredKind;
using kvcache::testing::Op;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kMaxOps = 64;
  kvcache::fuzz::Numbers input(data, size);
  const std::uint32_t which = input.byte();
  std::vector<Op> ops;
  while (!input.empty() && ops.size() < kMaxOps) {
    Op& op = ops.emplace_back();
    for (std::uint32_t& number : op) number = input.two_bytes();
  }
  const std::string wrong = kvcache::testing::run_operations(
      which % 2 == 0 ? LayeredKind::kDynamic : LayeredKind::kStatic,
      which / 2 % 2 == 0 ? Layout::kHND : Layout::kNHD, static_cast<DType>(which / 4 % 3), ops);
  kvcache::fuzz::expect(wrong.empty(), "what the model says; found: " + wrong);
  return 0;
}
