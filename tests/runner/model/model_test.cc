#include "runner/model/model.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/model_runs.h"
#include "support/refusing_memory.h"
#include "support/slow.h"

namespace kvcache::runner {
namespace {

using testing::describe;
using testing::every_history;
using testing::logits_of;
using testing::max_difference;
using testing::ModelRun;
using testing::small_config;
using testing::some_tokens;
using testing::unless_slow;

ExecContext serially() {
  ExecContext context;
  context.executor = &serial_executor();
  return context;
}

Model random_model(WeightType type = WeightType::kF32, const ModelConfig& config = small_config()) {
  auto model = Model::random(config, type, 7);
  EXPECT_TRUE(model.ok()) << model.status().to_string();
  return std::move(model).value();
}

HistoryOptions no_cache(DType dtype = DType::kF32) {
  HistoryOptions history;
  history.kind = HistoryKind::kNone;
  history.dtype = dtype;
  return history;
}

TEST(ModelTest, EveryCacheAndSplitHasTheLogitsOfNone) {
  const Model model = random_model();
  const auto tokens = some_tokens(70, model.config().vocab_size);
  const auto expected = logits_of(model, tokens, {no_cache(), {}, {}, serially()});
  for (const auto& history : every_history(70)) {
    for (const std::vector<std::int64_t>& steps :
         unless_slow<std::vector<std::vector<std::int64_t>>>({{}, {1}, {16}, {33, 1}}, {{33, 1}})) {
      const ModelRun run{history, steps, {}, serially()};
      EXPECT_LE(max_difference(logits_of(model, tokens, run), expected), 1e-4f) << describe(run);
    }
  }
}

TEST(ModelTest, EveryCacheChoosesTheTokensOfNone) {
  for (const bool qwen : {true, false}) {
    ModelConfig config = small_config();
    if (!qwen) {
      config.qk_norm = config.attention_bias = config.attention_output_bias = config.mlp_bias =
          false;
      config.tie_word_embeddings = true;
    }
    const Model model = random_model(WeightType::kF32, config);
    const auto prompt = some_tokens(20, config.vocab_size);
    const auto expected = testing::greedy_of(model, prompt, 20, {no_cache(), {}, {}, serially()});
    for (const auto& history : every_history(40)) {
      for (const std::int64_t chunk : unless_slow<std::vector<std::int64_t>>({20, 6, 1}, {6})) {
        const ModelRun run{history, {chunk}, {}, serially()};
        EXPECT_EQ(testing::greedy_of(model, prompt, 20, run), expected) << describe(run);
      }
    }
  }
}

TEST(ModelTest, ThreadsDoNotChangeABit) {
  const Model model = random_model();
  const auto tokens = some_tokens(40, model.config().vocab_size);
  for (const HistoryKind kind : {HistoryKind::kNone, HistoryKind::kDynamic, HistoryKind::kPaged}) {
    HistoryOptions history;
    history.kind = kind;
    history.max_length = 40;
    const auto expected = logits_of(model, tokens, {history, {30, 1}, {}, serially()});
    for (const std::int32_t threads : {1, 2, 3, 4}) {
      const auto pool = make_thread_pool(threads);
      ASSERT_TRUE(pool.ok());
      ExecContext context;
      context.executor = pool->get();
      EXPECT_EQ(logits_of(model, tokens, {history, {30, 1}, {}, context}), expected)
          << name_of(kind) << " threads " << threads;
    }
  }
}

TEST(ModelTest, SixteenBitCachesEqualTheSameRoundingWithoutOne) {
  const Model model = random_model();
  const auto prompt = some_tokens(40, model.config().vocab_size);
  AttentionOptions reproducible;
  reproducible.reproducible = true;
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const auto none = no_cache(dtype);
    const auto expected = logits_of(model, prompt, {none, {}, reproducible, serially()});
    const auto greedy = testing::greedy_of(model, prompt, 10, {none, {}, reproducible, serially()});
    for (const auto& history : every_history(50, dtype)) {
      for (const std::int64_t step : unless_slow<std::vector<std::int64_t>>({1, 9, 40}, {9})) {
        const ModelRun run{history, {step}, reproducible, serially()};
        EXPECT_LE(max_difference(logits_of(model, prompt, run), expected), 1e-4f) << describe(run);
      }
      const ModelRun run{history, {11}, reproducible, serially()};
      EXPECT_EQ(testing::greedy_of(model, prompt, 10, run), greedy) << describe(run);
    }
  }
}

// With 16-bit weights the activations are rounded before every product, for one token as for many.
// A sum in another order would move a rounding here and there, and logits by several 1e-2.
TEST(ModelTest, SixteenBitWeightsGiveOneTokenWhatTheyGiveMany) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const Model model = random_model(weight_type(dtype));
    EXPECT_EQ(model.weight_type(), weight_type(dtype));
    EXPECT_EQ(model.default_kv_dtype(), dtype);
    const auto tokens = some_tokens(40, model.config().vocab_size);
    AttentionOptions reproducible;
    reproducible.reproducible = true;
    for (const DType kv : {DType::kF32, dtype}) {
      const auto expected = logits_of(model, tokens, {no_cache(kv), {}, reproducible, serially()});
      for (const std::int64_t step : {1, 13}) {
        HistoryOptions history;
        history.dtype = kv;
        const ModelRun run{history, {step}, reproducible, serially()};
        EXPECT_LE(max_difference(logits_of(model, tokens, run), expected), 1e-4f)
            << name_of(dtype) << " " << describe(run);
      }
    }
  }
}

