#include "runner/eval/distribution.h"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

namespace kvcache::runner {
namespace {

TEST(Distribution, SumsAreThoseOfExponentials) {
  const std::vector<float> logits = {0.0f, std::log(3.0f), -INFINITY};
  const LogitSums sums = sums_of(logits);
  EXPECT_NEAR(sums.log_sum, std::log(4.0), 1e-6);
  EXPECT_EQ(sums.top, 1);
  const std::vector<float> large = {1000.0f, 1000.0f};
  EXPECT_NEAR(sums_of(large).log_sum, 1000 + std::log(2.0), 1e-4);
}

// p = (1/4, 3/4), q = (1/2, 1/2): 1/4 ln 1/2 + 3/4 ln 3/2.
TEST(Distribution, DivergenceIsOfTheFirstFromTheSecondWhateverTheConstantOfLogits) {
  for (const float shift : {0.0f, 7.0f}) {
    const std::vector<float> p = {shift, shift + std::log(3.0f)};
    const std::vector<float> q = {-2.0f, -2.0f};
    EXPECT_NEAR(divergence(p, sums_of(p), q, sums_of(q)),
                0.25 * std::log(0.5) + 0.75 * std::log(1.5), 1e-6);
    EXPECT_NEAR(divergence(q, sums_of(q), p, sums_of(p)),
                0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3), 1e-6);
    EXPECT_EQ(divergence(p, sums_of(p), p, sums_of(p)), 0);
  }
}

}  // namespace
}  // namespace kvcache::runner
