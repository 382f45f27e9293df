// The prefix cache of an engine: what is found, that nobody sees it in the words, and what room it
// takes.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runner/engine/engine.h"
#include "support/engine_fixture.h"
#include "support/refusing_memory.h"
#include "support/slow.h"

namespace kvcache::runner {
namespace {

using testing::unless_slow;

class EnginePrefixTest : public EngineFixture {
 protected:
  EnginePrefixTest() { options_.attention.reproducible = true; }

  static std::int64_t reused(const Engine& engine, std::int64_t request) {
    return engine.result(request).reused_tokens;
  }
};

TEST_F(EnginePrefixTest, APromptBeginsWithWhatAnotherLeftBehind) {
  Engine engine = make(2);
  add(engine, {40, 8});
  run(engine);
  EXPECT_EQ(reused(engine, 0), 0);
  const std::vector<Wish> wishes = {{40, 8}, {40, 5, 25, 1}, {70, 3}, {1, 4}, {30, 4, 0, 9}};
  const std::vector<std::int64_t> found = {39, 25, 40, 0, 0};
  for (std::size_t i = 0; i < wishes.size(); ++i) {
    const std::int64_t number = add(engine, wishes[i]);
    run(engine);
    EXPECT_EQ(reused(engine, number), found[i]) << i;
    expect_as_alone(engine, number, wishes[i], std::to_string(i));
  }
  EXPECT_EQ(engine.prefix_stats().hits, 3);
}

// With none, some and all but one token found, in every stored form.
TEST_F(EnginePrefixTest, WordsAndLogitsAreThoseOfAPromptComputedWholeToTheBit) {
  ModelConfig config = model_.config();
  config.head_dim = 32;
  model_ = Model::random(config, WeightType::kF32, 5).value();
  for (const char* form :
       {"f32", "bf16", "f16", "int8", "fp8_e4m3", "k=int8,v=lm4", "int4:0,q8_0"}) {
    for (const std::int64_t page_size : {1, 4, 16}) {
      options_.kv_dtype = KvDtype::parse(form).value();
      options_.page_size = page_size;
      options_.layout = page_size == 4 ? Layout::kNHD : Layout::kHND;
      options_.prefill_chunk = page_size == 16 ? 0 : 7;
      alone_.clear();
      Engine engine = make(1);
      const std::vector<Wish> wishes = {{37, 6}, {37, 6, 1, 3}, {37, 6, 20, 5}, {37, 6}};
      const std::vector<std::int64_t> found = {0, 1, 20, 36};
      for (std::size_t i = 0; i < wishes.size(); ++i) {
        const std::int64_t number = add(engine, wishes[i]);
        run(engine);
        EXPECT_EQ(reused(engine, number), found[i]) << form << " " << page_size;
        expect_as_alone(engine, number, wishes[i], std::string(form) + " " + std::to_string(i));
      }
    }
  }
}

TEST_F(EnginePrefixTest, PromptsThatComeTogetherComputeOnceWhatTheyShare) {
  Engine engine = make(4);
  const std::vector<Wish> wishes = {{60, 5}, {60, 5, 50, 1}, {60, 5, 50, 2}, {60, 5, 33, 3}};
  for (const Wish& wish : wishes) add(engine, wish);
  run(engine);
  const std::vector<std::int64_t> found = {0, 48, 48, 33};
  for (std::size_t i = 0; i < wishes.size(); ++i) {
    const auto number = static_cast<std::int64_t>(i);
    EXPECT_EQ(reused(engine, number), found[i]) << i;
    expect_as_alone(engine, number, wishes[i], std::to_string(i));
  }
}

TEST_F(EnginePrefixTest, ChunksOfAPromptUnderWayAreFound) {
  options_.prefill_chunk = 10;
  engine_.prompt_tokens = 64;
  Engine engine = make(3);
  add(engine, {100, 3});
  step(engine);
  add(engine, {60, 3, 34, 1});  // two pages alike
  add(engine, {20, 3, 0, 1});   // none
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(engine.active(), i == 0 ? 1 : 3);
    step(engine);
  }
  EXPECT_EQ(reused(engine, 1), 0) << "the first is at token 40 only after this step";
  step(engine);
  EXPECT_EQ(reused(engine, 1), 32);
  run(engine);
  expect_as_alone(engine, 0, {100, 3}, "0");
  expect_as_alone(engine, 1, {60, 3, 34, 1}, "1");
  expect_as_alone(engine, 2, {20, 3, 0, 1}, "2");
}

TEST_F(EnginePrefixTest, WhoWaitsForAnothersPagesGoesOnWhenThatOneLeaves) {
  options_.prefill_chunk = 10;
  Engine engine = make(2);
  add(engine, {100, 3});
  add(engine, {90, 3});
  for (int i = 0; i < 3; ++i) step(engine);
  EXPECT_TRUE(engine.cancel(0).ok());
  EXPECT_TRUE(engine.check_invariants().ok());
  run(engine);
  EXPECT_EQ(reused(engine, 1), 30);  // the incomplete page of the one that left included
  expect_as_alone(engine, 1, {90, 3}, "the one that waited");
}

TEST_F(EnginePrefixTest, AChatsNextTurnComputesItsOwnTokens) {
  Engine engine = make(1);
  std::vector<std::int32_t> text = prompt_of(50);
  for (std::int64_t turn = 0; turn < 5; ++turn) {
    const std::int64_t number = engine.add(text, 12).value();
    run(engine);
    const auto& reply = engine.result(number).tokens;
    ASSERT_EQ(reply.size(), 12u);
    const auto size = static_cast<std::int64_t>(text.size());
    // All but the newest token of the reply, which was never stored, and what was said since.
    if (turn > 0) {
      EXPECT_EQ(size - reused(engine, number), 1 + 7);
    }
    text.insert(text.end(), reply.begin(), reply.end());
    for (std::int32_t i = 0; i < 7; ++i) text.push_back((11 * i + 3) % 131);
  }
}

TEST_F(EnginePrefixTest, ARequestOfAllThePagesIsServedWhateverIsFoundInPart) {
  engine_.kv_tokens = 64;
  Engine engine = make(1);
  for (const Wish& wish : {Wish{40, 20}, {40, 25, 10, 1}, {60, 5, 37, 2}, {40, 20}}) {
    const std::int64_t number = add(engine, wish);
    run(engine);
    expect_as_alone(engine, number, wish, std::to_string(number));
  }
  EXPECT_EQ(reused(engine, 1), 10);
  EXPECT_EQ(reused(engine, 2), 16);  // all else of the first gave way to the second
}

TEST_F(EnginePrefixTest, CachedPagesGiveWayToThoseThatAreNeeded) {
  engine_.kv_tokens = 256;
  Engine engine = make(2);
  for (std::int32_t i = 0; i < 20; ++i) add(engine, {40, 20, 0, i});
  add(engine, {200, 30});
  run(engine);
  for (std::int64_t i = 0; i < engine.size(); ++i) EXPECT_TRUE(engine.result(i).status.ok());
  EXPECT_GT(engine.prefix_stats().pages_evicted, 0);
}

TEST_F(EnginePrefixTest, WhatIsKeptStaysWithinItsBytes) {
  Engine ample = make(1);
  add(ample, {16, 2});
  run(ample);
  const std::int64_t page_bytes = ample.prefix_stats().bytes / ample.prefix_stats().pages;
  engine_.cached_bytes = 5 * page_bytes + 1;
  Engine engine = make(3);
  for (std::int32_t i = 0; i < 12; ++i) add(engine, {10 + 5 * i, 6, 0, i});
  while (!engine.done()) {
    step(engine);
    EXPECT_LE(engine.prefix_stats().pages_unheld, 5);
  }
  EXPECT_EQ(engine.prefix_stats().pages_unheld, 5);
}

TEST_F(EnginePrefixTest, NoneIsKeptWithoutACache) {
  engine_.cached_bytes = 0;
  Engine engine = make(1);
  for (int i = 0; i < 2; ++i) add(engine, {40, 4});
  run(engine);
  EXPECT_EQ(reused(engine, 1), 0);
  EXPECT_EQ(engine.prefix_stats().pages, 0);
  engine_.cached_bytes = -1;
  EXPECT_EQ(Engine::create(model_, tokenizer_, options_, engine_).status().message(),
            "cached_bytes: found -1, expected at least 0");
}

// Its own pages would do, were they not kept for others.
TEST_F(EnginePrefixTest, WhereMemoryIsRefusedKeptPagesGiveWay) {
  LimitedMemory ample(std::int64_t{1} << 40);
  options_.memory = &ample;
  std::int64_t enough_for_one = 0;
  {
    Engine engine = make(1);
    add(engine, {100, 10});
    run(engine);
    enough_for_one = ample.committed_bytes();
  }
  LimitedMemory memory(enough_for_one);
  options_.memory = &memory;
  {
    Engine engine = make(1);
    for (std::int32_t i = 0; i < 8; ++i) {
      const Wish wish = {100, 10, 0, i};
      const std::int64_t number = add(engine, wish);
      run(engine);
      expect_as_alone(engine, number, wish, std::to_string(i));
    }
    EXPECT_GT(engine.prefix_stats().pages_evicted, 0);
  }
  EXPECT_EQ(memory.committed_bytes(), 0);
}

// However little memory there is: as many are served as where what texts leave goes at once.
TEST_F(EnginePrefixTest, WhatIsKeptCostsNoRequestItsRoom) {
  options_.page_size = 4;
  const auto served = [&](std::int64_t limit, std::int64_t active, std::int64_t cached_bytes) {
    LimitedMemory memory(limit);
    options_.memory = &memory;
    engine_.cached_bytes = cached_bytes;
    Engine engine = make(active);
    for (std::int32_t i = 0; i < 10; ++i) {
      add(engine, {1 + i * 5 % 17, 3, 0, i});
      if (i % 3 == 2) run(engine);
    }
    run(engine);
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < engine.size(); ++i) count += engine.result(i).status.ok() ? 1 : 0;
    return count;
  };
  for (const std::int64_t active : {1, 2, 4}) {
    for (std::int64_t limit = 1200; limit < 40000; limit += limit / unless_slow(20, 6)) {
      EXPECT_GE(served(limit, active, kPrefixBytes), served(limit, active, 1))
          << active << " at a time in " << limit << " bytes";
    }
  }
  options_.memory = nullptr;
}

