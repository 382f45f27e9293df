// Texts over a PrefixStore: found to the token, the same to the bit, in a budget, in several
// threads.
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "runner/generate/generate.h"
#include "runner/generate/generation.h"
#include "support/golden_checkpoint.h"
#include "support/model_runs.h"
#include "support/refusing_memory.h"
#include "support/slow.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

using testing::unless_slow;

using Tokens = std::vector<std::int32_t>;

class GenerationPrefixTest : public ::testing::Test {
 protected:
  GenerationPrefixTest() {
    options_.max_tokens = 6;
    options_.context.executor = &serial_executor();
    options_.stop_at_eos = false;
    options_.attention.reproducible = true;
  }

  static Tokenizer load_tokenizer() {
    // Ids are what is compared, and any tokenizer has a text for each.
    return Tokenizer::load(testing::golden_directory("qwen2_tied") + "/tokenizer.json").value();
  }
  void take_model(const std::string& name) {
    model_.emplace(Model::load(testing::golden_directory(name)).value());
  }

  std::shared_ptr<PrefixStore> store(std::int64_t num_pages, std::int64_t budget_bytes = 0,
                                     MemoryResource* memory = nullptr) const {
    HistoryOptions rows;
    rows.rows = options_.kv_dtype;
    rows.dtype = model_->default_kv_dtype();
    rows.page_size = 4;
    rows.memory = memory;
    auto made = PrefixStore::create(model_->config(), rows,
                                    {.num_pages = num_pages, .budget_bytes = budget_bytes});
    EXPECT_TRUE(made.ok()) << made.status().to_string();
    return std::move(made).value();
  }

  Tokens prompt_of(std::int64_t length) const {
    return testing::some_tokens(length, model_->config().vocab_size);
  }
  // Alike up to token `from`.
  Tokens prompt_of(std::int64_t length, std::size_t from) const {
    Tokens prompt = prompt_of(length);
    for (std::size_t t = from; t < prompt.size(); ++t) {
      prompt[t] = (prompt[t] + 1) % static_cast<std::int32_t>(model_->config().vocab_size);
    }
    return prompt;
  }

  GenerateResult run(const Tokens& prompt, std::shared_ptr<PrefixStore> prefixes) const {
    GenerateOptions options = options_;
    options.prefixes = std::move(prefixes);
    if (options.kv_dtype.needs_pages()) options.cache = HistoryKind::kPaged;
    auto result = generate(*model_, tokenizer_, prompt, options);
    EXPECT_TRUE(result.ok()) << result.status().to_string();
    return result.ok() ? std::move(result).value() : GenerateResult();
  }

  static void check(const PrefixStore& store) {
    const Status books = store.check_invariants();
    EXPECT_TRUE(books.ok()) << books.to_string();
  }

  std::optional<Model> model_;
  Tokenizer tokenizer_ = load_tokenizer();
  GenerateOptions options_;
};

TEST_F(GenerationPrefixTest, EveryFamilyHasTheLogitsOfAPromptComputedWholeToTheBit) {
  for (const std::string& family : testing::golden_names()) {
    take_model(family);
    for (const std::int64_t chunk : {0, 5}) {
      options_.prefill_chunk = chunk;
      const auto shared = store(256);
      const std::vector<Tokens> prompts = {prompt_of(30), prompt_of(30, 1), prompt_of(30, 14),
                                           prompt_of(30)};
      const std::vector<std::int64_t> found = {0, 1, 14, 29};
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        const GenerateResult whole = run(prompts[i], nullptr);
        const GenerateResult result = run(prompts[i], shared);
        EXPECT_EQ(result.reused_tokens, found[i]) << family << " " << i;
        EXPECT_EQ(result.tokens, whole.tokens) << family << " " << i;
        EXPECT_EQ(result.last_logits, whole.last_logits) << family << " " << i;
        EXPECT_EQ(result.counters.rows_computed, whole.counters.rows_computed - found[i]);
        EXPECT_EQ(result.usage.nbytes, whole.usage.nbytes);
        check(*shared);
      }
    }
  }
}

TEST_F(GenerationPrefixTest, TextsThatGrowInTurnShareWhatTheyHaveAlike) {
  take_model("qwen2_tied");
  const auto shared = store(256);
  GenerateOptions options = options_;
  options.prefixes = shared;
  options.prefill_chunk = 8;
  const std::vector<Tokens> prompts = {prompt_of(40), prompt_of(40, 20), prompt_of(33)};
  std::vector<std::unique_ptr<Generation>> texts;
  for (const Tokens& prompt : prompts) {
    texts.push_back(Generation::create(*model_, tokenizer_, prompt, options).value());
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(texts.back()->step().ok());
  }
  bool growing = true;
  while (growing) {
    growing = false;
    for (const auto& text : texts) {
      if (text->done()) continue;
      ASSERT_TRUE(text->step().ok());
      growing = true;
      check(*shared);
    }
  }
  EXPECT_EQ(texts[1]->result().reused_tokens, 20);  // of one that was at token 24
  EXPECT_EQ(texts[2]->result().reused_tokens, 24);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(texts[i]->result().last_logits, run(prompts[i], nullptr).last_logits) << i;
  }
}

