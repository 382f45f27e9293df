// The linear layers of a small model measured, and their answers checked.
#include "bench/linear.h"

#include "bench/report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

LinearOptions tiny() {
  LinearOptions options;
  options.config.hidden_size = 72;
  options.config.intermediate_size = 100;
  options.config.num_heads = 4;
  options.config.num_kv_heads = 2;
  options.config.head_dim = 18;
  options.rows = {1, 3, 40};
  options.repeats = 2;
  options.threads = 2;
  options.ring_bytes = 1 << 18;
  return options;
}

TEST(RunLinear, MeasuresAndChecksEveryTypeAndNumberOfRows) {
  const auto cases = run_linear(tiny(), {});
  ASSERT_TRUE(cases.ok()) << cases.status().to_string();
  ASSERT_EQ(cases->size(), 12u);
  EXPECT_EQ((*cases)[0].name, "1 row, f32");
  EXPECT_EQ((*cases)[11].name, "40 rows, int8");
  EXPECT_EQ((*cases)[0].unit, "GB/s");
  EXPECT_TRUE(check_answers(*cases).ok()) << check_answers(*cases).to_string();
  for (const Case& each : *cases) {
    EXPECT_GT(each.achieved, 0) << each.name;
    EXPECT_GT(each.error, 0) << each.name << ": nothing was compared";
  }
}

TEST(RunLinear, ActivationsOfEightBitsAreLessExact) {
  LinearOptions options = tiny();
  options.types = {runner::WeightType::kInt8};
  const auto exact = run_linear(options, {});
  options.activations = runner::Activations::kInt8;
  const auto coarse = run_linear(options, {});
  ASSERT_TRUE(exact.ok() && coarse.ok());
  EXPECT_TRUE(check_answers(*coarse).ok()) << check_answers(*coarse).to_string();
  for (std::size_t i = 0; i < coarse->size(); ++i) {
    EXPECT_GT((*coarse)[i].error, 10 * (*exact)[i].error) << (*coarse)[i].name;
  }
}

TEST(RunLinear, BadOptionsAreRefused) {
  LinearOptions options = tiny();
  options.rows = {0};
  EXPECT_THAT(run_linear(options, {}).status().message(),
              ::testing::HasSubstr("rows: found 0, expected 1 .. 65536"));
  options = tiny();
  options.repeats = 0;
  EXPECT_EQ(run_linear(options, {}).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvcache::bench
