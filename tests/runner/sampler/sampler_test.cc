#include "runner/sampler/sampler.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace kvcache::runner {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Sampler make(const SamplerOptions& options) {
  Result<Sampler> sampler = Sampler::create(options);
  EXPECT_TRUE(sampler.ok()) << sampler.status().to_string();
  return std::move(sampler).value();
}

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

// How often each token comes in `n` draws.
std::vector<int> count(const SamplerOptions& options, const std::vector<float>& logits, int n,
                       const std::vector<std::int32_t>& seen = {}) {
  Sampler sampler = make(options);
  std::vector<int> counts(logits.size());
  for (int i = 0; i < n; ++i) {
    const Result<std::int32_t> id = sampler.sample(logits, seen);
    EXPECT_TRUE(id.ok()) << id.status().to_string();
    ++counts[static_cast<std::size_t>(*id)];
  }
  return counts;
}

// Within 5 standard deviations of the binomial.
void expect_shares(const std::vector<int>& counts, const std::vector<double>& shares, int n) {
  for (std::size_t id = 0; id < shares.size(); ++id) {
    const double spread = 5 * std::sqrt(n * shares[id] * (1 - shares[id]));
    EXPECT_NEAR(counts[id], n * shares[id], spread) << "token " << id;
  }
}

TEST(Sampler, GreedyTakesTheHighestLogitAndTheLowestIdOfEquals) {
  Sampler sampler = make({});
  EXPECT_EQ(*sampler.sample(std::vector<float>{-1, 3, 2, 3}), 1);
  EXPECT_EQ(*sampler.sample(std::vector<float>{-kInf, -5, -kInf}), 1);
  EXPECT_EQ(*sampler.sample(std::vector<float>{0, 0, 0}), 0);
}

TEST(Sampler, TokensComeAsOftenAsTheirProbability) {
  const std::vector<double> shares = {0.5, 0.25, 0.15, 0.1};
  const int n = 20000;
  expect_shares(count({.temperature = 1.0, .seed = 7}, logs(shares), n), shares, n);
}

TEST(Sampler, TemperatureRaisesProbabilitiesToItsInverse) {
  const int n = 20000;
  // p^(1/0.5), normalised.
  const std::vector<double> shares = {0.64 / 0.68, 0.04 / 0.68};
  expect_shares(count({.temperature = 0.5, .seed = 3}, logs({0.8, 0.2}), n), shares, n);
}

TEST(Sampler, TopKKeepsExactlyKAndTheLowestIdsOfEquals) {
  const int n = 5000;
  const std::vector<float> ties = {1, 2, 2, 2, 2};
  const std::vector<int> counts = count({.temperature = 1, .top_k = 2, .seed = 1}, ties, n);
  expect_shares(counts, {0, 0.5, 0.5, 0, 0}, n);
  EXPECT_EQ(counts[3] + counts[4] + counts[0], 0);
  const std::vector<int> one = count({.temperature = 1, .top_k = 1, .seed = 1}, ties, 100);
  EXPECT_EQ(one[1], 100);
  expect_shares(count({.temperature = 1, .top_k = 99, .seed = 1}, logs({0.7, 0.3}), n), {0.7, 0.3},
                n);
}

TEST(Sampler, TopPKeepsTheFewestTokensThatReachIt) {
  const int n = 10000;
  const std::vector<float> logits = logs({0.1, 0.5, 0.15, 0.25});
  expect_shares(count({.temperature = 1, .top_p = 0.74, .seed = 2}, logits, n),
                {0, 0.5 / 0.75, 0, 0.25 / 0.75}, n);
  expect_shares(count({.temperature = 1, .top_p = 0.76, .seed = 2}, logits, n),
                {0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9}, n);
  EXPECT_EQ(count({.temperature = 1, .top_p = 0, .seed = 2}, logits, 100)[1], 100);
}

TEST(Sampler, MinPDropsTokensFarBelowTheBest) {
  const int n = 10000;
  const std::vector<float> logits = logs({0.05, 0.6, 0.35});
  expect_shares(count({.temperature = 1, .min_p = 0.5, .seed = 4}, logits, n),
                {0, 0.6 / 0.95, 0.35 / 0.95}, n);
  EXPECT_EQ(count({.temperature = 1, .min_p = 1, .seed = 4}, logits, 100)[1], 100);
}

// The steps see what the ones before them left: top-p of what top-k kept, after the temperature.
TEST(Sampler, StepsApplyInTheOrderOfTransformers) {
  const int n = 10000;
  const std::vector<float> logits = logs({0.4, 0.3, 0.2, 0.1});
  // Of {0.4, 0.3} renormalised 0.571 already reaches 0.55; of all four it would not.
  EXPECT_EQ(count({.temperature = 1, .top_k = 2, .top_p = 0.55, .seed = 5}, logits, 200)[0], 200);
  // At temperature 0.25 the best has p^4 = 0.0256 of 0.0354: 0.72 reaches 0.7.
  EXPECT_EQ(count({.temperature = 0.25, .top_p = 0.7, .seed = 5}, logits, 200)[0], 200);
  expect_shares(
      count({.temperature = 1, .top_k = 3, .top_p = 0.8, .min_p = 0.6, .seed = 5}, logits, n),
      {0.4 / 0.7, 0.3 / 0.7, 0, 0}, n);
}

