// Random operations on a running batch agree with a model of plain vectors.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <chrono>
#include <cstdlib>
#include <random>

#include "api/batching_model.h"

namespace kvcache::testing {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// RapidCheck shrinks a failing sequence to a short one.
RC_GTEST_PROP(BatchingCacheModel, AnySequenceOfOperationsAgrees,
              (const std::vector<BatchOp>& ops, std::uint8_t which)) {
  const Layout layout = which % 2 == 0 ? Layout::kHND : Layout::kNHD;
  const std::string wrong = run_batch_operations(layout, kTypes[which / 2 % 3], ops);
  if (!wrong.empty()) RC_FAIL(wrong);
}

TEST(BatchingCacheSoak, LongRandomSequencesAgree) {
  const char* wanted = std::getenv("KVCACHE_SOAK_SECONDS");
  const double seconds = wanted != nullptr ? std::strtod(wanted, nullptr) : 0.2;
  const auto start = std::chrono::steady_clock::now();
  const char* first = std::getenv("KVCACHE_SOAK_SEED");
  std::uint32_t seed = first != nullptr
                           ? static_cast<std::uint32_t>(std::strtoul(first, nullptr, 10))
                       : wanted != nullptr ? std::random_device{}()
                                           : 1;
  do {
    std::mt19937 random(seed);
    std::vector<BatchOp> ops(200);
    for (BatchOp& op : ops) {
      for (std::uint32_t& number : op) number = static_cast<std::uint32_t>(random());
    }
    for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
      for (const DType dtype : kTypes) {
        const std::string wrong = run_batch_operations(layout, dtype, ops);
        ASSERT_TRUE(wrong.empty() && !HasFailure())
            << wrong << "; KVCACHE_SOAK_SEED=" << seed << " repeats it";
      }
    }
    ++seed;
  } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
           seconds);
}

}  // namespace
}  // namespace kvcache::testing
