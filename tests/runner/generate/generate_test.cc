#include "runner/generate/generate.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/golden_checkpoint.h"
#include "support/model_runs.h"

namespace kvcache::runner {
namespace {

// Whether `text` is UTF-8 from its first byte to its last.
bool whole_characters(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t size = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead >= 0x80 && lead < 0xc2) return false;
    if (i + size > text.size()) return false;
    for (std::size_t k = 1; k < size; ++k) {
      if ((static_cast<unsigned char>(text[i + k]) & 0xc0) != 0x80) return false;
    }
    i += size;
  }
  return true;
}

class GenerateTest : public ::testing::Test {
 protected:
  GenerateTest() {
    options_.max_tokens = 40;
    options_.context.executor = &serial_executor();
    options_.stop_at_eos = false;
  }

  static Model load_model() {
    // Random weights over a byte-level vocabulary: its text is full of broken characters.
    auto model = Model::load(testing::golden_directory("qwen2_tied"));
    EXPECT_TRUE(model.ok()) << model.status().to_string();
    return std::move(model).value();
  }
  static Tokenizer load_tokenizer() {
    auto tokenizer = Tokenizer::load(testing::golden_directory("qwen2_tied") + "/tokenizer.json");
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
    return std::move(tokenizer).value();
  }

  GenerateResult run(const GenerateCallbacks& callbacks = {}) {
    auto result = generate(model_, tokenizer_, prompt_, options_, callbacks);
    EXPECT_TRUE(result.ok()) << result.status().to_string();
    return result.ok() ? std::move(result).value() : GenerateResult();
  }

  Model model_ = load_model();
  Tokenizer tokenizer_ = load_tokenizer();
  std::vector<std::int32_t> prompt_ = {40, 41, 42, 43, 44, 45, 46};
  GenerateOptions options_;
};

TEST_F(GenerateTest, ATextIsWhatItsTokensDecodeTo) {
  const GenerateResult result = run();
  EXPECT_EQ(result.stop_reason, StopReason::kMaxTokens);
  EXPECT_EQ(result.tokens.size(), 40u);
  EXPECT_EQ(result.text, tokenizer_.decode(result.tokens));
  EXPECT_EQ(result.prompt_tokens, 7);
  EXPECT_EQ(result.decode_steps, 39);
  EXPECT_EQ(result.trace.size(), 40u);
  EXPECT_EQ(static_cast<std::int64_t>(result.last_logits.size()), model_.config().vocab_size);
}

TEST_F(GenerateTest, HalfACharacterIsNeverStreamed) {
  options_.sampler.temperature = 1.5;
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    options_.sampler.seed = seed;
    std::string streamed;
    GenerateCallbacks callbacks;
    callbacks.on_text = [&](std::string_view piece) {
      EXPECT_FALSE(piece.empty());
      EXPECT_TRUE(whole_characters(piece));
      streamed += piece;
    };
    EXPECT_EQ(run(callbacks).text, streamed);
  }
}

TEST_F(GenerateTest, StopsAtAnyOfTheEndTokens) {
  const GenerateResult whole = run();
  ModelConfig config = model_.config();
  ASSERT_FALSE(config.eos_token_ids.empty());
  options_.stop_at_eos = true;
  options_.max_tokens = 100;
  // Make the text reach an end token by sampling until one comes.
  options_.sampler.temperature = 3.0;
  bool ended = false;
  for (std::uint64_t seed = 0; seed < 60 && !ended; ++seed) {
    options_.sampler.seed = seed;
    const GenerateResult result = run();
    for (const std::int32_t id : result.tokens) {
      EXPECT_EQ(std::count(config.eos_token_ids.begin(), config.eos_token_ids.end(), id), 0);
    }
    if (result.stop_reason != StopReason::kEos) continue;
    ended = true;
    EXPECT_EQ(result.trace.size(), result.tokens.size() + 1);
    EXPECT_EQ(std::count(config.eos_token_ids.begin(), config.eos_token_ids.end(),
                         result.trace.back().token),
              1);
  }
  EXPECT_TRUE(ended);
}

TEST_F(GenerateTest, AStopTextAcrossTokensEndsTheTextBeforeIt) {
  const GenerateResult whole = run();
  // The last characters of one token's text and the first of the next: whole ones, of any length.
  const std::string& text = whole.text;
  ASSERT_GT(text.size(), 20u);
  const auto character_from = [&](std::size_t at) {
    while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) ++at;
    return at;
  };
  for (std::size_t at = 4; at + 9 < text.size(); at += 7) {
    const std::size_t begin = character_from(at);
    const std::string stop = text.substr(begin, character_from(begin + 5) - begin);
    options_.stop = {"never in any text", stop};
    std::string streamed;
    GenerateCallbacks callbacks;
    callbacks.on_text = [&](std::string_view piece) { streamed += piece; };
    const GenerateResult result = run(callbacks);
    EXPECT_EQ(result.stop_reason, StopReason::kStopText);
    EXPECT_EQ(result.text, text.substr(0, text.find(stop)));
    EXPECT_EQ(streamed, result.text);
    EXPECT_LE(result.tokens.size(), whole.tokens.size());
  }
}