// What is not a page (sequences, entries of tables, the name of the namespace) has room too, in the
// budget of a store that an engine has all of, and where just as many bytes are to be had.
TEST_F(EnginePrefixTest, RequestsThatHaveAllOfABudgetAreServed) {
  options_.page_size = 4;
  options_.prefill_chunk = 9;
  for (std::uint32_t seed = 0; seed < unless_slow(12u, 4u); ++seed) {
    std::mt19937 random(seed);
    const auto some = [&](std::int64_t most) { return static_cast<std::int64_t>(random()) % most; };
    const std::int64_t budget = 50000 + some(50000);
    LimitedMemory memory(budget);
    HistoryOptions rows;
    rows.dtype = model_.default_kv_dtype();
    rows.page_size = 4;
    rows.memory = &memory;
    options_.prefixes =
        PrefixStore::create(model_.config(), rows, {.budget_bytes = budget}).value();
    const std::int64_t pages = options_.prefixes->num_pages();
    const std::int64_t active = 1 + some(std::min<std::int64_t>(12, pages / 2));
    engine_.kv_tokens = 4 * (pages - active);
    {
      Engine engine = make(active);
      options_.prefixes = nullptr;
      std::vector<Wish> wishes;
      for (std::int32_t i = 0; i < 40; ++i) {
        const std::int64_t stored = 1 + some(i % 8 == 0 ? engine_.kv_tokens : 12);
        const std::int64_t prompt = 1 + some(stored);
        wishes.push_back({prompt, 1 + stored - prompt, some(prompt), i % 3});
        add(engine, wishes.back());
      }
      while (!engine.done() && !HasFatalFailure()) {
        step(engine);
        EXPECT_LE(memory.committed_bytes(), budget);
      }
      for (std::size_t i = 0; i < wishes.size(); ++i) {
        expect_as_alone(engine, static_cast<std::int64_t>(i), wishes[i],
                        "seed " + std::to_string(seed) + " request " + std::to_string(i));
      }
    }
    EXPECT_EQ(memory.committed_bytes(), 0);
    ASSERT_FALSE(HasFailure());
  }
}

