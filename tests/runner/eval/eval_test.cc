#include "runner/eval/eval.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/model_runs.h"

namespace kvcache::runner {
namespace {

class EvalTest : public ::testing::Test {
 protected:
  static Model random_model() {
    ModelConfig config = testing::small_config();
    config.head_dim = 64;
    auto model = Model::random(config, WeightType::kF32, 7);
    EXPECT_TRUE(model.ok()) << model.status().to_string();
    return std::move(model).value();
  }

  std::vector<EvalRun> run(const std::vector<std::string>& forms, std::int64_t tokens) {
    for (const std::string& words : forms) options_.forms.push_back(*KvDtype::parse(words));
    const auto text = testing::some_tokens(tokens, model_.config().vocab_size);
    auto runs = evaluate(model_, text, options_);
    EXPECT_TRUE(runs.ok()) << runs.status().to_string();
    return runs.ok() ? *std::move(runs) : std::vector<EvalRun>();
  }

  Model model_ = random_model();
  EvalOptions options_;
};

TEST_F(EvalTest, TheReferenceComesFirstAndCodesAreFurtherFromItTheFewerBitsTheyHave) {
  options_.context = 40;
  options_.prefill_chunk = 7;
  options_.greedy_tokens = 6;
  const auto runs = run({"bf16", "int8", "k=int8,v=lm4", "lm4"}, 100);
  ASSERT_EQ(runs.size(), 5u);
  EXPECT_EQ(runs[0].words, "bf16");
  for (const EvalRun& same : {runs[0], runs[1]}) {
    EXPECT_EQ(same.divergence, 0);
    EXPECT_EQ(same.same_top, 1);
    EXPECT_EQ(same.first_difference, 6);
    EXPECT_EQ(same.perplexity, runs[0].perplexity);
  }
  for (const EvalRun& each : runs) {
    EXPECT_EQ(each.predicted, 39 + 39 + 19) << "the first token of a window is not foretold";
    EXPECT_EQ(each.prefilled, 100);
    EXPECT_EQ(each.decoded, 6);
    EXPECT_GT(each.decode_tokens_per_s(), 0);
  }
  EXPECT_GT(runs[2].divergence, 0);
  EXPECT_GT(runs[3].divergence, runs[2].divergence);
  EXPECT_GT(runs[4].divergence, runs[3].divergence);
  const std::int64_t heads = 2 * 3;  // KV heads of all layers
  EXPECT_EQ(runs[0].token_bytes, heads * 2 * 64 * 2);
  EXPECT_EQ(runs[3].token_bytes, heads * (66 + 34));
}

// What a form loses does not depend on how the text is cut into steps, but for the order of sums.
TEST_F(EvalTest, PerplexityIsThatOfOneForwardPassOverEachWindow) {
  options_.context = 32;
  options_.prefill_chunk = 5;
  options_.greedy_tokens = 0;
  const auto runs = run({"f32"}, 64);
  const auto text = testing::some_tokens(64, model_.config().vocab_size);
  const std::int64_t vocab = model_.config().vocab_size;
  double loss = 0;
  for (const std::size_t window : {0, 32}) {
    testing::ModelRun whole;
    const auto logits = testing::logits_of(model_, std::span(text).subspan(window, 32), whole);
    for (std::size_t i = 0; i + 1 < 32; ++i) {
      double sum = 0;
      for (std::int64_t t = 0; t < vocab; ++t) {
        sum += std::exp(static_cast<double>(
            logits[i * static_cast<std::size_t>(vocab) + static_cast<std::size_t>(t)]));
      }
      loss += std::log(sum) -
              static_cast<double>(logits[i * static_cast<std::size_t>(vocab) +
                                         static_cast<std::size_t>(text[window + i + 1])]);
    }
  }
  EXPECT_NEAR(runs[1].perplexity / std::exp(loss / 62), 1, 1e-5);
  EXPECT_EQ(runs[1].greedy_tokens, 0);
}

TEST_F(EvalTest, WhatIsOutOfBoundsIsSaidByName) {
  const auto text = testing::some_tokens(20, model_.config().vocab_size);
  const auto message = [&] { return evaluate(model_, text, options_).status().message(); };
  options_.context = 1;
  EXPECT_EQ(message(), "context: found 1, expected 2 .. 256");
  options_.context = 257;
  EXPECT_EQ(message(), "context: found 257, expected 2 .. 256");
  options_.context = 16;
  options_.prefill_chunk = 0;
  EXPECT_EQ(message(), "prefill_chunk: found 0, expected at least 1");
  options_.prefill_chunk = 1;
  options_.greedy_tokens = -1;
  EXPECT_EQ(message(), "greedy_tokens: found -1, expected at least 0");
  options_.greedy_tokens = 0;
  EXPECT_EQ(evaluate(model_, {text.data(), 1}, options_).status().message(),
            "text: found 1, expected at least 2 tokens");
  options_.forms = {*KvDtype::parse("int8:9")};
  EXPECT_EQ(message(), "kv_dtype: found int8:9, expected layers 0 .. 2");
}

}  // namespace
}  // namespace kvcache::runner
