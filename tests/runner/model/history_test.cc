#include "runner/model/history.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "runner/model/model.h"
#include "runner/model/paged_history.h"
#include "support/model_runs.h"

namespace kvcache::runner {
namespace {

using testing::describe;
using testing::every_history;
using testing::small_config;
using testing::some_tokens;

ExecContext serially() {
  ExecContext context;
  context.executor = &serial_executor();
  return context;
}

class HistoryTest : public ::testing::Test {
 protected:
  static Model random_model() {
    auto model = Model::random(small_config(), WeightType::kF32, 7);
    EXPECT_TRUE(model.ok()) << model.status().to_string();
    return std::move(model).value();
  }

  std::unique_ptr<History> make(const HistoryOptions& options) {
    auto history = make_history(model_.config(), options);
    EXPECT_TRUE(history.ok()) << history.status().to_string();
    return std::move(history).value();
  }

  // Logits of a step, a row for each sequence.
  std::vector<std::vector<float>> step(History& history, const std::vector<std::int32_t>& ids,
                                       const std::vector<std::int64_t>& counts) {
    std::vector<float> logits;
    const Status status =
        model_.forward({ids, counts}, history, state_, logits, LogitRows::kLast, {}, serially());
    EXPECT_TRUE(status.ok()) << status.to_string();
    std::vector<std::vector<float>> rows;
    const auto vocab = model_.config().vocab_size;
    for (auto at = logits.begin(); at != logits.end(); at += vocab)
      rows.emplace_back(at, at + vocab);
    return rows;
  }