TEST_F(GenerationPrefixTest, ATextThatItHasNoRoomForGoesPastIt) {
  take_model("qwen2_tied");
  const auto shared = store(10);
  GenerateOptions options = options_;
  options.prefixes = shared;
  const auto holder = Generation::create(*model_, tokenizer_, prompt_of(12), options).value();
  ASSERT_TRUE(holder->step().ok());
  const GenerateResult beside = run(prompt_of(20), shared);  // 7 pages, and 6 are spoken for
  EXPECT_EQ(beside.reused_tokens, 0);
  EXPECT_EQ(beside.tokens, run(prompt_of(20), nullptr).tokens);
  EXPECT_EQ(shared->leases_refused(), 1);
  EXPECT_EQ(run(prompt_of(100), shared).tokens, run(prompt_of(100), nullptr).tokens);
  while (!holder->done()) ASSERT_TRUE(holder->step().ok());
  check(*shared);
}

TEST_F(GenerationPrefixTest, TheBudgetBoundsAllAtEveryMoment) {
  take_model("qwen2_tied");
  for (const std::int64_t budget : {40000, 100000, 400000}) {
    LimitedMemory memory(budget);
    const auto shared = store(0, budget, &memory);
    EXPECT_EQ(shared->budget_bytes(), budget);
    for (std::size_t i = 0; i < 12; ++i) {
      const Tokens prompt = prompt_of(static_cast<std::int64_t>(10 + 5 * i), i);
      EXPECT_EQ(run(prompt, shared).last_logits, run(prompt, nullptr).last_logits) << i;
      EXPECT_LE(shared->reserved_bytes(), budget);
      check(*shared);
    }
  }
  EXPECT_EQ(PrefixStore::create(model_->config(), HistoryOptions(), {.budget_bytes = 100})
                .status()
                .message()
                .substr(0, 28),
            "prefix_cache: found 100, exp");
}

// The longest text that is given room has it, whatever is found and however many bytes the budget
// has beyond its pages: what is not a page (sequences, the name of the namespace) takes some too.
TEST_F(GenerationPrefixTest, ATextThatIsGivenAllPagesOfABudgetIsServed) {
  take_model("qwen2_tied");
  for (std::int64_t budget = 4000; budget < 43000;
       budget += budget < 12000 ? unless_slow(17, 119) : 561) {
    LimitedMemory memory(budget);
    const auto shared = store(0, budget, &memory);
    // All of them stored in the first step, or some behind the prompt.
    options_.max_tokens = budget % 2 == 0 ? 1 : 6;
    const std::int64_t tokens = 4 * (shared->num_pages() - 1) - (options_.max_tokens - 1);
    if (tokens < 1) continue;
    run(prompt_of(tokens), shared);
    for (const std::size_t from : {43, 42, 41, 30, 7, 2, 1, 0}) {
      if (static_cast<std::int64_t>(from) >= tokens) continue;
      const GenerateResult result = run(prompt_of(tokens, from), shared);
      EXPECT_EQ(result.reused_tokens, static_cast<std::int64_t>(from)) << budget;
      ASSERT_FALSE(::testing::Test::HasFailure()) << budget << " " << from;
    }
    EXPECT_EQ(shared->leases_refused(), 0);
    check(*shared);
  }
}

TEST_F(GenerationPrefixTest, SeveralTextsAtATimeStayInABudgetAndAreServed) {
  take_model("qwen2_tied");
  for (const std::int64_t budget : {60000, 100000, 400000}) {
    LimitedMemory memory(budget);
    const auto shared = store(0, budget, &memory);
    GenerateOptions options = options_;
    options.prefixes = shared;
    std::vector<std::pair<Tokens, std::unique_ptr<Generation>>> texts;
    for (std::size_t i = 0; i < unless_slow<std::size_t>(60, 20); ++i) {
      Tokens prompt = prompt_of(static_cast<std::int64_t>(10 + 7 * i % 40), 5 * (i % 5));
      auto made = Generation::create(*model_, tokenizer_, prompt, options);
      ASSERT_TRUE(made.ok()) << made.status().to_string();
      texts.emplace_back(std::move(prompt), std::move(*made));
      for (std::size_t t = 0; t < texts.size();) {
        auto& [asked, text] = texts[t];
        const Status status = text->step();
        ASSERT_TRUE(status.ok()) << status.to_string();
        EXPECT_LE(shared->reserved_bytes(), budget);
        if (!text->done()) {
          ++t;
          continue;
        }
        EXPECT_EQ(text->result().last_logits, run(asked, nullptr).last_logits);
        texts.erase(texts.begin() + static_cast<std::ptrdiff_t>(t));
      }
      check(*shared);
    }
    EXPECT_GT(shared->stats().hits, 0);
  }
}