// int8 weights round activations too, to 16 bits of each cut's largest: where attention adds in
// another order, a rounding here and there moves logits by a few 1e-4.
TEST(ModelTest, Int8WeightsGiveOneTokenWhatTheyGiveMany) {
  const Model model = random_model(WeightType::kInt8);
  EXPECT_EQ(model.weight_type(), WeightType::kInt8);
  EXPECT_EQ(model.default_kv_dtype(), DType::kF32);
  const auto tokens = some_tokens(40, model.config().vocab_size);
  AttentionOptions reproducible;
  reproducible.reproducible = true;
  const auto expected = logits_of(model, tokens, {no_cache(), {}, reproducible, serially()});
  const auto pool = make_thread_pool(3);
  ASSERT_TRUE(pool.ok());
  ExecContext threads;
  threads.executor = pool->get();
  for (const auto& history : every_history(40)) {
    for (const std::int64_t step : {1, 13}) {
      const ModelRun run{history, {step}, reproducible, threads};
      EXPECT_LE(max_difference(logits_of(model, tokens, run), expected), 1e-4f) << describe(run);
    }
  }
}

TEST(ModelTest, Int8WeightsTakeAQuarterOfTheBytes) {
  const ModelConfig config = small_config();
  const Model f32 = random_model();
  const Model int8 = random_model(WeightType::kInt8);
  EXPECT_EQ(int8.num_parameters(), f32.num_parameters());
  const std::int64_t kv = config.num_kv_heads * config.head_dim;
  const std::int64_t q = config.num_heads * config.head_dim;
  const std::int64_t layer_rows =
      2 * kv + q + 2 * config.hidden_size + 2 * config.intermediate_size;
  const std::int64_t rows = config.num_layers * layer_rows + 2 * config.vocab_size;
  std::int64_t elements = config.hidden_size * 2 * config.vocab_size;
  elements +=
      config.num_layers * config.hidden_size * (2 * q + 2 * kv + 3 * config.intermediate_size);
  EXPECT_EQ(f32.weight_bytes() - int8.weight_bytes(), 3 * elements - 4 * rows);
}

TEST(ModelTest, TheLastRowIsTheLastOfAllRows) {
  const Model model = random_model();
  const auto tokens = some_tokens(12, model.config().vocab_size);
  const auto all = logits_of(model, tokens, {no_cache(), {}, {}, serially()});
  auto history = make_history(model.config(), no_cache());
  ASSERT_TRUE(history.ok());
  ForwardState state;
  std::vector<float> last;
  ASSERT_TRUE(model.forward(tokens, **history, state, last, LogitRows::kLast, {}, serially()).ok());
  ASSERT_EQ(static_cast<std::int64_t>(last.size()), model.config().vocab_size);
  EXPECT_LE(max_difference(last, std::span(all).last(last.size())), 1e-4f);
}