TEST(Sampler, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogitsOnce) {
  Sampler sampler = make({.repetition_penalty = 2.0});
  const std::vector<float> positive = {3, 2};
  EXPECT_EQ(*sampler.sample(positive, std::vector<std::int32_t>{0, 0, 0}), 1);  // 1.5 < 2
  EXPECT_EQ(*sampler.sample(std::vector<float>{3, 1}, std::vector<std::int32_t>{0, 0}), 0);
  const std::vector<float> negative = {-1, -1.5};
  EXPECT_EQ(*sampler.sample(negative, std::vector<std::int32_t>{0}), 1);  // -2 < -1.5
  EXPECT_EQ(*sampler.sample(negative), 0);
}

TEST(Sampler, EqualSeedsGiveEqualTokensAndOthersDoNot) {
  const std::vector<float> logits(1000, 0.0F);
  const auto run = [&](std::uint64_t seed) {
    Sampler sampler = make({.temperature = 1, .seed = seed});
    std::vector<std::int32_t> ids;
    for (int i = 0; i < 8; ++i) ids.push_back(*sampler.sample(logits));
    return ids;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
  // The generator's own numbers, so that a platform that differs is noticed: SplitMix64 of seed 0
  // begins with 0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f.
  const std::vector<std::int32_t> zero = run(0);
  EXPECT_EQ(zero[0], 883);
  EXPECT_EQ(zero[1], 431);
  EXPECT_EQ(zero[2], 26);
}

TEST(Sampler, AForbiddenTokenNeverComes) {
  const std::vector<int> counts =
      count({.temperature = 100, .seed = 9}, {0, -kInf, 0, -kInf}, 2000, {1, 3});
  EXPECT_EQ(counts[1] + counts[3], 0);
}

TEST(Sampler, ExtremeTemperaturesStayFinite) {
  EXPECT_EQ(count({.temperature = 1e-300}, {1, 2, -3e38F}, 50)[1], 50);
  const int n = 4000;
  expect_shares(count({.temperature = 1e300, .seed = 6}, {-3e38F, 3e38F}, n), {0.5, 0.5}, n);
}

TEST(Sampler, RefusesLogitsThatAreNotNumbers) {
  Sampler sampler = make({.temperature = 1});
  const auto message = [&](const std::vector<float>& logits) {
    return sampler.sample(logits).status().to_string();
  };
  EXPECT_EQ(message({0, static_cast<float>(kNan)}),
            "invalid argument: logits[1]: found NaN, expected a finite number");
  EXPECT_EQ(message({kInf}),
            "invalid argument: logits[0]: found infinity, expected a finite number");
  EXPECT_EQ(message({}), "invalid argument: logits: found 0, expected 1 .. 2147483647");
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInf, -kInf}).status().code(),
            StatusCode::kInvalidArgument);
  for (const std::int32_t seen : {-1, 2}) {
    EXPECT_EQ(
        sampler.sample(std::vector<float>{0, 0}, std::vector<std::int32_t>{seen}).status().code(),
        StatusCode::kOutOfRange);
  }
}

TEST(Sampler, AFailingCallLeavesTheSequenceOfDrawsUnchanged) {
  const std::vector<float> logits(1000, 0.0F);
  Sampler straight = make({.temperature = 1, .seed = 11});
  Sampler disturbed = make({.temperature = 1, .seed = 11});
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(disturbed.sample({}).ok());
    EXPECT_EQ(*straight.sample(logits), *disturbed.sample(logits));
  }
}

TEST(Sampler, OptionsOutOfRangeAreNamed) {
  const auto message = [](const SamplerOptions& options) {
    return Sampler::create(options).status().message();
  };
  EXPECT_EQ(message({.temperature = -1}),
            "temperature: found -1.000000, expected a finite number of at least 0");
  EXPECT_EQ(message({.top_k = -2}), "top_k: found -2, expected 0 (all) or more");
  EXPECT_EQ(message({.top_p = 1.5}), "top_p: found 1.500000, expected 0 .. 1");
  EXPECT_EQ(message({.min_p = -0.5}), "min_p: found -0.500000, expected 0 .. 1");
  EXPECT_EQ(message({.repetition_penalty = 0}),
            "repetition_penalty: found 0.000000, expected a finite number above 0");
  for (const SamplerOptions& options :
       {SamplerOptions{.temperature = kNan}, SamplerOptions{.top_p = kNan},
        SamplerOptions{.min_p = kNan}, SamplerOptions{.repetition_penalty = kNan},
        SamplerOptions{.temperature = static_cast<double>(kInf)}}) {
    EXPECT_EQ(Sampler::create(options).status().code(), StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace kvcache::runner
