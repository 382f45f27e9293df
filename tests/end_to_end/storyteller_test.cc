// The model that ships: the same words through every cache.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runner/generate/generate.h"
#include "support/model_runs.h"
#include "support/paths.h"
#include "support/slow.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kTokens = testing::unless_slow(24, 6);

std::string directory() { return testing::source_dir() + "/models/storyteller"; }

class StorytellerTest : public ::testing::Test {
 protected:
  static Model load(WeightMode mode) {
    auto model = Model::load(directory(), mode);
    EXPECT_TRUE(model.ok()) << model.status().to_string();
    return std::move(model).value();
  }

  std::vector<std::int32_t> prompt() const {
    const auto tokenizer = Tokenizer::load(directory() + "/tokenizer.json");
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
    const auto ids = tokenizer->encode("One rainy morning, Mira walked to the harbour. She");
    EXPECT_TRUE(ids.ok());
    return *ids;
  }
};

TEST_F(StorytellerTest, EveryCacheTellsTheStoryOfNone) {
  const Model model = load(WeightMode::kF32);
  const auto ids = prompt();
  const auto pool = make_thread_pool(2);
  ASSERT_TRUE(pool.ok());
  ExecContext context;
  context.executor = pool->get();
  HistoryOptions none;
  none.kind = HistoryKind::kNone;
  const auto expected = testing::greedy_of(model, ids, kTokens, {none, {}, {}, context});
  std::vector<std::int32_t> all = ids;
  all.insert(all.end(), expected.begin(), expected.end());
  const auto logits = testing::logits_of(model, all, {none, {}, {}, context});
  for (const auto& history : testing::every_history(static_cast<std::int64_t>(all.size()))) {
    const testing::ModelRun run{history, {5}, {}, context};
    EXPECT_EQ(testing::greedy_of(model, ids, kTokens, run), expected) << describe(run);
    EXPECT_LE(testing::max_difference(testing::logits_of(model, all, run), logits), 1e-4f)
        << describe(run);
  }
}

TEST_F(StorytellerTest, WeightsAsStoredTellItToo) {
  const Model model = load(WeightMode::kStored);
  EXPECT_EQ(model.weight_type(), WeightType::kBF16);
  const auto ids = prompt();
  AttentionOptions reproducible;
  reproducible.reproducible = true;
  HistoryOptions none;
  none.kind = HistoryKind::kNone;
  none.dtype = model.default_kv_dtype();
  const auto expected = testing::greedy_of(model, ids, kTokens, {none, {}, reproducible, {}});
  const auto logits = testing::logits_of(model, ids, {none, {}, reproducible, {}});
  for (const auto& history : testing::every_history(64, model.default_kv_dtype())) {
    const testing::ModelRun run{history, {1}, reproducible, {}};
    EXPECT_EQ(testing::greedy_of(model, ids, kTokens, run), expected) << describe(run);
    EXPECT_LE(testing::max_difference(testing::logits_of(model, ids, run), logits), 1e-4f)
        << describe(run);
  }
}

TEST_F(StorytellerTest, Int8WeightsTellItThroughEveryCacheNearTheWordsOfF32) {
  const Model model = load(WeightMode::kInt8);
  EXPECT_EQ(model.weight_type(), WeightType::kInt8);
  const Model exact = load(WeightMode::kF32);
  EXPECT_LT(model.weight_bytes(), exact.weight_bytes() * 3 / 10);
  const auto ids = prompt();
  AttentionOptions reproducible;
  reproducible.reproducible = true;
  HistoryOptions none;
  none.kind = HistoryKind::kNone;
  const auto expected = testing::greedy_of(model, ids, kTokens, {none, {}, reproducible, {}});
  std::vector<std::int32_t> all = ids;
  all.insert(all.end(), expected.begin(), expected.end());
  const auto logits = testing::logits_of(model, all, {none, {}, reproducible, {}});
  for (const auto& history : testing::every_history(static_cast<std::int64_t>(all.size()))) {
    const testing::ModelRun run{history, {5, 1}, reproducible, {}};
    EXPECT_EQ(testing::greedy_of(model, ids, kTokens, run), expected) << describe(run);
    EXPECT_LE(testing::max_difference(testing::logits_of(model, all, run), logits), 1e-4f)
        << describe(run);
  }
  const auto reference = testing::logits_of(exact, all, {none, {}, reproducible, {}});
  EXPECT_LT(testing::relative_difference(logits, reference), 0.02);
}

}  // namespace
}  // namespace kvcache::runner