TEST(ModelTest, CountsTheRowsItComputesAndReads) {
  const Model model = random_model();
  const auto tokens = some_tokens(20, model.config().vocab_size);
  for (const auto& options : every_history(20)) {
    auto history = make_history(model.config(), options);
    ASSERT_TRUE(history.ok());
    ForwardState state;
    std::vector<float> logits;
    std::int64_t computed = 0;
    std::int64_t read = 0;
    for (std::int64_t n = 15; n <= 20; ++n) {  // a prompt of 15, then one token at a time
      const bool keeps = (*history)->keeps_history();
      const std::int64_t first = keeps && n > 15 ? n - 1 : 0;
      ASSERT_TRUE(model
                      .forward(std::span(tokens).subspan(static_cast<std::size_t>(first),
                                                         static_cast<std::size_t>(n - first)),
                               **history, state, logits, LogitRows::kLast, {}, serially())
                      .ok());
      computed += n - first;
      read += n;
      EXPECT_EQ(state.counters().rows_computed, computed);
      EXPECT_EQ(state.counters().rows_read, read);
    }
    EXPECT_EQ((*history)->usage().copied_bytes, 0);
  }
}

class ModelErrorTest : public ::testing::TestWithParam<HistoryKind> {
 protected:
  HistoryOptions options(MemoryResource* memory = nullptr) const {
    HistoryOptions history;
    history.kind = GetParam();
    history.max_length = 200;
    history.page_size = 4;
    history.memory = memory;
    return history;
  }

  Status forward(History& history, std::span<const std::int32_t> tokens) {
    return model_.forward(tokens, history, state_, logits_, LogitRows::kLast, {}, serially());
  }

  Model model_ = random_model();
  ForwardState state_;
  std::vector<float> logits_;
};

TEST_P(ModelErrorTest, BadTokensAreNamedAndNothingIsStored) {
  auto made = make_history(model_.config(), options());
  ASSERT_TRUE(made.ok());
  History& history = **made;
  const auto tokens = some_tokens(8, model_.config().vocab_size);
  ASSERT_TRUE(forward(history, tokens).ok());
  const std::int64_t length = history.length();

  const Status none = forward(history, {});
  EXPECT_EQ(none.code(), StatusCode::kInvalidArgument);
  for (const std::int32_t id : {-1, 131, INT32_MAX}) {
    const std::int32_t ids[] = {3, id};
    const Status status = forward(history, ids);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("found id " + std::to_string(id)), std::string::npos)
        << status.message();
    EXPECT_NE(status.message().find("0 .. 130"), std::string::npos);
  }
  const auto many = some_tokens(257, model_.config().vocab_size);
  const Status past = forward(history, many);
  EXPECT_EQ(past.code(), StatusCode::kOutOfRange);
  EXPECT_NE(past.message().find("256"), std::string::npos) << past.message();
  EXPECT_EQ(history.length(), length);
  EXPECT_EQ(state_.counters().rows_computed, 8);
  EXPECT_TRUE(forward(history, tokens).ok());
}

