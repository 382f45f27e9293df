#include "runner/engine/step_plan.h"

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

namespace kvcache::runner {
namespace {

using Counts = std::vector<std::int64_t>;

TEST(StepPlan, EveryRequestThatDecodesBringsItsToken) {
  const std::vector<NextTokens> requests = {{1, false}, {40, true}, {1, false}};
  EXPECT_EQ(plan_step(requests, 1), (Counts{1, 40, 1}));
}

TEST(StepPlan, PromptsAreTakenInTheirOrderAsFarAsTheyFit) {
  const std::vector<NextTokens> requests = {{10, true}, {10, true}, {11, true}, {1, true}};
  EXPECT_EQ(plan_step(requests, 31), (Counts{10, 10, 11, 0}));
  EXPECT_EQ(plan_step(requests, 30), (Counts{10, 10, 0, 0}));  // nobody overtakes
  EXPECT_EQ(plan_step(requests, 32), (Counts{10, 10, 11, 1}));
}

TEST(StepPlan, TheFirstPromptIsTakenWhateverItsLength) {
  const std::vector<NextTokens> requests = {{500, true}, {1, true}, {1, false}};
  EXPECT_EQ(plan_step(requests, 8), (Counts{500, 0, 1}));
}

TEST(StepPlan, NoRequestsAreNoCounts) { EXPECT_TRUE(plan_step({}, 8).empty()); }

}  // namespace
}  // namespace kvcache::runner