// Memory that others share, not a budget: full of what nobody holds.
TEST_F(GenerationPrefixTest, MemoryFullOfKnownPagesServesEveryText) {
  take_model("qwen2_tied");
  for (const std::int64_t bytes : {200000, 300000, 301000, 302000}) {
    LimitedMemory memory(bytes);
    const auto shared = store(4096, 0, &memory);
    for (std::size_t i = 0; i < 30; ++i) {
      const Tokens prompt = prompt_of(40 + static_cast<std::int64_t>(i), i);
      const GenerateResult first = run(prompt, shared);
      const GenerateResult again = run(prompt, shared);
      EXPECT_EQ(again.reused_tokens, first.prompt_tokens - 1) << bytes << " " << i;
      EXPECT_EQ(again.last_logits, first.last_logits);
      ASSERT_FALSE(::testing::Test::HasFailure());
    }
    EXPECT_GT(shared->stats().pages_evicted, 0);
    check(*shared);
  }
}

TEST_F(GenerationPrefixTest, TenantsNeverMeetAndHaveTheWordsOfATextAlone) {
  take_model("qwen2_tied");
  const auto shared = store(64);
  const Tokens prompt = prompt_of(30);
  const GenerateResult alone = run(prompt, nullptr);
  for (const bool again : {false, true}) {
    for (const std::int64_t tenant : {0, 1, -7}) {
      GenerateOptions options = options_;
      options.prefixes = shared;
      options.tenant = tenant;
      const auto result = generate(*model_, tokenizer_, prompt, options).value();
      EXPECT_EQ(result.reused_tokens, again ? 29 : 0) << tenant;
      EXPECT_EQ(result.last_logits, alone.last_logits) << tenant;
    }
  }
  EXPECT_EQ(shared->stats().namespaces, 3);
}

// What tenants left takes room beyond its pages, by the name of each: it gives way with them.
TEST_F(GenerationPrefixTest, ATextOfAllPagesIsServedHoweverManyTenantsLeftSome) {
  take_model("qwen2_tied");
  for (const std::int64_t budget : {20000, 40000, 70000}) {
    LimitedMemory memory(budget);
    const auto shared = store(0, budget, &memory);
    options_.max_tokens = 1;
    GenerateOptions options = options_;
    options.prefixes = shared;
    const std::int64_t most = 4 * (shared->num_pages() - 1);
    for (std::int64_t round = 0; round < 3; ++round) {
      for (std::int64_t tenant = 1; tenant < 2 * most; ++tenant) {
        options.tenant = tenant;
        const auto result = generate(*model_, tokenizer_, prompt_of(3), options);
        ASSERT_TRUE(result.ok()) << budget << " " << tenant << result.status().to_string();
      }
      EXPECT_GT(shared->stats().namespaces, 1);
      options.tenant = 0;
      const Tokens prompt = prompt_of(most - round);
      const auto result = generate(*model_, tokenizer_, prompt, options);
      ASSERT_TRUE(result.ok()) << budget << ": " << result.status().to_string();
      EXPECT_EQ(result->last_logits, run(prompt, nullptr).last_logits);
      EXPECT_LE(shared->reserved_bytes(), budget);
      check(*shared);
    }
    EXPECT_EQ(shared->leases_refused(), 0);
  }
}

TEST_F(GenerationPrefixTest, ThePolicyAndPrioritiesSayWhatGivesWay) {
  take_model("qwen2_tied");
  for (const Eviction eviction :
       {Eviction::kLru, Eviction::kS3Fifo, Eviction::kArc, Eviction::kAdaptive}) {
    HistoryOptions rows;
    rows.rows = options_.kv_dtype;
    rows.dtype = model_->default_kv_dtype();
    rows.page_size = 4;
    const auto shared =
        PrefixStore::create(model_->config(), rows, {.num_pages = 24, .eviction = eviction})
            .value();
    const Tokens kept = prompt_of(17), other = prompt_of(17, 0);
    run(kept, shared);
    run(other, shared);
    EXPECT_EQ(shared->set_priority(kept, 100).value(), 17);
    EXPECT_EQ(shared->set_priority(kept, 100, 1).value(), 0) << "another tenant's";
    EXPECT_EQ(shared->set_priority(kept, 101).status().code(), StatusCode::kInvalidArgument);
    for (std::int32_t i = 0; i < 20; ++i) {
      Tokens flood = prompt_of(30);
      flood[0] = 50 + i;
      run(flood, shared);
    }
    EXPECT_EQ(run(kept, shared).reused_tokens, 16) << name_of(eviction);
    EXPECT_EQ(run(other, shared).reused_tokens, 0) << name_of(eviction);
    check(*shared);
  }
}

