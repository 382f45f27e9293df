// Random operations on the layered caches agree with a model of plain vectors.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "api/layered_model.h"

namespace kvcache::testing {
namespace {

const std::vector<LayeredCase>& cases() {
  static const std::vector<LayeredCase> all = all_layered_cases();
  return all;
}

// RapidCheck shrinks a failing sequence to a short one.
RC_GTEST_PROP(ContiguousCacheModel, AnySequenceOfOperationsAgrees,
              (const std::vector<Op>& ops, std::uint8_t which)) {
  const LayeredCase& c = cases()[which % cases().size()];
  const std::string wrong = run_operations(c.kind, c.layout, c.dtype, ops);
  if (!wrong.empty()) RC_FAIL(wrong);
}

// KVCACHE_SOAK_SECONDS: how long; new operations every time, and their number is printed.
TEST(ContiguousCacheSoak, LongRandomSequencesAgree) {
  const char* wanted = std::getenv("KVCACHE_SOAK_SECONDS");
  const double seconds = wanted != nullptr ? std::strtod(wanted, nullptr) : 0.2;
  const auto start = std::chrono::steady_clock::now();
  const char* first = std::getenv("KVCACHE_SOAK_SEED");
  std::uint32_t seed = first != nullptr
                           ? static_cast<std::uint32_t>(std::strtoul(first, nullptr, 10))
                       : wanted != nullptr ? std::random_device{}()
                                           : 1;
  long long operations = 0;
  do {
    std::mt19937 random(seed);
    std::vector<Op> ops(200);
    for (Op& op : ops) {
      for (std::uint32_t& number : op) number = static_cast<std::uint32_t>(random());
    }
    for (const LayeredCase& c : cases()) {
      const std::string wrong = run_operations(c.kind, c.layout, c.dtype, ops);
      ASSERT_TRUE(wrong.empty() && !HasFailure())
          << wrong << "; KVCACHE_SOAK_SEED=" << seed << " repeats it";
      operations += static_cast<long long>(ops.size());
    }
    ++seed;
  } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
           seconds);
  if (wanted != nullptr) {
    std::printf("ContiguousCacheSoak: %lld operations, 0 differences\n", operations);
  }
}

}  // namespace
}  // namespace kvcache::testing
