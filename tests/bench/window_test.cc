// The case of a layer that drops rows: right answers, at both lengths, and its figures.
#include "bench/window.h"

#include <algorithm>
#include <string>

#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

TEST(Window, AnswersAreThoseOfFullRowsAndOfTheReference) {
  WindowShape shape;
  shape.window = 100;
  shape.near = 300;
  shape.far = 3000;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim = 16;
  shape.threads = 2;
  AttentionRun run;
  run.repeats = 2;
  const auto cases = run_window(shape, run);
  ASSERT_TRUE(cases.ok()) << cases.status().to_string();
  ASSERT_EQ(cases->size(), 3u);
  EXPECT_EQ((*cases)[0].name, "window 100 at 300");
  EXPECT_EQ((*cases)[1].name, "window 100 at 3000");
  EXPECT_EQ((*cases)[2].name, "full rows at 3000");
  for (const Case& each : *cases) {
    EXPECT_LE(each.error, each.tolerance) << each.name;
    EXPECT_GT(each.achieved, 0) << each.name;
    EXPECT_GT(each.roof, 0) << each.name;
  }
  const auto& details = (*cases)[1].details;
  for (const std::string name :
       {"ms", "tables us", "plan us", "of the nearer", "times faster than full"}) {
    EXPECT_TRUE(std::any_of(details.begin(), details.end(), [&](const auto& detail) {
      return detail.first == name;
    })) << name;
  }
}

}  // namespace
}  // namespace kvcache::bench
