#include "runner/generate/running_batch.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "runner/generate/generate.h"
#include "support/golden_checkpoint.h"
#include "support/model_runs.h"

namespace kvcache::runner {
namespace {

using testing::some_tokens;

// A prompt, by its length, and how many tokens are wanted after it.
struct Wish {
  std::int64_t prompt = 1;
  std::int64_t tokens = 1;
};

class RunningBatchTest : public ::testing::Test {
 protected:
  RunningBatchTest() {
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

  RunningBatch make(std::int64_t slots) {
    auto batch = RunningBatch::create(model_, tokenizer_, options_, slots);
    EXPECT_TRUE(batch.ok()) << batch.status().to_string();
    return std::move(batch).value();
  }

  std::vector<std::int32_t> prompt_of(std::int64_t length) const {
    return some_tokens(length, model_.config().vocab_size);
  }

  // The run of a request alone; each is computed once.
  const GenerateResult& alone(const Wish& wish) {
    auto& result = alone_[{wish.prompt, wish.tokens}];
    if (result.tokens.empty()) {
      GenerateOptions options = options_;
      options.max_tokens = wish.tokens;
      auto made = generate(model_, tokenizer_, prompt_of(wish.prompt), options);
      EXPECT_TRUE(made.ok()) << made.status().to_string();
      if (made.ok()) result = std::move(made).value();
    }
    return result;
  }

  std::int64_t add(RunningBatch& batch, const Wish& wish) {
    const auto number = batch.add(prompt_of(wish.prompt), wish.tokens);
    EXPECT_TRUE(number.ok()) << number.status().to_string();
    return number.ok() ? *number : -1;
  }

  void expect_as_alone(const RunningBatch& batch, std::int64_t number, const Wish& wish,
                       const std::string& name) {
    const GenerateResult& result = batch.result(number);
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
    RunningBatch batch = make(1 + static_cast<std::int64_t>(random() % 4));
    std::size_t added = 0;
    int rounds = 0;
    while (added < wishes.size() || !batch.done()) {
      while (added < wishes.size() && random() % 2 == 0) add(batch, wishes[added++]);
      const Status status = batch.step();
      ASSERT_TRUE(status.ok()) << status.to_string();
      ASSERT_LT(++rounds, 10000);
    }
    std::int64_t computed = 0;
    std::int64_t read = 0;
    for (std::size_t i = 0; i < wishes.size(); ++i) {
      expect_as_alone(batch, static_cast<std::int64_t>(i), wishes[i],
                      name + " request " + std::to_string(i));
      computed += alone(wishes[i]).counters.rows_computed;
      read += alone(wishes[i]).counters.rows_read;
    }
    // Neither idle slots nor the other requests cost a row.
    EXPECT_EQ(batch.counters().rows_computed, computed) << name;
    EXPECT_EQ(batch.counters().rows_read, read) << name;
    EXPECT_EQ(batch.copied_bytes(), 0) << name;
  }

  Model model_ = random_model();
  Tokenizer tokenizer_ = load_tokenizer();
  GenerateOptions options_;
  std::map<std::pair<std::int64_t, std::int64_t>, GenerateResult> alone_;
};

TEST_F(RunningBatchTest, ARequestHasTheTokensOfItsRunAloneInAHundredOrders) {
  options_.prefill_chunk = 5;
  const std::vector<Wish> wishes = {{1, 9}, {3, 1}, {17, 4}, {30, 12}, {2, 6}, {8, 2}, {1, 1}};
  for (std::uint32_t seed = 0; seed < 100; ++seed) run_order(wishes, seed);
}

TEST_F(RunningBatchTest, ARequestOfOneTokenAndOneOfThreeThousandRunTogether) {
  options_.prefill_chunk = 512;
  for (std::uint32_t seed = 0; seed < 2; ++seed) {
    run_order({{1, 12}, {3000, 5}, {1, 3}, {20, 9}}, seed);
  }
}

// KVCACHE_SOAK_SECONDS makes it a hundred orders.
TEST_F(RunningBatchTest, SoakLongAndShortRequestsInRandomOrders) {
  const bool soak = std::getenv("KVCACHE_SOAK_SECONDS") != nullptr;
  options_.prefill_chunk = soak ? 700 : 90;
  const std::int64_t longest = soak ? 3000 : 300;
  for (std::uint32_t seed = 1000; seed < (soak ? 1100u : 1004u); ++seed) {
    run_order({{1, 20}, {longest, 8}, {1, 1}, {longest / 3, 15}, {70, 3}}, seed);
  }
}

TEST_F(RunningBatchTest, SamplingIsThatOfTheRunAlone) {
  options_.sampler.temperature = 1.2;
  options_.sampler.repetition_penalty = 1.1;
  options_.sampler.seed = 5;
  run_order({{4, 20}, {9, 15}, {2, 20}, {31, 8}}, 3);
}

TEST_F(RunningBatchTest, SixteenBitRowsAndSequenceFirstRunAlike) {
  options_.layout = Layout::kNHD;
  options_.kv_dtype = DType::kBF16;
  run_order({{4, 20}, {9, 15}, {2, 20}, {100, 8}}, 4);
}

TEST_F(RunningBatchTest, IdleSlotsCostNoAttentionWork) {
  for (const std::int64_t slots : {1, 2, 64}) {
    RunningBatch batch = make(slots);
    add(batch, {10, 6});
    while (!batch.done()) ASSERT_TRUE(batch.step().ok());
    EXPECT_EQ(batch.counters().rows_read, 10 + 11 + 12 + 13 + 14 + 15) << slots;
    EXPECT_EQ(batch.counters().rows_computed, 15) << slots;
  }
}

TEST_F(RunningBatchTest, OthersDecodeBetweenTheChunksOfALongPrompt) {
  options_.prefill_chunk = 10;
  RunningBatch batch = make(2);
  add(batch, {5, 20});
  ASSERT_TRUE(batch.step().ok());  // a chunk that is the whole prompt, then a step
  EXPECT_EQ(batch.active(), 1);
  EXPECT_EQ(batch.decode_steps(), 1);
  add(batch, {60, 2});
  for (std::int64_t round = 1; round <= 5; ++round) {
    ASSERT_TRUE(batch.step().ok());
    EXPECT_EQ(batch.active(), 1) << round;
    EXPECT_EQ(batch.decode_steps(), 1 + round);
  }
  ASSERT_TRUE(batch.step().ok());  // its last chunk, its first token, and its second with the other
  EXPECT_EQ(batch.active(), 1);
  EXPECT_EQ(batch.result(1).tokens.size(), 2u);
  EXPECT_TRUE(batch.result(0).tokens.empty()) << "told before it ended";
}

TEST_F(RunningBatchTest, ASlotIsTakenAgainWhenItsRequestLeaves) {
  RunningBatch batch = make(1);
  for (int i = 0; i < 3; ++i) add(batch, {4, 3});
  std::vector<std::int64_t> ended;
  BatchCallbacks callbacks;
  callbacks.on_end = [&](std::int64_t request, const GenerateResult& result) {
    EXPECT_EQ(result.tokens.size(), 3u);
    EXPECT_GT(result.usage.nbytes, 0);
    ended.push_back(request);
  };
  while (!batch.done()) {
    ASSERT_TRUE(batch.step(callbacks).ok());
    EXPECT_LE(batch.active(), 1);
  }
  EXPECT_EQ(ended, (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_EQ(batch.active(), 0);
}

TEST_F(RunningBatchTest, TextIsStreamedUnderItsRequest) {
  RunningBatch batch = make(3);
  for (const std::int64_t length : {3, 8, 20}) add(batch, {length, 15});
  std::vector<std::string> streamed(3);
  BatchCallbacks callbacks;
  callbacks.on_text = [&](std::int64_t request, std::string_view text) {
    EXPECT_FALSE(text.empty());
    streamed[static_cast<std::size_t>(request)] += text;
  };
  while (!batch.done()) ASSERT_TRUE(batch.step(callbacks).ok());
  for (std::int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(streamed[static_cast<std::size_t>(i)], batch.result(i).text);
  }
}

TEST_F(RunningBatchTest, BadInputIsNamedAndQueuesNothing) {
  for (const std::int64_t slots : {0, -1, 65537}) {
    EXPECT_EQ(RunningBatch::create(model_, tokenizer_, options_, slots).status().code(),
              StatusCode::kInvalidArgument);
  }
  options_.num_beams = 2;
  EXPECT_EQ(RunningBatch::create(model_, tokenizer_, options_, 2).status().code(),
            StatusCode::kInvalidArgument);
  options_.num_beams = 1;
  RunningBatch batch = make(2);
  EXPECT_EQ(batch.add({}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(batch.add(prompt_of(4097)).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(batch.add(prompt_of(4), 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(batch.done());
  EXPECT_EQ(batch.size(), 0);
  EXPECT_TRUE(batch.step().ok());
}

TEST_F(RunningBatchTest, MemoryThatRunsOutIsAnError) {
  LimitedMemory little(4096);
  options_.memory = &little;
  RunningBatch batch = make(2);
  add(batch, {9, 3});
  EXPECT_EQ(batch.step().code(), StatusCode::kOutOfMemory);
}

}  // namespace
}  // namespace kvcache::runner
