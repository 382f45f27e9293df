#include "runner/compare/compare.h"

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "support/golden_checkpoint.h"
#include "support/model_runs.h"

namespace kvcache::runner {
namespace {

class CompareTest : public ::testing::Test {
 protected:
  std::vector<CompareRun> run(std::int64_t prompt_tokens, GenerateOptions options,
                              const CompareCallbacks& callbacks = {}, std::int64_t turns = 1) {
    const auto model = Model::load(testing::golden_directory("qwen2_tied"));
    const auto tokenizer =
        Tokenizer::load(testing::golden_directory("qwen2_tied") + "/tokenizer.json");
    EXPECT_TRUE(model.ok() && tokenizer.ok());
    options.context.executor = &serial_executor();
    const auto prompt = testing::some_tokens(prompt_tokens, model->config().vocab_size);
    auto runs = compare(*model, *tokenizer, prompt, options, turns, callbacks);
    EXPECT_TRUE(runs.ok()) << runs.status().to_string();
    return runs.ok() ? std::move(runs).value() : std::vector<CompareRun>();
  }
};

// Three prompts of `prompt` tokens and up to two thirds of `tokens` more.
void expect_batch_by_the_formulas(const CompareRun& run, std::int64_t prompt, std::int64_t tokens) {
  EXPECT_EQ(run.cache, HistoryKind::kBatching);
  EXPECT_TRUE(run.same_tokens);
  EXPECT_EQ(run.max_logit_difference, 0) << "a request alone has other bits";
  ASSERT_EQ(run.requests.size(), 3u);
  std::int64_t computed = 0;
  std::int64_t read = 0;
  std::int64_t more = 0;
  for (const ComparedRequest& request : run.requests) {
    EXPECT_EQ(request.prompt_tokens, prompt + std::min(more, tokens));
    EXPECT_EQ(request.new_tokens, tokens);
    EXPECT_TRUE(request.same_tokens);
    computed += expected_rows_computed(run.cache, request.prompt_tokens, tokens);
    for (std::int64_t n = 0; n < tokens; ++n) read += request.prompt_tokens + n;
    more += (tokens + 2) / 3;
  }
  EXPECT_EQ(run.generated.counters.rows_computed, computed);
  EXPECT_EQ(run.generated.counters.rows_read, read);
  EXPECT_EQ(run.generated.usage.nbytes, computed * 2 * 2 * 32 * 4);
  EXPECT_EQ(run.generated.usage.copied_bytes, 0);
}

TEST_F(CompareTest, EveryRunHasTheTokensOfNoneAndCountsByTheFormulas) {
  for (const std::int64_t prompt : {1, 23}) {
    for (const std::int64_t tokens : {1, 20}) {
      GenerateOptions options;
      options.max_tokens = tokens;
      const auto runs = run(prompt, options);
      ASSERT_EQ(runs.size(), 6u);
      std::int64_t read = 0;
      for (std::int64_t n = prompt; n < prompt + tokens; ++n) read += n;
      for (const CompareRun& one : std::span(runs).first(5)) {
        const GenerateResult& result = one.generated;
        EXPECT_TRUE(one.same_tokens) << name_of(one.cache);
        EXPECT_LE(one.max_logit_difference, 1e-4f) << name_of(one.cache);
        EXPECT_EQ(static_cast<std::int64_t>(result.tokens.size()), tokens);
        EXPECT_EQ(result.counters.rows_computed, expected_rows_computed(one.cache, prompt, tokens));
        // Full causal attention reads every row up to its newest token, once a step.
        EXPECT_EQ(result.counters.rows_read, read) << name_of(one.cache);
        EXPECT_EQ(result.usage.copied_bytes, 0);
        std::int64_t computed = 0;
        std::int64_t position = prompt;
        for (const TokenTrace& trace : result.trace) {
          computed += trace.rows_computed;
          EXPECT_EQ(trace.rows_read, position);
          EXPECT_EQ(trace.position, position++);
        }
        EXPECT_EQ(computed, result.counters.rows_computed);
      }
      EXPECT_EQ(runs[0].cache, HistoryKind::kNone);
      EXPECT_EQ(runs[0].generated.usage.nbytes, 0);
      for (std::size_t i = 1; i < 5; ++i) {
        // f32 rows of 2 layers x 2 heads x (K and V of 16), for all tokens but the last.
        EXPECT_EQ(runs[i].generated.usage.nbytes, (prompt + tokens - 1) * 2 * 2 * 32 * 4)
            << name_of(runs[i].cache);
        EXPECT_GE(runs[i].generated.usage.reserved_bytes, runs[i].generated.usage.nbytes);
      }
      expect_batch_by_the_formulas(runs[5], prompt, tokens);
      EXPECT_EQ(runs[3].generated.usage.pages, (prompt + tokens - 1 + 15) / 16);
    }
  }
}

TEST_F(CompareTest, TheFormulaIsTheSumItStandsFor) {
  for (std::int64_t prompt = 1; prompt < 5; ++prompt) {
    for (std::int64_t tokens = 1; tokens < 6; ++tokens) {
      std::int64_t sum = 0;
      for (std::int64_t n = prompt; n <= prompt + tokens - 1; ++n) sum += n;
      EXPECT_EQ(expected_rows_computed(HistoryKind::kNone, prompt, tokens), sum);
      for (const HistoryKind kind :
           {HistoryKind::kDynamic, HistoryKind::kStatic, HistoryKind::kPaged}) {
        EXPECT_EQ(expected_rows_computed(kind, prompt, tokens), prompt + tokens - 1);
      }
    }
  }
}

TEST_F(CompareTest, TellsOfEveryRunAndToken) {
  GenerateOptions options;
  options.max_tokens = 5;
  std::vector<HistoryKind> begun;
  std::int64_t tokens = 0;
  std::int64_t requests = 0;
  CompareCallbacks callbacks;
  callbacks.on_run = [&](HistoryKind kind, std::int64_t turn) {
    EXPECT_EQ(turn, 0);
    begun.push_back(kind);
  };
  callbacks.on_progress = [&](HistoryKind kind, std::int64_t done, std::int64_t total) {
    EXPECT_EQ(kind, begun.back());
    if (kind == HistoryKind::kBatching) {
      EXPECT_EQ(done, ++requests);
      EXPECT_EQ(total, 3);
    } else {
      EXPECT_EQ(done, tokens++ % 5 + 1);
      EXPECT_EQ(total, 5);
    }
  };
  run(4, options, callbacks);
  EXPECT_EQ(begun, (std::vector<HistoryKind>{HistoryKind::kNone, HistoryKind::kDynamic,
                                             HistoryKind::kStatic, HistoryKind::kPaged,
                                             HistoryKind::kFunctional, HistoryKind::kBatching}));
  EXPECT_EQ(tokens, 25);
  EXPECT_EQ(requests, 3);
}

TEST_F(CompareTest, OfSeveralTurnsTheLeastTimesAreKeptAndTheWordsToldOnce) {
  GenerateOptions options;
  options.max_tokens = 5;
  std::vector<std::int64_t> turns;
  std::string text;
  CompareCallbacks callbacks;
  callbacks.on_run = [&](HistoryKind, std::int64_t turn) { turns.push_back(turn); };
  callbacks.on_text = [&](HistoryKind kind, std::string_view piece) {
    if (kind == HistoryKind::kPaged) text += piece;
  };
  const auto runs = run(4, options, callbacks, 3);
  EXPECT_EQ(turns.size(), 18u);
  EXPECT_TRUE(std::is_sorted(turns.begin(), turns.end())) << "turns are not taken whole";
  EXPECT_EQ(turns.back(), 2);
  ASSERT_EQ(runs.size(), 6u);
  EXPECT_EQ(text, runs[3].generated.text);
  for (const CompareRun& one : std::span(runs).first(5)) {
    const GenerateResult& result = one.generated;
    EXPECT_TRUE(one.same_tokens);
    EXPECT_EQ(result.decode_steps, 4);
    EXPECT_EQ(result.counters.rows_computed, expected_rows_computed(one.cache, 4, 5));
    ASSERT_EQ(result.trace.size(), 5u);
    double sum = 0;
    for (const TokenTrace& token : std::span(result.trace).subspan(1)) sum += token.seconds;
    EXPECT_EQ(result.decode_seconds, sum);
    EXPECT_EQ(result.prefill_seconds, result.trace[0].seconds);
  }
  EXPECT_TRUE(runs[5].same_tokens);
  EXPECT_GT(runs[5].generated.decode_seconds, 0);
}

}  // namespace
}  // namespace kvcache::runner
