// Beam search finds the texts of Hugging Face transformers with their scores, through every cache
// and none, with end tokens and without.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runner/generate/generate.h"
#include "support/golden_checkpoint.h"
#include "support/model_runs.h"
#include "support/slow.h"

namespace kvcache::runner {
namespace {

using testing::GoldenBeams;
using testing::GoldenPrompt;

constexpr double kScoreTolerance = 2e-4;

class BeamGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  static Tokenizer load_tokenizer() {
    // Ids are what is compared, and any tokenizer has a text for each.
    auto tokenizer =
        Tokenizer::load(testing::golden_directory("tokenizer_qwen2") + "/tokenizer.json");
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
    return std::move(tokenizer).value();
  }
  static Model load_model() {
    auto model = Model::load(testing::golden_directory(GetParam()));
    EXPECT_TRUE(model.ok()) << model.status().to_string();
    return std::move(model).value();
  }

  GenerateResult run(const HistoryOptions& history, const std::vector<std::int32_t>& prompt,
                     const GoldenBeams& golden) {
    GenerateOptions options;
    options.cache = history.kind;
    options.layout = history.layout;
    options.page_size = history.page_size;
    options.num_beams = golden.num_beams;
    options.length_penalty = golden.length_penalty;
    options.max_tokens = golden.max_new_tokens;
    options.stop_at_eos = !golden.eos_token_ids.empty();
    options.context.executor = &serial_executor();
    auto result = generate(model_, tokenizer_, prompt, options);
    EXPECT_TRUE(result.ok()) << result.status().to_string();
    return result.ok() ? std::move(result).value() : GenerateResult();
  }

  Model model_ = load_model();
  Tokenizer tokenizer_ = load_tokenizer();
  testing::GoldenCheckpoint golden_ = testing::load_golden(GetParam());
};

TEST_P(BeamGoldenTest, SequencesAndScoresAreTransformersThroughEveryCache) {
  for (const GoldenPrompt& prompt : golden_.prompts) {
    if (testing::kSlow && &prompt != &golden_.prompts.front()) break;
    for (const GoldenBeams* golden : {&prompt.beam4, &prompt.beam4_no_eos}) {
      std::vector<Hypothesis> layered;
      for (const auto& history : testing::every_history(0)) {
        if (history.kind == HistoryKind::kFunctional) continue;
        const std::string name = testing::describe({history, {}, {}, {}});
        const GenerateResult result = run(history, prompt.tokens, *golden);
        ASSERT_EQ(result.beams.size(), golden->sequences.size()) << name;
        for (std::size_t i = 0; i < result.beams.size(); ++i) {
          EXPECT_EQ(result.beams[i].tokens, golden->sequences[i]) << name << " beam " << i;
          EXPECT_NEAR(result.beams[i].score, golden->scores[i], kScoreTolerance)
              << name << " beam " << i;
        }
        // Without a cache the sums of a prefill are in another order; all caches agree exactly.
        if (history.kind == HistoryKind::kNone) continue;
        if (layered.empty()) layered = result.beams;
        for (std::size_t i = 0; i < result.beams.size(); ++i) {
          EXPECT_EQ(result.beams[i].tokens, layered[i].tokens) << name;
          EXPECT_EQ(result.beams[i].score, layered[i].score) << name;
        }
      }
    }
  }
}

TEST_P(BeamGoldenTest, OtherWidthsAndLengthPenaltiesAreTransformersToo) {
  const std::string path = testing::golden_directory("beams") + "/beams.json";
  const auto json = nlohmann::json::parse(std::ifstream(path), nullptr, false);
  ASSERT_TRUE(json.is_object()) << path;
  int searches = 0;
  for (const auto& entry : json.at("searches")) {
    if (entry.at("checkpoint") != GetParam()) continue;
    ++searches;
    const GoldenBeams golden = testing::golden_beams(entry);
    const auto& prompt = golden_.prompts[entry.at("prompt").get<std::size_t>()];
    for (const HistoryKind kind :
         {HistoryKind::kDynamic, HistoryKind::kStatic, HistoryKind::kPaged}) {
      HistoryOptions history;
      history.kind = kind;
      history.page_size = 4;
      const GenerateResult result = run(history, prompt.tokens, golden);
      ASSERT_EQ(result.beams.size(), golden.sequences.size());
      for (std::size_t i = 0; i < result.beams.size(); ++i) {
        const auto length = static_cast<double>(golden.sequences[i].size());
        EXPECT_EQ(result.beams[i].tokens, golden.sequences[i])
            << name_of(kind) << " " << golden.num_beams << " beams, penalty "
            << golden.length_penalty << ", beam " << i;
        EXPECT_NEAR(result.beams[i].score, golden.scores[i],
                    kScoreTolerance * std::pow(length, 1 - golden.length_penalty));
      }
    }
  }
  EXPECT_GT(searches, 0);
}

TEST_P(BeamGoldenTest, TheTextIsThatOfTheBestBeamWithoutItsEndToken) {
  HistoryOptions paged;
  paged.kind = HistoryKind::kPaged;
  for (const GoldenPrompt& prompt : golden_.prompts) {
    const GenerateResult result = run(paged, prompt.tokens, prompt.beam4);
    std::vector<std::int32_t> best = prompt.beam4.sequences.front();
    const auto& eos = prompt.beam4.eos_token_ids;
    const bool ended = std::count(eos.begin(), eos.end(), best.back()) > 0;
    if (ended) best.pop_back();
    EXPECT_EQ(result.stop_reason, ended ? StopReason::kEos : StopReason::kMaxTokens);
    EXPECT_EQ(result.tokens, best);
    EXPECT_EQ(result.text, tokenizer_.decode(best));
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, BeamGoldenTest, ::testing::ValuesIn(testing::golden_names()),
                         [](const auto& checkpoint) { return checkpoint.param; });

}  // namespace
}  // namespace kvcache::runner
