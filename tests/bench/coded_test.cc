// The cases of coded rows: every form there is, with right answers and figures.
#include "bench/coded.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

std::vector<Case> cases_of(std::int64_t head_dim, std::int64_t queries = 1) {
  CodedShape shape;
  shape.queries = queries;
  shape.kv_len = 700;
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.head_dim = head_dim;
  shape.page_size = 16;
  shape.threads = 2;
  AttentionRun run;
  run.repeats = 2;
  run.ring_bytes = 1 << 20;
  auto cases = run_coded(shape, run);
  EXPECT_TRUE(cases.ok()) << cases.status().to_string();
  return cases.ok() ? *cases : std::vector<Case>();
}

TEST(Coded, EveryFormAnswersAsTheReferenceOverItsCodes) {
  const std::vector<Case> cases = cases_of(64);
  ASSERT_EQ(cases.size(), 7u);
  EXPECT_EQ(cases.front().name, "bf16");
  for (const Case& each : cases) {
    EXPECT_LE(each.error, each.tolerance) << each.name;
    EXPECT_GT(each.achieved, 0) << each.name;
    EXPECT_GT(each.roof, 0) << each.name;
    for (const std::string name : {"ms", "times faster than bf16", "bytes a token", "append us"}) {
      EXPECT_TRUE(std::any_of(each.details.begin(), each.details.end(),
                              [&](const auto& detail) { return detail.first == name; }))
          << each.name << ": " << name;
    }
  }
}

TEST(Coded, ManyQueriesAreAnsweredToo) {
  const std::vector<Case> cases = cases_of(64, 100);
  ASSERT_EQ(cases.size(), 7u);
  for (const Case& each : cases) EXPECT_LE(each.error, each.tolerance) << each.name;
}

TEST(Coded, MoreQueriesThanTokensAreRefused) {
  CodedShape shape;
  shape.kv_len = 8;
  shape.queries = 9;
  const auto cases = run_coded(shape, {});
  ASSERT_FALSE(cases.ok());
  EXPECT_NE(cases.status().to_string().find("queries: found 9, expected 1 .. 8"),
            std::string::npos);
}

TEST(Coded, FormsThatAHeadSizeDoesNotAllowAreLeftOut) {
  EXPECT_EQ(cases_of(80).size(), 4u);
  EXPECT_EQ(cases_of(40).size(), 3u);
}

}  // namespace
}  // namespace kvcache::bench