TEST_F(GenerateTest, AnyChunkOfThePrefillGivesTheSameTokens) {
  prompt_ = testing::some_tokens(30, model_.config().vocab_size);
  const GenerateResult whole = run();
  for (const HistoryKind kind : {HistoryKind::kNone, HistoryKind::kDynamic, HistoryKind::kStatic,
                                 HistoryKind::kPaged, HistoryKind::kFunctional}) {
    options_.cache = kind;
    for (const std::int64_t chunk : {1, 7, 29, 30, 1000}) {
      options_.prefill_chunk = chunk;
      std::vector<std::int64_t> progress;
      GenerateCallbacks callbacks;
      callbacks.on_prefill = [&](std::int64_t done, std::int64_t total) {
        EXPECT_EQ(total, 30);
        progress.push_back(done);
      };
      const GenerateResult result = run(callbacks);
      EXPECT_EQ(result.tokens, whole.tokens) << name_of(kind) << " chunk " << chunk;
      ASSERT_FALSE(progress.empty());
      EXPECT_EQ(progress.back(), 30);
      if (kind != HistoryKind::kNone) {
        EXPECT_EQ(progress.size(), static_cast<std::size_t>((30 + chunk - 1) / chunk));
      }
    }
  }
}

TEST_F(GenerateTest, EndsWhereTheContextEnds) {
  options_.max_tokens = 1000;
  const std::int64_t context = model_.config().max_position_embeddings;
  for (const HistoryKind kind : {HistoryKind::kDynamic, HistoryKind::kStatic, HistoryKind::kPaged,
                                 HistoryKind::kFunctional}) {
    options_.cache = kind;
    prompt_ = testing::some_tokens(context - 4, model_.config().vocab_size);
    GenerateResult result = run();
    EXPECT_EQ(result.stop_reason, StopReason::kContext);
    EXPECT_EQ(result.tokens.size(), 5u);  // the last one is told, and takes no room
    prompt_ = testing::some_tokens(context, model_.config().vocab_size);
    result = run();
    EXPECT_EQ(result.stop_reason, StopReason::kContext);
    EXPECT_EQ(result.tokens.size(), 1u);
  }
}

TEST_F(GenerateTest, EqualSeedsGiveEqualTextsThroughEveryCache) {
  options_.sampler.temperature = 1.0;
  options_.sampler.top_k = 50;
  options_.sampler.seed = 11;
  const GenerateResult first = run();
  for (const HistoryKind kind :
       {HistoryKind::kNone, HistoryKind::kStatic, HistoryKind::kPaged, HistoryKind::kFunctional}) {
    options_.cache = kind;
    EXPECT_EQ(run().tokens, first.tokens) << name_of(kind);
  }
  options_.sampler.seed = 12;
  EXPECT_NE(run().tokens, first.tokens);
}

TEST_F(GenerateTest, BadInputIsNamed) {
  const auto error = [&] {
    const auto result = generate(model_, tokenizer_, prompt_, options_);
    EXPECT_FALSE(result.ok());
    return result.status();
  };
  const std::vector<std::int32_t> prompt = prompt_;
  prompt_.clear();
  EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
  prompt_ = testing::some_tokens(129, model_.config().vocab_size);
  EXPECT_EQ(error().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(error().message(),
            "prompt: found 129 tokens, expected at most 128 (the model's context)");
  prompt_ = {1, 2, 736};
  EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
  prompt_ = prompt;
  for (const std::int64_t max_tokens : {0, -3}) {
    options_.max_tokens = max_tokens;
    EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
  }
  options_.max_tokens = 4;
  options_.prefill_chunk = -1;
  EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
  options_.prefill_chunk = 0;
  options_.cache = HistoryKind::kPaged;
  for (const std::int64_t page_size : {0, -16}) {
    options_.page_size = page_size;
    EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
  }
  options_.page_size = 16;
  options_.sampler.temperature = -1;
  EXPECT_EQ(error().code(), StatusCode::kInvalidArgument);
}

TEST_F(GenerateTest, MemoryThatRunsOutIsAnError) {
  for (const HistoryKind kind : {HistoryKind::kDynamic, HistoryKind::kStatic, HistoryKind::kPaged,
                                 HistoryKind::kFunctional}) {
    LimitedMemory little(4096);
    options_.cache = kind;
    options_.memory = &little;
    const auto result = generate(model_, tokenizer_, prompt_, options_);
    EXPECT_EQ(result.status().code(), StatusCode::kOutOfMemory) << name_of(kind);
    EXPECT_EQ(little.committed_bytes(), 0);
  }
  options_.memory = nullptr;
  EXPECT_EQ(run().tokens.size(), 40u);
}

}  // namespace
}  // namespace kvcache::runner