TEST_F(GenerationPrefixTest, ATextThatIsNotKnownIsNotWritten) {
  take_model("qwen2_tied");
  const auto shared = store(64);
  const test::TempDir directory;
  const std::string path = directory.path() + "/text.kvc";
  const Tokens prompt = prompt_of(20);
  const auto cold = shared->save_text(path, prompt, 1);
  EXPECT_EQ(cold.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(cold.status().message(), "text: found rows of 0 tokens, expected at least 1");
  EXPECT_FALSE(std::filesystem::exists(path));
  run(prompt, shared);
  EXPECT_EQ(shared->save_text(path, prompt, 20).value(), 20);
  EXPECT_EQ(shared->save_text(path, prompt_of(20, 11), 0).value(), 11);
  const auto other = store(64);
  EXPECT_EQ(other->load_text(path).value(), 11);
  EXPECT_EQ(run(prompt, other).reused_tokens, 11);
}

TEST_F(GenerationPrefixTest, ThreadsHaveTheTextsOfOneAlone) {
  take_model("qwen2_tied");
  std::vector<Tokens> prompts;
  std::vector<GenerateResult> alone;
  for (std::size_t i = 0; i < 8; ++i) {
    prompts.push_back(prompt_of(24 + static_cast<std::int64_t>(i), 6 * (i % 4)));
    alone.push_back(run(prompts.back(), nullptr));
  }
  for (const std::int64_t pages : {4096, 30}) {
    const auto shared = store(pages);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (std::size_t i = 0; i < 24; ++i) {
          const std::size_t at = (i * (t + 1) + t) % prompts.size();
          wrong += run(prompts[at], shared).last_logits != alone[at].last_logits;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
    check(*shared);
    EXPECT_GT(shared->stats().tokens_reused, 0);
    EXPECT_EQ(shared->stats().pages_unheld, shared->stats().pages);
  }
}

TEST_F(GenerationPrefixTest, BeamsHaveTheTextsAndScoresOfAPromptComputedWhole) {
  take_model("qwen2_tied");
  options_.num_beams = 4;
  const auto shared = store(512);
  const std::vector<Tokens> prompts = {prompt_of(30), prompt_of(30), prompt_of(30, 14)};
  const std::vector<std::int64_t> found = {0, 29, 14};
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    options_.cache = HistoryKind::kPaged;
    const GenerateResult whole = run(prompts[i], nullptr);
    const GenerateResult result = run(prompts[i], shared);
    EXPECT_EQ(result.reused_tokens, found[i]);
    ASSERT_EQ(result.beams.size(), whole.beams.size());
    for (std::size_t b = 0; b < whole.beams.size(); ++b) {
      EXPECT_EQ(result.beams[b].tokens, whole.beams[b].tokens);
      EXPECT_EQ(result.beams[b].score, whole.beams[b].score);
    }
    check(*shared);
  }
}

// What fails leaves the store as good as it was, and what it knows is right.
TEST_F(GenerationPrefixTest, SoakRefusedMemoryLosesNothing) {
  take_model("qwen2_tied");
  testing::RefusingMemory memory;
  {
    const auto shared = store(64, 0, &memory);
    GenerateOptions options = options_;
    options.prefixes = shared;
    int failed = 0;
    for (std::int64_t n = 1; n < 120; ++n) {
      const Tokens prompt = prompt_of(20 + n % 17, static_cast<std::size_t>(n % 9));
      memory.refuse(n % 12, n % 24 >= 12);
      const auto result = generate(*model_, tokenizer_, prompt, options);
      memory.refuse(0);
      failed += result.ok() ? 0 : 1;
      if (!result.ok()) {
        EXPECT_EQ(result.status().code(), StatusCode::kOutOfMemory);
      }
      check(*shared);
      EXPECT_EQ(run(prompt, shared).last_logits, run(prompt, nullptr).last_logits);
    }
    EXPECT_GT(failed, 0);
  }
  EXPECT_EQ(memory.committed(), 0);
}

}  // namespace
}  // namespace kvcache::runner