// The n-th request for memory is refused, for every n, in the first step of a history and in a
// later one: the step fails whole, and the next gives what it would have given.
TEST_P(ModelErrorTest, MemoryRefusedAnywhereInAStepLeavesTheHistoryAsItWas) {
  const auto prompt = some_tokens(11, model_.config().vocab_size);
  const auto more = some_tokens(150, model_.config().vocab_size);
  int failures = 0;
  for (const bool first_step : {true, false}) {
    auto undisturbed = make_history(model_.config(), options());
    ASSERT_TRUE(undisturbed.ok());
    if (!first_step) {
      ASSERT_TRUE(forward(**undisturbed, prompt).ok());
    }
    ASSERT_TRUE(forward(**undisturbed, more).ok());
    const std::vector<float> expected = logits_;

    bool refused = true;
    for (std::int64_t n = 1; refused && n < 100; ++n) {
      testing::RefusingMemory memory;
      auto made = make_history(model_.config(), options(&memory));
      ASSERT_TRUE(made.ok());
      History& history = **made;
      if (!first_step) {
        ASSERT_TRUE(forward(history, prompt).ok());
      }
      const std::int64_t length = history.length();
      memory.refuse(n);
      const Status status = forward(history, more);
      refused = memory.refused();
      memory.refuse(0);
      // A refused reservation may be asked for again, smaller.
      if (!status.ok()) {
        ++failures;
        EXPECT_TRUE(refused);
        EXPECT_EQ(status.code(), StatusCode::kOutOfMemory) << status.to_string();
        EXPECT_EQ(history.length(), length) << "refusal " << n;
        ASSERT_TRUE(forward(history, more).ok());
      }
      EXPECT_EQ(logits_, expected) << "refusal " << n;
    }
    EXPECT_FALSE(refused);
  }
  EXPECT_GE(failures, 2) << "the memory was hardly asked";
}

INSTANTIATE_TEST_SUITE_P(Histories, ModelErrorTest,
                         ::testing::Values(HistoryKind::kNone, HistoryKind::kDynamic,
                                           HistoryKind::kStatic, HistoryKind::kPaged,
                                           HistoryKind::kFunctional),
                         [](const auto& kind) { return std::string(name_of(kind.param)); });

TEST(ModelTest, FullStoresRefuseAndGoOn) {
  const Model model = random_model();
  const auto tokens = some_tokens(20, model.config().vocab_size);
  for (const HistoryKind kind :
       {HistoryKind::kStatic, HistoryKind::kPaged, HistoryKind::kFunctional}) {
    HistoryOptions options;
    options.kind = kind;
    options.page_size = 4;
    options.max_length = 20;
    auto history = make_history(model.config(), options);
    ASSERT_TRUE(history.ok());
    ForwardState state;
    std::vector<float> logits;
    const auto forward = [&](std::size_t begin, std::size_t count) {
      return model.forward(std::span(tokens).subspan(begin, count), **history, state, logits,
                           LogitRows::kLast, {}, serially());
    };
    ASSERT_TRUE(forward(0, 16).ok());
    const Status status = forward(0, 5);
    EXPECT_FALSE(status.ok());
    EXPECT_EQ((*history)->length(), 16) << name_of(kind);
    EXPECT_EQ(status.code(),
              kind == HistoryKind::kPaged ? StatusCode::kNeverFits : StatusCode::kOutOfRange)
        << status.to_string();
    EXPECT_TRUE(forward(16, 4).ok());
    EXPECT_EQ((*history)->length(), 20);
  }
}

TEST(ModelTest, AStepThatFailsAtALaterLayerIsAbandonedWhole) {
  // A backend of no such name fails the plan, after layer 0 was written.
  const Model model = random_model();
  const auto tokens = some_tokens(9, model.config().vocab_size);
  for (const auto& options : every_history(30)) {
    auto history = make_history(model.config(), options);
    ASSERT_TRUE(history.ok());
    ForwardState state;
    std::vector<float> logits;
    ASSERT_TRUE(
        model.forward(tokens, **history, state, logits, LogitRows::kLast, {}, serially()).ok());
    const std::int64_t length = (*history)->length();
    AttentionOptions unknown;
    unknown.backend = "no such backend";
    EXPECT_EQ(model.forward(tokens, **history, state, logits, LogitRows::kLast, unknown, serially())
                  .code(),
              StatusCode::kUnavailable);
    EXPECT_EQ((*history)->length(), length);
    EXPECT_TRUE(
        model.forward(tokens, **history, state, logits, LogitRows::kLast, {}, serially()).ok());
    EXPECT_EQ((*history)->length(), 2 * length);
  }
}

}  // namespace
}  // namespace kvcache::runner
