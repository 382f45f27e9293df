#include "runner/generate/generation.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "runner/generate/loaded_model.h"
#include "support/golden_checkpoint.h"
#include "support/model_runs.h"

namespace kvcache::runner {
namespace {

class GenerationTest : public ::testing::Test {
 protected:
  GenerationTest() {
    options_.max_tokens = 12;
    options_.context.executor = &serial_executor();
    options_.stop_at_eos = false;
  }

  static LoadedModel load() {
    auto loaded = LoadedModel::load(testing::golden_directory("qwen2_tied"), WeightMode::kAuto);
    EXPECT_TRUE(loaded.ok()) << loaded.status().to_string();
    return std::move(loaded).value();
  }

  std::unique_ptr<Generation> create() {
    auto made = Generation::create(loaded_.model, loaded_.tokenizer, prompt_, options_);
    EXPECT_TRUE(made.ok()) << made.status().to_string();
    return std::move(made).value();
  }

  LoadedModel loaded_ = load();
  std::vector<std::int32_t> prompt_ = testing::some_tokens(10, loaded_.model.config().vocab_size);
  GenerateOptions options_;
};

TEST_F(GenerationTest, AStepIsAChunkOfThePromptOrAToken) {
  options_.prefill_chunk = 4;
  const auto generation = create();
  // 4 and 4 and 2 of the prompt, the last with the first token; then a token each.
  const std::vector<std::size_t> expected = {0, 0, 1, 2, 3};
  for (const std::size_t tokens : expected) {
    ASSERT_TRUE(generation->step().ok());
    EXPECT_EQ(generation->result().trace.size(), tokens);
  }
}

TEST_F(GenerationTest, TextsThatGrowInTurnAreThoseOfGenerate) {
  options_.sampler.temperature = 1.0;
  std::vector<std::string> expected;
  std::vector<std::unique_ptr<Generation>> generations;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    options_.sampler.seed = seed;
    auto alone = generate(loaded_.model, loaded_.tokenizer, prompt_, options_);
    ASSERT_TRUE(alone.ok()) << alone.status().to_string();
    expected.push_back(alone->text);
    generations.push_back(create());
  }
  for (bool going = true; going;) {
    going = false;
    for (const auto& generation : generations) {
      if (generation->done()) continue;
      ASSERT_TRUE(generation->step().ok());
      going = true;
    }
  }
  for (std::size_t i = 0; i < generations.size(); ++i) {
    EXPECT_EQ(generations[i]->result().text, expected[i]);
    EXPECT_EQ(generations[i]->result().tokens.size(), 12u);
  }
}

TEST_F(GenerationTest, BeamsAreRefusedByName) {
  options_.num_beams = 2;
  const auto made = Generation::create(loaded_.model, loaded_.tokenizer, prompt_, options_);
  EXPECT_EQ(made.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(made.status().message().find("num_beams: found 2"), std::string::npos);
}

}  // namespace
}  // namespace kvcache::runner
