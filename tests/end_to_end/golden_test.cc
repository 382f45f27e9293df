// Hugging Face transformers is matched at every position: every family, both spellings of the
// config, every cache and none, every split of the text.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runner/generate/generate.h"
#include "runner/model/model.h"
#include "support/golden_checkpoint.h"
#include "support/model_runs.h"
#include "support/slow.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

using testing::describe;
using testing::GoldenCheckpoint;
using testing::GoldenPrompt;
using testing::logits_of;
using testing::max_difference;
using testing::ModelRun;

constexpr float kTolerance = 2e-4f;

class GoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    golden_ = testing::load_golden(GetParam());
    serial_.executor = &serial_executor();
  }

  Model load(const std::string& directory, WeightMode mode = WeightMode::kAuto) {
    auto model = Model::load(directory, mode);
    EXPECT_TRUE(model.ok()) << model.status().to_string();
    return std::move(model).value();
  }

  // The logits of every way to run, against those of transformers.
  void expect_golden(const Model& model, const std::vector<std::vector<std::int64_t>>& splits,
                     const ExecContext& context) {
    for (const GoldenPrompt& prompt : golden_.prompts) {
      const auto tokens = prompt.all();
      for (const auto& history : testing::every_history(static_cast<std::int64_t>(tokens.size()))) {
        for (const auto& steps : splits) {
          const ModelRun run{history, steps, {}, context};
          EXPECT_LE(max_difference(logits_of(model, tokens, run), prompt.logits), kTolerance)
              << describe(run);
        }
      }
    }
  }

  GoldenCheckpoint golden_;
  ExecContext serial_;
};

TEST_P(GoldenTest, LogitsOfEveryCacheAndSplitAreTransformers) {
  const Model model = load(golden_.directory, WeightMode::kF32);
  ASSERT_EQ(model.config().vocab_size, golden_.vocab_size);
  const auto prompt = static_cast<std::int64_t>(golden_.prompts.front().tokens.size());
  using Splits = std::vector<std::vector<std::int64_t>>;
  expect_golden(model,
                testing::unless_slow<Splits>({{}, {1}, {7}, {prompt, 1}, {13, 1, 30}},
                                             {{prompt, 1}, {13, 1, 30}}),
                serial_);
}

TEST_P(GoldenTest, TheHubsSpellingMeansTheSame) {
  const test::TempDir directory;
  testing::link_hub_spelling(golden_, directory.path());
  const Model model = load(directory.path());
  EXPECT_EQ(model.config().eos_token_ids, golden_.eos_token_ids);
  using Splits = std::vector<std::vector<std::int64_t>>;
  expect_golden(model, testing::unless_slow<Splits>({{}, {9, 1}}, {{9, 1}}), serial_);
}

TEST_P(GoldenTest, ThreadsChangeNothing) {
  const Model model = load(golden_.directory);
  const auto pool = make_thread_pool(3);
  ASSERT_TRUE(pool.ok());
  ExecContext context;
  context.executor = pool->get();
  expect_golden(model, {{20, 1}}, context);
}

TEST_P(GoldenTest, Int8WeightsStayNearTransformers) {
  HistoryOptions history;
  history.kind = HistoryKind::kNone;
  for (const Activations activations : {Activations::kInt16, Activations::kInt8}) {
    const auto model = Model::load(golden_.directory, WeightMode::kInt8, activations);
    ASSERT_TRUE(model.ok()) << model.status().to_string();
    for (const GoldenPrompt& prompt : golden_.prompts) {
      const auto tokens = prompt.all();
      const auto logits = logits_of(*model, tokens, {history, {}, {}, serial_});
      EXPECT_LT(testing::relative_difference(logits, prompt.logits),
                activations == Activations::kInt8 ? 0.08 : 0.05);
    }
  }
}

TEST_P(GoldenTest, TheRotationIsTransformers) {
  const Model model = load(golden_.directory);
  const auto frequencies = rope_inverse_frequencies(model.config().rope, model.config().head_dim);
  ASSERT_EQ(frequencies.size(), golden_.rope_inv_freq.size());
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    EXPECT_NEAR(frequencies[i], golden_.rope_inv_freq[i], 2e-7f * golden_.rope_inv_freq[i]) << i;
  }
}

TEST_P(GoldenTest, GreedyTokensAreTransformers) {
  const Model model = load(golden_.directory);
  // Not every checkpoint has a tokenizer; ids are what is compared, and any tokenizer has a text
  // for each.
  auto tokenizer =
      Tokenizer::load(testing::golden_directory("tokenizer_qwen2") + "/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
  for (const GoldenPrompt& prompt : golden_.prompts) {
    for (const auto& history : testing::every_history(0)) {
      for (const std::int64_t chunk :
           testing::unless_slow<std::vector<std::int64_t>>({0, 5}, {5})) {
        GenerateOptions options;
        options.cache = history.kind;
        options.layout = history.layout;
        options.page_size = history.page_size;
        options.prefill_chunk = chunk;
        options.max_tokens = static_cast<std::int64_t>(prompt.greedy.size());
        options.stop_at_eos = false;
        options.context = serial_;
        const auto all = generate(model, *tokenizer, prompt.tokens, options);
        ASSERT_TRUE(all.ok()) << all.status().to_string();
        EXPECT_EQ(all->tokens, prompt.greedy) << describe({history, {chunk}, {}, {}});
        EXPECT_EQ(all->stop_reason, StopReason::kMaxTokens);

        options.stop_at_eos = true;
        const auto some = generate(model, *tokenizer, prompt.tokens, options);
        ASSERT_TRUE(some.ok()) << some.status().to_string();
        std::vector<std::int32_t> ended = prompt.greedy_eos;
        const bool by_eos = std::count(golden_.eos_token_ids.begin(), golden_.eos_token_ids.end(),
                                       ended.back()) > 0;
        EXPECT_EQ(some->stop_reason, by_eos ? StopReason::kEos : StopReason::kMaxTokens);
        if (by_eos) ended.pop_back();
        EXPECT_EQ(some->tokens, ended);
      }
    }
  }
}

TEST_P(GoldenTest, TextGoesInAndOutThroughItsTokenizer) {
  const auto tokenizer = Tokenizer::load(golden_.directory + "/tokenizer.json");
  if (!tokenizer.ok()) {
    EXPECT_EQ(tokenizer.status().code(), StatusCode::kNotFound) << tokenizer.status().to_string();
    return;
  }
  const Model model = load(golden_.directory);
  for (const GoldenPrompt& prompt : golden_.prompts) {
    const auto ids = tokenizer->encode(prompt.text);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*ids, prompt.tokens);
    GenerateOptions options;
    options.max_tokens = static_cast<std::int64_t>(prompt.greedy.size());
    options.stop_at_eos = false;
    options.context = serial_;
    std::string streamed;
    GenerateCallbacks callbacks;
    callbacks.on_text = [&](std::string_view piece) { streamed += piece; };
    const auto result = generate(model, *tokenizer, *ids, options, callbacks);
    ASSERT_TRUE(result.ok()) << result.status().to_string();
    EXPECT_EQ(result->text, prompt.greedy_text);
    EXPECT_EQ(streamed, prompt.greedy_text);
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenTest, ::testing::ValuesIn(testing::golden_names()),
                         [](const auto& checkpoint) { return checkpoint.param; });

}  // namespace
}  // namespace kvcache::runner
