#include "runner/engine/engine.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/engine_fixture.h"
#include "support/refusing_memory.h"
#include "support/slow.h"

namespace kvcache::runner {
namespace {

using testing::unless_slow;

// Without a prefix cache: what a request computes is its own.
class EngineTest : public EngineFixture {
 protected:
  EngineTest() { engine_.cached_bytes = 0; }
};

TEST_F(EngineTest, ARequestHasTheTokensOfItsRunAloneInAHundredOrders) {
  options_.prefill_chunk = 5;
  const std::vector<Wish> wishes = {{1, 9}, {3, 1}, {17, 4}, {30, 12}, {2, 6}, {8, 2}, {1, 1}};
  for (std::uint32_t seed = 0; seed < unless_slow(100u, 25u); ++seed) run_order(wishes, seed);
}

TEST_F(EngineTest, ARequestOfOneTokenAndOneOfThreeThousandRunTogether) {
  options_.prefill_chunk = 512;
  for (std::uint32_t seed = 0; seed < unless_slow(2u, 1u); ++seed) {
    run_order({{1, 12}, {unless_slow<std::int64_t>(3000, 1100), 5}, {1, 3}, {20, 9}}, seed);
  }
}

// KVCACHE_SOAK_SECONDS makes it a hundred orders.
TEST_F(EngineTest, SoakLongAndShortRequestsInRandomOrders) {
  const bool soak = std::getenv("KVCACHE_SOAK_SECONDS") != nullptr;
  options_.prefill_chunk = soak ? 700 : 90;
  const std::int64_t longest = soak ? 3000 : 300;
  for (std::uint32_t seed = 1000; seed < (soak ? 1100u : 1004u); ++seed) {
    run_order({{1, 20}, {longest, 8}, {1, 1}, {longest / 3, 15}, {70, 3}}, seed);
  }
}

TEST_F(EngineTest, SamplingIsThatOfTheRunAlone) {
  options_.sampler.temperature = 1.2;
  options_.sampler.repetition_penalty = 1.1;
  options_.sampler.seed = 5;
  run_order({{4, 20}, {9, 15}, {2, 20}, {31, 8}}, 3);
}

TEST_F(EngineTest, SixteenBitRowsAndSequenceFirstRunAlike) {
  options_.layout = Layout::kNHD;
  options_.kv_dtype = DType::kBF16;
  run_order({{4, 20}, {9, 15}, {2, 20}, {100, 8}}, 4);
}

TEST_F(EngineTest, SixtyFourPromptsHaveTheWordsOfTheirRunAlone) {
  std::vector<Wish> wishes;
  for (std::int64_t i = 0; i < 64; ++i) wishes.push_back({1 + i % 23, 3 + i % 7});
  for (const std::int64_t active : {8, 64}) {
    Engine engine = make(active);
    for (const Wish& wish : wishes) add(engine, wish);
    run(engine);
    for (std::int64_t i = 0; i < 64; ++i) {
      expect_as_alone(engine, i, wishes[static_cast<std::size_t>(i)], std::to_string(i));
    }
  }
}

TEST_F(EngineTest, RoomThatNobodyUsesCostsNoAttentionWork) {
  for (const std::int64_t active : {1, 2, 64}) {
    Engine engine = make(active);
    add(engine, {10, 6});
    run(engine);
    EXPECT_EQ(engine.counters().rows_read, 10 + 11 + 12 + 13 + 14 + 15) << active;
    EXPECT_EQ(engine.counters().rows_computed, 15) << active;
  }
}

TEST_F(EngineTest, OthersDecodeBesideTheChunksOfALongPrompt) {
  options_.prefill_chunk = 10;
  Engine engine = make(2);
  add(engine, {5, 20});
  step(engine);  // the whole prompt, and its first token
  EXPECT_EQ(engine.decode_steps(), 0);
  add(engine, {60, 2});
  for (std::int64_t round = 1; round <= 6; ++round) {
    step(engine);
    EXPECT_EQ(engine.active(), 2) << round;
    EXPECT_EQ(engine.decode_steps(), round);
  }
  step(engine);  // its second token
  EXPECT_EQ(engine.active(), 1);
  EXPECT_EQ(engine.result(1).tokens.size(), 2u);
  EXPECT_TRUE(engine.result(0).tokens.empty()) << "told before it ended";
}

TEST_F(EngineTest, ShortPromptsArePrefilledInOneStep) {
  for (const std::int64_t tokens : {512, 25, 1}) {
    engine_.prompt_tokens = tokens;
    Engine engine = make(4);
    for (int i = 0; i < 4; ++i) add(engine, {10, 1});
    run(engine);
    EXPECT_EQ(engine.steps(), tokens == 512 ? 1 : tokens == 25 ? 2 : 4);
  }
}

TEST_F(EngineTest, RoomIsTakenAgainWhenItsRequestLeaves) {
  Engine engine = make(1);
  for (int i = 0; i < 3; ++i) add(engine, {4, 3});
  std::vector<std::int64_t> ended;
  EngineCallbacks callbacks;
  callbacks.on_end = [&](std::int64_t request, const GenerateResult& result) {
    EXPECT_EQ(result.tokens.size(), 3u);
    EXPECT_GT(result.usage.nbytes, 0);
    ended.push_back(request);
  };
  while (!engine.done()) {
    step(engine, callbacks);
    EXPECT_LE(engine.active(), 1);
  }
  EXPECT_EQ(ended, (std::vector<std::int64_t>{0, 1, 2}));
}

TEST_F(EngineTest, WhoMightNotFindRoomWaitsUntilItIsThere) {
  options_.page_size = 16;
  engine_.kv_tokens = 64;
  Engine engine = make(8);
  const std::vector<Wish> wishes = {{30, 10}, {20, 20}, {3, 5}, {40, 20}};
  EXPECT_EQ(engine.add(prompt_of(60), 10).status().code(), StatusCode::kNeverFits);
  for (const Wish& wish : wishes) add(engine, wish);
  step(engine);
  EXPECT_EQ(engine.active(), 1);  // 3 pages of 4, and the next one needs 3
  run(engine);
  for (std::size_t i = 0; i < wishes.size(); ++i) {
    expect_as_alone(engine, static_cast<std::int64_t>(i), wishes[i], std::to_string(i));
  }
}

TEST_F(EngineTest, WhoIsRefusedMemoryEndsAloneAndTheOthersGoOn) {
  constexpr std::int64_t kCount = 64;
  engine_.kv_tokens = 16 * kCount;
  const Wish wish = {3, 9};  // a page each
  LimitedMemory ample(std::int64_t{1} << 40);
  options_.memory = &ample;
  std::int64_t enough_for_the_others = 0;
  {
    Engine engine = make(kCount);
    for (std::int64_t i = 0; i + 1 < kCount; ++i) add(engine, wish);
    step(engine);
    enough_for_the_others = ample.committed_bytes();
  }
  LimitedMemory memory(enough_for_the_others);
  options_.memory = &memory;
  {
    Engine engine = make(kCount);
    for (std::int64_t i = 0; i < kCount; ++i) add(engine, wish);
    run(engine);
    for (std::int64_t i = 0; i + 1 < kCount; ++i) {
      expect_as_alone(engine, i, wish, std::to_string(i));
    }
    const GenerateResult& refused = engine.result(kCount - 1);
    EXPECT_EQ(refused.status.code(), StatusCode::kOutOfMemory);
    EXPECT_EQ(refused.stop_reason, StopReason::kError);
    EXPECT_TRUE(refused.tokens.empty());
    add(engine, wish);  // what the others held is there again
    run(engine);
    expect_as_alone(engine, kCount, wish, "later");
  }
  EXPECT_EQ(memory.committed_bytes(), 0);
}

TEST_F(EngineTest, WhoIsRefusedMemoryHalfWayKeepsTheTokensItHas) {
  engine_.kv_tokens = 1024;
  const std::vector<Wish> wishes = {{3, 12}, {12, 20}, {4, 12}};
  LimitedMemory ample(std::int64_t{1} << 40);
  options_.memory = &ample;
  std::int64_t a_page_each = 0;
  {
    Engine engine = make(3);
    for (const Wish& wish : wishes) add(engine, wish);
    step(engine);
    a_page_each = ample.committed_bytes();
  }
  LimitedMemory memory(a_page_each);
  options_.memory = &memory;
  Engine engine = make(3);
  for (const Wish& wish : wishes) add(engine, wish);
  run(engine);
  expect_as_alone(engine, 0, wishes[0], "0");
  expect_as_alone(engine, 2, wishes[2], "2");
  const GenerateResult& refused = engine.result(1);
  EXPECT_EQ(refused.status.code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(refused.tokens.size(), 5u);  // 16 stored tokens of prompt and text, and the newest
  const auto& whole = alone(wishes[1]).tokens;
  EXPECT_TRUE(std::equal(refused.tokens.begin(), refused.tokens.end(), whole.begin()));
}

TEST_F(EngineTest, WhatFailsForAllEndsAllAndLeavesNothingBehind) {
  options_.attention.backend = "no such backend";
  Engine engine = make(3);
  for (int i = 0; i < 5; ++i) add(engine, {4, 3});
  run(engine);
  for (std::int64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(engine.result(i).status.code(), StatusCode::kUnavailable);
  }
}

TEST_F(EngineTest, ARequestCanBeCancelledWhereverItIs) {
  options_.prefill_chunk = 4;
  Engine engine = make(2);
  add(engine, {3, 30});
  add(engine, {20, 5});
  add(engine, {5, 4});
  for (int i = 0; i < 3; ++i) step(engine);
  EXPECT_TRUE(engine.cancel(1).ok());  // half prefilled
  EXPECT_TRUE(engine.check_invariants().ok());
  EXPECT_EQ(engine.active(), 1);
  add(engine, {7, 3});
  EXPECT_TRUE(engine.cancel(3).ok());  // waiting
  EXPECT_TRUE(engine.cancel(0).ok());  // decoding
  EXPECT_EQ(engine.cancel(0).code(), StatusCode::kNotFound);
  EXPECT_EQ(engine.cancel(4).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(engine.cancel(-1).code(), StatusCode::kOutOfRange);
  EXPECT_TRUE(engine.check_invariants().ok());
  run(engine);
  expect_as_alone(engine, 2, {5, 4}, "the one that was left");
  for (const std::int64_t number : {0, 1, 3}) {
    const GenerateResult& result = engine.result(number);
    EXPECT_EQ(result.stop_reason, StopReason::kCancelled);
    EXPECT_TRUE(result.status.ok());
  }
  const auto& whole = alone({3, 30}).tokens;
  const auto& some = engine.result(0).tokens;
  EXPECT_EQ(some.size(), 3u);
  EXPECT_TRUE(std::equal(some.begin(), some.end(), whole.begin()));
}

TEST_F(EngineTest, CallbacksMayAddAndCancel) {
  Engine engine = make(2);
  for (int i = 0; i < 3; ++i) add(engine, {4, 10});
  EngineCallbacks callbacks;
  std::int64_t ended = 0;
  callbacks.on_text = [&](std::int64_t, std::string_view) {
    if (engine.result(1).stop_reason != StopReason::kCancelled) (void)engine.cancel(1, callbacks);
  };
  callbacks.on_end = [&](std::int64_t request, const GenerateResult&) {
    ++ended;
    if (request == 1) add(engine, {6, 2});
    if (request == 0) (void)engine.cancel(2, callbacks);
  };
  run(engine, callbacks);
  EXPECT_EQ(ended, 4);
  expect_as_alone(engine, 0, {4, 10}, "0");
  expect_as_alone(engine, 3, {6, 2}, "3");
}

TEST_F(EngineTest, TextIsStreamedUnderItsRequest) {
  Engine engine = make(3);
  for (const std::int64_t length : {3, 8, 20}) add(engine, {length, 15});
  std::vector<std::string> streamed(3);
  EngineCallbacks callbacks;
  callbacks.on_text = [&](std::int64_t request, std::string_view text) {
    EXPECT_FALSE(text.empty());
    streamed[static_cast<std::size_t>(request)] += text;
  };
  run(engine, callbacks);
  for (std::int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(streamed[static_cast<std::size_t>(i)], engine.result(i).text);
  }
}

TEST_F(EngineTest, BadInputIsNamedAndQueuesNothing) {
  const auto refused = [&](const EngineOptions& engine) {
    return Engine::create(model_, tokenizer_, options_, engine).status().code();
  };
  for (const std::int64_t active : {0, -1, 65537}) {
    EXPECT_EQ(refused({active}), StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(refused({8, -1}), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused({8, 0, 0}), StatusCode::kInvalidArgument);
  options_.num_beams = 2;
  EXPECT_EQ(refused({}), StatusCode::kInvalidArgument);
  options_.num_beams = 1;
  options_.page_size = 0;
  EXPECT_EQ(refused({}), StatusCode::kInvalidArgument);
  options_.page_size = 16;
  Engine engine = make(2);
  EXPECT_EQ(engine.add({}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(engine.add(prompt_of(4097)).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(engine.add(prompt_of(4), 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(engine.done());
  EXPECT_EQ(engine.size(), 0);
  step(engine);
}

// Requests join, are cancelled and are refused memory at random; those that end well have the
// tokens of their run alone. KVCACHE_SOAK_SECONDS makes it many more orders.
TEST_F(EngineTest, SoakRefusedMemoryAndCancelledRequestsReachNobodyElse) {
  const bool soak = std::getenv("KVCACHE_SOAK_SECONDS") != nullptr;
  options_.prefill_chunk = 9;
  options_.page_size = 4;
  for (std::uint32_t seed = 0; seed < (soak ? 300u : 12u); ++seed) {
    std::mt19937 random(seed);
    testing::RefusingMemory memory;
    options_.memory = &memory;
    engine_.prompt_tokens = 1 + static_cast<std::int64_t>(random() % 30);
    {
      Engine engine = make(1 + static_cast<std::int64_t>(random() % 5));
      std::vector<Wish> wishes;
      while (wishes.size() < 9 || !engine.done()) {
        if (wishes.size() < 9 && random() % 3 == 0) {
          wishes.push_back({1 + static_cast<std::int64_t>(random() % 25),
                            1 + static_cast<std::int64_t>(random() % 12)});
          add(engine, wishes.back());
        }
        if (engine.size() > 0 && random() % 16 == 0) {
          (void)engine.cancel(static_cast<std::int64_t>(random()) % engine.size());
        }
        memory.refuse(random() % 8 == 0 ? 1 + random() % 3 : 0, random() % 2 == 0);
        step(engine);
        ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
      }
      options_.memory = nullptr;
      for (std::size_t i = 0; i < wishes.size(); ++i) {
        const GenerateResult& result = engine.result(static_cast<std::int64_t>(i));
        const auto& whole = alone(wishes[i]).tokens;
        ASSERT_LE(result.tokens.size(), whole.size());
        EXPECT_TRUE(std::equal(result.tokens.begin(), result.tokens.end(), whole.begin()));
        EXPECT_EQ(result.status.ok(), result.stop_reason != StopReason::kError);
        if (result.stop_reason == StopReason::kMaxTokens) {
          EXPECT_EQ(result.tokens, whole) << "seed " << seed << " request " << i;
        }
      }
    }
    EXPECT_EQ(memory.committed(), 0);
  }
}

}  // namespace
}  // namespace kvcache::runner