  Model model_ = random_model();
  ForwardState state_;
};

// The next token of each beam is what a history of its own would give, bit by bit, through repeats
// and any order of beams.
TEST_F(HistoryTest, ABeamHasTheLogitsOfItsTextAloneInAnyOrder) {
  std::mt19937 random(5);
  const auto prompt = some_tokens(21, model_.config().vocab_size);
  for (HistoryOptions options : every_history(40)) {
    if (options.kind == HistoryKind::kNone || options.kind == HistoryKind::kFunctional) continue;
    options.num_sequences = 3;
    const auto history = make(options);
    step(*history, prompt, {21});
    ASSERT_TRUE(history->repeat(3, serially()).ok());
    ASSERT_EQ(history->num_sequences(), 3);
    std::vector<std::vector<std::int32_t>> texts(3);
    for (int round = 0; round < 6; ++round) {
      std::vector<std::int64_t> order;
      for (int i = 0; i < 3; ++i) order.push_back(random() % 3);
      ASSERT_TRUE(history->reorder(order, serially()).ok());
      const auto before = texts;
      std::vector<std::int32_t> ids;
      for (std::size_t i = 0; i < 3; ++i) {
        texts[i] = before[static_cast<std::size_t>(order[i])];
        ids.push_back(static_cast<std::int32_t>(random() % 131));
        texts[i].push_back(ids.back());
      }
      const auto logits = step(*history, ids, {1, 1, 1});
      ASSERT_EQ(logits.size(), 3u);
      for (std::size_t i = 0; i < 3; ++i) {
        options.num_sequences = 1;
        const auto alone = make(options);
        step(*alone, prompt, {21});
        std::vector<std::vector<float>> expected;
        for (const std::int32_t id : texts[i]) expected = step(*alone, {id}, {1});
        EXPECT_EQ(logits[i], expected.front())
            << describe({options, {}, {}, {}}) << " round " << round << " beam " << i;
      }
    }
    for (std::int64_t i = 0; i < 3; ++i) EXPECT_EQ(history->length(i), 27);
  }
}

TEST_F(HistoryTest, PagesTakeSequencesOfAnyLengthTogether) {
  HistoryOptions options;
  options.kind = HistoryKind::kPaged;
  options.page_size = 4;
  options.max_length = 60;
  options.num_sequences = 3;
  const auto prompt = some_tokens(10, model_.config().vocab_size);
  const auto more = some_tokens(20, model_.config().vocab_size);
  const auto history = make(options);
  step(*history, prompt, {10});
  ASSERT_TRUE(history->repeat(3, serially()).ok());
  const std::vector<std::int64_t> counts = {1, 0, 12};
  const auto logits = step(*history, {more.begin(), more.begin() + 13}, counts);
  ASSERT_EQ(logits.size(), 2u) << "a sequence without new tokens has logits";
  EXPECT_EQ(history->length(0), 11);
  EXPECT_EQ(history->length(1), 10);
  EXPECT_EQ(history->length(2), 22);
  EXPECT_EQ(state_.counters().rows_read, 10 + 11 + 22);
  const auto alone = make(options);
  step(*alone, prompt, {10});
  EXPECT_EQ(step(*alone, {more[0]}, {1}).front(), logits[0]);
  const auto other = make(options);
  step(*other, prompt, {10});
  EXPECT_EQ(step(*other, {more.begin() + 1, more.begin() + 13}, {12}).front(), logits[1]);
}

// What beams cost on pages, counted by PagedCache::stats().
TEST_F(HistoryTest, AReorderOfPagesMovesNoRowAndTheNextWriteCopiesLessThanAPageABeam) {
  std::mt19937 random(9);
  const auto prompt = some_tokens(21, model_.config().vocab_size);
  for (const std::int64_t page_size : {1, 4, 16, 128}) {
    HistoryOptions options;
    options.kind = HistoryKind::kPaged;
    options.page_size = page_size;
    options.max_length = 60;
    options.num_sequences = 4;
    const auto history = make(options);
    step(*history, prompt, {21});
    const std::int64_t pages = history->usage().pages;
    ASSERT_TRUE(history->repeat(4, serially()).ok());
    EXPECT_EQ(history->usage().rows_copied, 0);
    EXPECT_EQ(history->usage().pages, pages) << "a repeat takes pages";
    for (int round = 0; round < 30; ++round) {
      std::vector<std::int64_t> order;
      for (int i = 0; i < 4; ++i) order.push_back(random() % 4);
      const std::int64_t before = history->usage().rows_copied;
      ASSERT_TRUE(history->reorder(order, serially()).ok());
      EXPECT_EQ(history->usage().rows_copied, before) << "a reorder copied rows";
      step(*history, {1, 2, 3, 4}, {1, 1, 1, 1});
      const std::int64_t tail = (history->length(0) - 1) % page_size;
      EXPECT_LE(history->usage().rows_copied - before, 4 * tail);
      EXPECT_LT(tail, page_size);
    }
    EXPECT_EQ(history->usage().copied_bytes, 0);
  }
}

TEST_F(HistoryTest, ALayeredBatchWantsAsManyTokensOfEverySequence) {
  for (const HistoryKind kind : {HistoryKind::kNone, HistoryKind::kDynamic, HistoryKind::kStatic}) {
    HistoryOptions options;
    options.kind = kind;
    options.max_length = 20;
    const auto history = make(options);
    step(*history, {1, 2, 3}, {3});
    ASSERT_TRUE(history->repeat(2, serially()).ok());
    std::vector<float> logits;
    const std::vector<std::int32_t> ids = {1, 2, 3};
    const auto forward = [&](const std::vector<std::int64_t>& counts) {
      return model_
          .forward({ids, counts}, *history, state_, logits, LogitRows::kLast, {}, serially())
          .code();
    };
    EXPECT_EQ(forward({1, 2}), StatusCode::kInvalidArgument);
    EXPECT_EQ(forward({3}), StatusCode::kInvalidArgument);
    EXPECT_EQ(forward({1, 1}), StatusCode::kInvalidArgument);
    EXPECT_EQ(forward({4, -1}), StatusCode::kInvalidArgument);
    EXPECT_EQ(history->length(), kind == HistoryKind::kNone ? 0 : 3);
  }
}

// Sequences of different lengths that join and leave, prompts beside tokens: each has the logits of
// its text alone, and nobody else's rows are read.
TEST_F(HistoryTest, SequencesJoinAndLeaveAndKeepTheLogitsOfTheirTextAlone) {
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    HistoryOptions options;
    options.layout = layout;
    auto made = PagedHistory::create_empty(model_.config(), options, 16);
    ASSERT_TRUE(made.ok()) << made.status().to_string();
    PagedHistory& history = **made;
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(history.add().ok());
    std::vector<std::unique_ptr<History>> alone;
    for (int i = 0; i < 4; ++i) alone.push_back(make(options));
    const auto prompt = some_tokens(40, 131);
    std::vector<std::int32_t> ids(prompt.begin(), prompt.begin() + 3);
    ids.insert(ids.end(), prompt.begin(), prompt.end());
    auto logits = step(history, ids, {3, 0, 40});
    EXPECT_EQ(logits[0], step(*alone[0], {ids.begin(), ids.begin() + 3}, {3}).front());
    EXPECT_EQ(logits[1], step(*alone[2], prompt, {40}).front());

    ids = {7, 8, 9, 10, 11};
    logits = step(history, ids, {1, 3, 1});
    EXPECT_EQ(history.rows_read(), 4 + 3 + 41);
    EXPECT_EQ(logits[0], step(*alone[0], {7}, {1}).front());
    EXPECT_EQ(logits[1], step(*alone[1], {8, 9, 10}, {3}).front());
    EXPECT_EQ(logits[2], step(*alone[2], {11}, {1}).front());

    ASSERT_TRUE(history.release(1).ok());
    ASSERT_TRUE(history.add().ok());
    ids = {1, 2, 3, 4};
    logits = step(history, ids, {1, 1, 2});
    EXPECT_EQ(history.rows_read(), 5 + 42 + 2);
    EXPECT_EQ(logits[0], step(*alone[0], {1}, {1}).front());
    EXPECT_EQ(logits[1], step(*alone[2], {2}, {1}).front());
    EXPECT_EQ(logits[2], step(*alone[3], {3, 4}, {2}).front());
  }
}

// A backend of no such name fails the first layer.
TEST_F(HistoryTest, AStepThatFailsLeavesTheSequencesAsTheyWere) {
  auto made = PagedHistory::create_empty(model_.config(), {}, 8);
  ASSERT_TRUE(made.ok());
  for (int i = 0; i < 2; ++i) ASSERT_TRUE((*made)->add().ok());
  step(**made, {1, 2, 3}, {0, 3});
  AttentionOptions unknown;
  unknown.backend = "no such backend";
  std::vector<float> logits;
  const std::vector<std::int32_t> ids = {4};
  const std::vector<std::int64_t> counts = {0, 1};
  EXPECT_EQ(
      model_.forward({ids, counts}, **made, state_, logits, LogitRows::kLast, unknown, serially())
          .code(),
      StatusCode::kUnavailable);
  EXPECT_EQ((*made)->length(1), 3);
  EXPECT_EQ((*made)->cache().stats().open_steps, 0);
  step(**made, ids, counts);
  EXPECT_EQ((*made)->length(1), 4);
}

TEST_F(HistoryTest, AStepGivenUpBetweenLayersStoresNothing) {
  auto made = PagedHistory::create_empty(model_.config(), {}, 8);
  ASSERT_TRUE(made.ok());
  for (int i = 0; i < 2; ++i) ASSERT_TRUE((*made)->add().ok());
  const auto alone = make({});
  step(**made, {1, 2, 3}, {0, 3});
  step(*alone, {1, 2, 3}, {3});

  const ModelConfig& config = model_.config();
  const std::vector<std::int64_t> counts = {0, 1};
  std::vector<float> rows(static_cast<std::size_t>(config.num_heads * config.head_dim), 1.0f);
  std::vector<float> out(rows.size());
  const AttentionInputs inputs = {
      TensorView(rows.data(), DType::kF32, {1, config.num_heads, config.head_dim}),
      TensorView(rows.data(), DType::kF32, {1, config.num_kv_heads, config.head_dim}),
      TensorView(rows.data(), DType::kF32, {1, config.num_kv_heads, config.head_dim})};
  ASSERT_TRUE((*made)->begin(counts, {}).ok());
  ASSERT_TRUE((*made)
                  ->attend(0, inputs,
                           MutableTensorView(out.data(), DType::kF32,
                                             {1, config.num_heads, config.head_dim}),
                           {}, serially())
                  .ok());
  (*made)->abandon();
  EXPECT_EQ((*made)->length(1), 3);
  EXPECT_EQ(step(**made, {4}, counts), step(*alone, {4}, {1}));
}

}  // namespace
}  // namespace kvcache::runner
