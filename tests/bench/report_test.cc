// The JSON that others read, and wrong answers that must not pass.
#include "bench/report.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

Case some_case() {
  Case result;
  result.name = "a case";
  result.achieved = 2;
  result.roof = 4;
  result.ratio = 0.5;
  result.unit = "GB/s";
  result.error = 1e-6;
  return result;
}

TEST(ToJson, HoldsTheSixFieldsOfEachCase) {
  const auto json = nlohmann::json::parse(to_json({some_case(), some_case()}));
  ASSERT_EQ(json["cases"].size(), 2u);
  const nlohmann::json expected = {{"name", "a case"}, {"achieved", 2.0}, {"roof", 4.0},
                                   {"ratio", 0.5},     {"unit", "GB/s"},  {"error", 1e-6}};
  EXPECT_EQ(json["cases"][0], expected);
}

TEST(ToJson, NoCasesAreAnEmptyList) { EXPECT_EQ(to_json({}), R"({"cases":[]})"); }

TEST(ToJson, DetailsAreAnObject) {
  Case with = some_case();
  with.details = {{"ms", 1.5}};
  const auto json = nlohmann::json::parse(to_json({with}));
  EXPECT_EQ(json["cases"][0]["details"]["ms"], 1.5);
}

TEST(ToJson, StaysJsonWhereAnErrorIsNotFinite) {
  Case wrong = some_case();
  for (const double error : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    wrong.error = error;
    const auto json = nlohmann::json::parse(to_json({wrong}));
    EXPECT_GT(json["cases"][0]["error"], 1e299);
  }
}

TEST(CheckAnswers, RightOnesPass) {
  EXPECT_TRUE(check_answers({}).ok());
  EXPECT_TRUE(check_answers({some_case()}).ok());
}

TEST(CheckAnswers, AWrongOneIsNamed) {
  Case wrong = some_case();
  wrong.name = "the wrong one";
  wrong.error = 2e-5;
  const Status status = check_answers({some_case(), wrong});
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(status.message(),
            "the wrong one: found a wrong answer, error 2.0e-05, expected at most 1.0e-05");
}

TEST(CheckAnswers, AnErrorThatIsNoNumberIsWrong) {
  Case wrong = some_case();
  wrong.error = std::nan("");
  EXPECT_FALSE(check_answers({wrong}).ok());
}

TEST(CheckAnswers, EachCaseHasItsTolerance) {
  Case rough = some_case();
  rough.error = 1e-3;
  rough.tolerance = 5e-3;
  EXPECT_TRUE(check_answers({rough}).ok());
}

}  // namespace
}  // namespace kvcache::bench
