// Another program in turn with ours.
#include "bench/peer.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

using ::testing::HasSubstr;

Case of(const std::string& name, double achieved, double error = 0) {
  Case result;
  result.name = name;
  result.achieved = achieved;
  result.error = error;
  return result;
}

TEST(ParseFigures, ReadsNumbersAloneOnLinesAndOurOwnJson) {
  EXPECT_EQ(*parse_figures("loading 3 files\n12.5\n\n 7e1 \n3 tokens\n"),
            (Figures{{"", 12.5}, {"", 70}}));
  EXPECT_EQ(*parse_figures(R"({"cases": [{"name": "a", "achieved": 2, "roof": 3}]})"),
            (Figures{{"a", 2}}));
}

TEST(ParseFigures, WhatHasNoFigureIsAnError) {
  for (const char* output :
       {"", "no number\n", R"({"cases": []})", R"({"cases": [{"name": 1}]})"}) {
    EXPECT_EQ(parse_figures(output).status().code(), StatusCode::kInvalidArgument) << output;
  }
}

TEST(RunPeer, AProgramThatFailsIsAnError) {
  EXPECT_EQ(*run_peer("echo 4"), (Figures{{"", 4}}));
  EXPECT_EQ(run_peer("echo 4; exit 3").status().code(), StatusCode::kUnavailable);
}

TEST(TakeTurns, RatiosArePairByPairAndByName) {
  int turn = 0;
  const auto measure = [&]() -> Result<std::vector<Case>> {
    ++turn;
    return std::vector<Case>{of("a", 10.0 * turn, turn), of("b", 6)};
  };
  const auto peer = [&]() -> Result<Figures> { return Figures{{"b", 3}, {"a", 10}}; };
  const auto cases = take_turns(3, measure, peer);
  ASSERT_TRUE(cases.ok());
  EXPECT_EQ((*cases)[0].achieved, 20);
  EXPECT_EQ((*cases)[0].roof, 10);
  EXPECT_EQ((*cases)[0].ratio, 2);
  EXPECT_EQ((*cases)[0].error, 3);
  EXPECT_EQ((*cases)[0].details[1], (std::pair<std::string, double>("most", 3)));
  EXPECT_EQ((*cases)[0].details[2], (std::pair<std::string, double>("pair 1", 1)));
  EXPECT_EQ((*cases)[1].ratio, 2);
}

TEST(TakeTurns, APeerWithoutAFigureForACaseIsAnError) {
  const auto measure = [&]() -> Result<std::vector<Case>> {
    return std::vector<Case>{of("a", 1), of("b", 1)};
  };
  for (const Figures& figures : {Figures{{"", 1}}, Figures{{"a", 1}, {"c", 1}}, Figures{{"", 0}}}) {
    const auto cases = take_turns(1, measure, [&]() -> Result<Figures> { return figures; });
    EXPECT_EQ(cases.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(cases.status().message(), HasSubstr("peer: found no figure"));
  }
}

}  // namespace
}  // namespace kvcache::bench
