#include "runner/generate/beam_search.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "runner/generate/generate.h"
#include "support/golden_checkpoint.h"
#include "support/model_runs.h"

namespace kvcache::runner {
namespace {

using testing::golden_directory;
using testing::some_tokens;

// Logits of a beam after `tokens`: a table, so that the likeliest texts can be listed in full.
std::vector<float> logits_after(std::span<const std::int32_t> tokens, std::int64_t vocab,
                                std::uint32_t seed) {
  for (const std::int32_t token : tokens) seed = seed * 31 + static_cast<std::uint32_t>(token) + 7;
  std::mt19937 random(seed);
  std::vector<float> logits;
  for (std::int64_t i = 0; i < vocab; ++i) {
    logits.push_back(static_cast<float>(random() % 4096) / 512.0f);
  }
  return logits;
}

double log_probability(std::span<const float> logits, std::int32_t token) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  return logits[static_cast<std::size_t>(token)] - std::log(sum);
}

std::vector<float> logits_of_beams(const BeamSearch& search, std::int64_t num_beams,
                                   std::int64_t vocab, std::uint32_t seed) {
  std::vector<float> logits;
  for (std::int64_t beam = 0; beam < num_beams; ++beam) {
    const auto row = logits_after(search.beam(beam), vocab, seed);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return logits;
}

TEST(BeamSearchTest, ScoresAreTheSumsOfTheirTokensOverThePowerOfTheLength) {
  for (const double penalty : {1.0, 0.0, 2.0, -1.0}) {
    for (std::uint32_t seed = 1; seed <= 20; ++seed) {
      BeamSearch search({3, penalty, 6, {2, 5}});
      int steps = 0;
      while (!search.over()) {
        ASSERT_TRUE(search.step(logits_of_beams(search, 3, 11, seed)).ok());
        ASSERT_LE(++steps, 6);
      }
      ASSERT_EQ(search.hypotheses().size(), 3u);
      double before = std::numeric_limits<double>::infinity();
      for (const Hypothesis& hypothesis : search.hypotheses()) {
        double sum = 0;
        const std::span<const std::int32_t> tokens = hypothesis.tokens;
        for (std::size_t i = 0; i < tokens.size(); ++i) {
          sum += log_probability(logits_after(tokens.first(i), 11, seed), tokens[i]);
          const bool end = tokens[i] == 2 || tokens[i] == 5;
          EXPECT_EQ(end, end && i + 1 == tokens.size()) << "a text goes on after its end";
        }
        EXPECT_TRUE(tokens.size() == 6 || tokens.back() == 2 || tokens.back() == 5);
        EXPECT_NEAR(hypothesis.score, sum / std::pow(tokens.size(), penalty), 1e-9);
        EXPECT_LE(hypothesis.score, before);
        before = hypothesis.score;
      }
    }
  }
}

TEST(BeamSearchTest, AWideSearchFindsTheLikeliestTextOfAll) {
  // The likeliest of all 3600 texts begins with one of the 25 likeliest tokens.
  for (std::uint32_t seed = 1; seed <= 10; ++seed) {
    const std::int64_t vocab = 60;
    BeamSearch search({25, 0.0, 2, {}});
    while (!search.over()) {
      ASSERT_TRUE(search.step(logits_of_beams(search, 25, vocab, seed)).ok());
    }
    double best = -std::numeric_limits<double>::infinity();
    const auto first = logits_after({}, vocab, seed);
    for (std::int32_t a = 0; a < vocab; ++a) {
      const std::int32_t prefix[] = {a};
      const auto second = logits_after(prefix, vocab, seed);
      for (std::int32_t b = 0; b < vocab; ++b) {
        best = std::max(best, log_probability(first, a) + log_probability(second, b));
      }
    }
    EXPECT_NEAR(search.hypotheses().front().score, best, 1e-9);
  }
}

TEST(BeamSearchTest, EndTokensBelowTheFirstBeamsAreNoHypotheses) {
  // Two beams, end token 3: it is third of four candidates and must not end a text.
  BeamSearch search({2, 1.0, 5, {3}});
  const std::vector<float> row = {5, 4, 1, 3, 0, 0};
  std::vector<float> logits = row;
  logits.insert(logits.end(), row.begin(), row.end());
  ASSERT_TRUE(search.step(logits).ok());
  EXPECT_TRUE(search.hypotheses().empty());
  EXPECT_EQ(search.tokens()[0], 0);
  EXPECT_EQ(search.tokens()[1], 1);
}

TEST(BeamSearchTest, BadLogitsAreNamedAndChangeNothing) {
  BeamSearch search({2, 1.0, 5, {3}});
  std::vector<float> logits(12, 0.0f);
  EXPECT_EQ(search.step(std::span(logits).first(11)).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(search.step(std::span(logits).first(6)).code(), StatusCode::kInvalidArgument);
  logits[7] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(search.step(logits).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(search.beam(0).empty());
  EXPECT_FALSE(search.over());
}

class GenerateBeamsTest : public ::testing::Test {
 protected:
  GenerateBeamsTest() {
    options_.num_beams = 4;
    options_.max_tokens = 12;
    options_.context.executor = &serial_executor();
  }

  Status error() {
    const auto model = Model::load(golden_directory("qwen2_tied"));
    const auto tokenizer = Tokenizer::load(golden_directory("qwen2_tied") + "/tokenizer.json");
    EXPECT_TRUE(model.ok() && tokenizer.ok());
    return generate(*model, *tokenizer, some_tokens(9, 700), options_).status();
  }

  GenerateOptions options_;
};

TEST_F(GenerateBeamsTest, WhatDoesNotGoWithBeamsIsRefused) {
  EXPECT_TRUE(error().ok());
  for (const std::int64_t beams : {0, -1, 1025}) {
    options_.num_beams = beams;
    EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
  }
  options_.num_beams = 4;
  options_.sampler.temperature = 0.5;
  EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
  options_.sampler.temperature = 0;
  options_.sampler.repetition_penalty = 1.1;
  EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
  options_.sampler.repetition_penalty = 1;
  options_.stop = {"x"};
  EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
  options_.stop.clear();
  options_.length_penalty = std::numeric_limits<double>::infinity();
  EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
}

TEST_F(GenerateBeamsTest, MemoryThatRunsOutIsAnError) {
  for (const HistoryKind kind :
       {HistoryKind::kDynamic, HistoryKind::kStatic, HistoryKind::kPaged}) {
    options_.cache = kind;
    for (std::size_t limit = 4096; limit <= 1 << 18; limit *= 2) {
      LimitedMemory little(static_cast<std::int64_t>(limit));
      options_.memory = &little;
      const Status status = error();
      EXPECT_TRUE(status.ok() || status.code() == StatusCode::kOutOfMemory) << status.to_string();
      EXPECT_EQ(little.committed_bytes(), 0);
    }
  }
}

}  // namespace
}  // namespace kvcache::runner
