#include "bench/append.h"

#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

AppendOptions small() {
  AppendOptions options;
  options.layers = 2;
  options.kv_heads = 2;
  options.head_dim = 16;
  options.lengths = {3, 40};
  options.appends = 50;
  options.repeats = 1;
  return options;
}

TEST(BenchAppend, RowsReadBackAreThoseWritten) {
  for (const bool warm : {false, true}) {
    AppendOptions options = small();
    options.warm = warm;
    if (warm) options.rows = DType::kF32;  // and so are converted
    const auto cases = run_append(options, {});
    ASSERT_TRUE(cases.ok()) << cases.status().to_string();
    ASSERT_EQ(cases->size(), 4u);
    EXPECT_EQ((*cases)[0].name, "dynamic, after 3 tokens");
    EXPECT_EQ((*cases)[3].name, "paged, after 40 tokens");
    for (const Case& each : *cases) {
      EXPECT_EQ(each.error, 0) << each.name << (warm ? ", warm" : "");
      EXPECT_GT(each.achieved, 0) << each.name;
    }
  }
}

TEST(BenchAppend, NamesASizeThatMakesNoSense) {
  AppendOptions options = small();
  options.appends = 0;
  const auto cases = run_append(options, {});
  ASSERT_FALSE(cases.ok());
  EXPECT_EQ(cases.status().message(), "appends: found 0, expected 1 .. 1048576");
}

}  // namespace
}  // namespace kvcache::bench
