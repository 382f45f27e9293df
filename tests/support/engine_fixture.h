// An engine over a small random model, beside the run of each of its requests alone.
#ifndef KVCACHE_TESTS_SUPPORT_ENGINE_FIXTURE_H_
#define KVCACHE_TESTS_SUPPORT_ENGINE_FIXTURE_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "runner/engine/engine.h"
#include "runner/generate/generate.h"
#include "support/golden_checkpoint.h"
#include "support/model_runs.h"

namespace kvcache::runner {

using testing::some_tokens;

// A prompt, by its length, and how many tokens are wanted after it. Prompts begin alike but for
// what they have of their own: all from one token on, another text for each number.
struct Wish {
  std::int64_t prompt = 1;
  std::int64_t tokens = 1;
  std::int64_t own_from = 0;
  std::int32_t own = 0;

  friend auto operator<=>(const Wish&, const Wish&) = default;
};

class EngineFixture : public ::testing::Test {
 protected:
  EngineFixture() {
    options_.context.executor = &serial_executor();
    options_.prefill_chunk = 64;
    options_.stop_at_eos = false;
  }

  static Model random_model() {
    ModelConfig config = testing::small_config();
    config.num_layers = 2;
    config.max_position_embeddings = 4096;
    auto model = Model::random(config, WeightType::kF32, 7);
    EXPECT_TRUE(model.ok()) << model.status().to_string();
    return std::move(model).value();
  }
  static Tokenizer load_tokenizer() {
    auto tokenizer = Tokenizer::load(testing::golden_directory("qwen2_tied") + "/tokenizer.json");
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
    return std::move(tokenizer).value();
  }

  Engine make(std::int64_t max_active) {
    engine_.max_active = max_active;
    auto engine = Engine::create(model_, tokenizer_, options_, engine_);
    EXPECT_TRUE(engine.ok()) << engine.status().to_string();
    return std::move(engine).value();
  }

  std::vector<std::int32_t> prompt_of(std::int64_t length) const {
    return some_tokens(length, model_.config().vocab_size);
  }
  std::vector<std::int32_t> prompt_of(const Wish& wish) const {
    std::vector<std::int32_t> prompt = prompt_of(wish.prompt);
    const auto vocab = static_cast<std::int32_t>(model_.config().vocab_size);
    for (auto t = static_cast<std::size_t>(wish.own_from); t < prompt.size(); ++t) {
      prompt[t] = (prompt[t] + wish.own) % vocab;
    }
    return prompt;
  }

  // The run of a request alone; each is computed once.
  const GenerateResult& alone(const Wish& wish) {
    auto& result = alone_[wish];
    if (result.tokens.empty()) {
      GenerateOptions options = options_;
      options.max_tokens = wish.tokens;
      options.memory = nullptr;
      if (options.kv_dtype.needs_pages()) options.cache = HistoryKind::kPaged;
      auto made = generate(model_, tokenizer_, prompt_of(wish), options);
      EXPECT_TRUE(made.ok()) << made.status().to_string();
      if (made.ok()) result = std::move(made).value();
    }
    return result;
  }

  std::int64_t add(Engine& engine, const Wish& wish) {
    const auto number = engine.add(prompt_of(wish), wish.tokens);
    EXPECT_TRUE(number.ok()) << number.status().to_string();
    return number.ok() ? *number : -1;
  }

  // A step, after which everything is where it belongs.
  static void step(Engine& engine, const EngineCallbacks& callbacks = {}) {
    const Status status = engine.step(callbacks);
    ASSERT_TRUE(status.ok()) << status.to_string();
    const Status books = engine.check_invariants();
    ASSERT_TRUE(books.ok()) << books.to_string();
  }
  static void run(Engine& engine, const EngineCallbacks& callbacks = {}) {
    while (!engine.done() && !HasFatalFailure()) step(engine, callbacks);
    EXPECT_EQ(engine.active(), 0);
  }

  void expect_as_alone(const Engine& engine, std::int64_t number, const Wish& wish,
                       const std::string& name) {
    const GenerateResult& result = engine.result(number);
    EXPECT_TRUE(result.status.ok()) << name << result.status.to_string();
    const GenerateResult& expected = alone(wish);
    EXPECT_EQ(result.tokens, expected.tokens) << name;
    EXPECT_EQ(result.text, expected.text) << name;
    EXPECT_EQ(result.last_logits, expected.last_logits) << name << ": the others reach its numbers";
    EXPECT_EQ(result.stop_reason, expected.stop_reason) << name;
    EXPECT_EQ(result.prompt_tokens, expected.prompt_tokens) << name;
  }

  // Requests in an order of their own, joining after random numbers of rounds.
  void run_order(std::vector<Wish> wishes, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::shuffle(wishes.begin(), wishes.end(), random);
    const std::string name = "seed " + std::to_string(seed);
    Engine engine = make(1 + static_cast<std::int64_t>(random() % 4));
    std::size_t added = 0;
    int steps = 0;
    while (added < wishes.size() || !engine.done()) {
      while (added < wishes.size() && random() % 2 == 0) add(engine, wishes[added++]);
      step(engine);
      ASSERT_FALSE(HasFatalFailure());
      ASSERT_LT(++steps, 10000);
    }
    std::int64_t computed = 0;
    std::int64_t read = 0;
    for (std::size_t i = 0; i < wishes.size(); ++i) {
      expect_as_alone(engine, static_cast<std::int64_t>(i), wishes[i],
                      name + " request " + std::to_string(i));
      computed += alone(wishes[i]).counters.rows_computed;
      read += alone(wishes[i]).counters.rows_read;
      computed -= engine.result(static_cast<std::int64_t>(i)).reused_tokens;
    }
    // Nothing but a request's own tokens costs a row.
    EXPECT_EQ(engine.counters().rows_computed, computed) << name;
    if (engine_.cached_bytes == 0) {
      EXPECT_EQ(engine.counters().rows_read, read) << name;
    }
  }

  Model model_ = random_model();
  Tokenizer tokenizer_ = load_tokenizer();
  GenerateOptions options_;
  EngineOptions engine_;
  std::map<Wish, GenerateResult> alone_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_TESTS_SUPPORT_ENGINE_FIXTURE_H_