TEST_F(EnginePrefixTest, RequestsInAnyOrderHaveTheTokensOfTheirRunAlone) {
  options_.prefill_chunk = 9;
  options_.page_size = 4;
  const std::vector<Wish> wishes = {{1, 9},         {30, 12},       {30, 4, 17, 1}, {30, 4, 17, 1},
                                    {44, 6, 17, 2}, {12, 8, 12, 0}, {29, 3},        {60, 1, 4, 5}};
  for (std::uint32_t seed = 0; seed < unless_slow(60u, 15u); ++seed) {
    engine_.kv_tokens = seed % 2 == 0 ? 0 : 80;
    run_order(wishes, seed);
  }
}

// Requests join, are cancelled and are refused memory at random. KVCACHE_SOAK_SECONDS makes it many
// more orders.
TEST_F(EnginePrefixTest, SoakRefusedMemoryAndCancelledRequestsLoseNothing) {
  const bool soak = std::getenv("KVCACHE_SOAK_SECONDS") != nullptr;
  options_.prefill_chunk = 9;
  options_.page_size = 4;
  for (std::uint32_t seed = 0; seed < (soak ? 300u : unless_slow(20u, 6u)); ++seed) {
    std::mt19937 random(seed);
    testing::RefusingMemory memory;
    options_.memory = &memory;
    engine_.prompt_tokens = 1 + static_cast<std::int64_t>(random() % 30);
    engine_.kv_tokens = random() % 2 == 0 ? 0 : 60;
    {
      Engine engine = make(1 + static_cast<std::int64_t>(random() % 5));
      std::vector<Wish> wishes;
      while (wishes.size() < 16 || !engine.done()) {
        if (wishes.size() < 16 && random() % 3 == 0) {
          const auto prompt = 1 + static_cast<std::int64_t>(random() % 25);
          wishes.push_back({prompt, 1 + static_cast<std::int64_t>(random() % 12),
                            static_cast<std::int64_t>(random() % 3) * 8,
                            static_cast<std::int32_t>(random() % 3)});
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
          EXPECT_EQ(result.last_logits, alone(wishes[i]).last_logits);
        }
      }
    }
    EXPECT_EQ(memory.committed(), 0);
  }
}

}  // namespace
}  // namespace kvcache::runner
