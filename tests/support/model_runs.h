// Models run through histories in every way the tests compare.
#ifndef KVCACHE_TESTS_SUPPORT_MODEL_RUNS_H_
#define KVCACHE_TESTS_SUPPORT_MODEL_RUNS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runner/model/history.h"
#include "runner/model/model.h"
#include "support/slow.h"

namespace kvcache::testing {

// A way to run: where the rows go, and how many tokens a step takes (the last size repeats).
struct ModelRun {
  runner::HistoryOptions history;
  std::vector<std::int64_t> steps;  // empty: all at once
  AttentionOptions attention;
  ExecContext context;
};

inline std::string describe(const ModelRun& run) {
  std::string text = runner::name_of(run.history.kind);
  text += std::string(" ") + name_of(run.history.layout) + " " + name_of(run.history.dtype);
  if (run.history.kind == runner::HistoryKind::kPaged) {
    text += " page_size " + std::to_string(run.history.page_size);
  }
  for (const std::int64_t step : run.steps) text += " step " + std::to_string(step);
  return text;
}

// Every cache, layout and page size, for `max_length` tokens, or where tests are slow every second
// of these, which are of every kind. The absence of a cache comes first.
inline std::vector<runner::HistoryOptions> every_history(std::int64_t max_length,
                                                         DType dtype = DType::kF32) {
  using runner::HistoryKind;
  std::vector<runner::HistoryOptions> all;
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (const HistoryKind kind : {HistoryKind::kNone, HistoryKind::kDynamic, HistoryKind::kStatic,
                                   HistoryKind::kFunctional}) {
      runner::HistoryOptions options;
      options.kind = kind;
      options.dtype = dtype;
      options.layout = layout;
      options.max_length = max_length;
      all.push_back(options);
    }
    for (const std::int64_t page_size : {1, 16, 128}) {
      runner::HistoryOptions options;
      options.kind = HistoryKind::kPaged;
      options.dtype = dtype;
      options.layout = layout;
      options.max_length = max_length;
      options.page_size = page_size;
      all.push_back(options);
    }
  }
  if (kSlow) {
    for (std::size_t i = 1; 2 * i < all.size(); ++i) all[i] = all[2 * i];
    all.resize(all.size() / 2);
  }
  return all;
}

// Logits [tokens, vocab_size] of every position. Without a cache each step takes all tokens so far.
inline std::vector<float> logits_of(const runner::Model& model,
                                    std::span<const std::int32_t> tokens, const ModelRun& run) {
  auto made = runner::make_history(model.config(), run.history);
  EXPECT_TRUE(made.ok()) << made.status().to_string();
  if (!made.ok()) return {};
  runner::History& history = **made;
  runner::ForwardState state;
  std::vector<float> all;
  const auto total = static_cast<std::int64_t>(tokens.size());
  const std::int64_t vocab = model.config().vocab_size;
  std::size_t step = 0;
  for (std::int64_t done = 0; done < total;) {
    std::int64_t count = total;
    if (!run.steps.empty()) count = run.steps[std::min(step++, run.steps.size() - 1)];
    count = std::min(count, total - done);
    const std::int64_t first = history.keeps_history() ? done : 0;
    std::vector<float> logits;
    const Status status =
        model.forward(tokens.subspan(static_cast<std::size_t>(first),
                                     static_cast<std::size_t>(done + count - first)),
                      history, state, logits, runner::LogitRows::kAll, run.attention, run.context);
    EXPECT_TRUE(status.ok()) << status.to_string();
    if (!status.ok()) return {};
    all.insert(all.end(), logits.begin() + (done - first) * vocab, logits.end());
    done += count;
    EXPECT_EQ(history.length(), history.keeps_history() ? done : 0);
  }
  return all;
}

// The largest difference; infinite where sizes differ or a value is not a number.
inline float max_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return INFINITY;
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float difference = std::fabs(a[i] - b[i]);
    if (!(difference <= largest)) largest = std::isnan(difference) ? INFINITY : difference;
  }
  return largest;
}

// The root mean square of the difference, relative to that of b.
inline double relative_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double error = static_cast<double>(a[i]) - b[i];
    difference += error * error;
    size += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / size);
}

inline std::int32_t argmax(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// A small shape with everything that tells a mistake: grouped heads, sizes that are no multiple of
// a vector, biases, q and k norms.
inline runner::ModelConfig small_config() {
  runner::ModelConfig config;
  config.family = runner::ModelFamily::kQwen3;
  config.vocab_size = 131;
  config.hidden_size = 52;
  config.intermediate_size = 90;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 18;
  config.max_position_embeddings = 256;
  config.attention_bias = true;
  config.attention_output_bias = true;
  config.mlp_bias = true;
  config.qk_norm = true;
  return config;
}

// Ids that a model of `vocab_size` knows, in no order.
inline std::vector<std::int32_t> some_tokens(std::int64_t count, std::int64_t vocab_size) {
  std::vector<std::int32_t> tokens;
  std::uint64_t state = 12345;
  for (std::int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    tokens.push_back(
        static_cast<std::int32_t>((state >> 33) % static_cast<std::uint64_t>(vocab_size)));
  }
  return tokens;
}

// The greedy continuation of `prompt` by `count` tokens, through logits alone.
inline std::vector<std::int32_t> greedy_of(const runner::Model& model,
                                           std::vector<std::int32_t> prompt, std::int64_t count,
                                           const ModelRun& run) {
  auto made = runner::make_history(model.config(), run.history);
  EXPECT_TRUE(made.ok()) << made.status().to_string();
  if (!made.ok()) return {};
  runner::History& history = **made;
  runner::ForwardState state;
  std::vector<float> logits;
  std::vector<std::int32_t> text = std::move(prompt);
  const std::size_t prompt_size = text.size();
  std::size_t done = 0;
  std::size_t step = 0;
  while (text.size() < prompt_size + static_cast<std::size_t>(count)) {
    std::size_t size = text.size() - done;
    if (!run.steps.empty() && done < prompt_size) {
      size = std::min(size,
                      static_cast<std::size_t>(run.steps[std::min(step++, run.steps.size() - 1)]));
    }
    const std::size_t first = history.keeps_history() ? done : 0;
    const Status status =
        model.forward(std::span(text).subspan(first, done + size - first), history, state, logits,
                      runner::LogitRows::kLast, run.attention, run.context);
    EXPECT_TRUE(status.ok()) << status.to_string();
    if (!status.ok()) return {};
    done += size;
    if (done == text.size()) text.push_back(argmax(logits));
  }
  return {text.begin() + static_cast<std::ptrdiff_t>(prompt_size), text.end()};
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_MODEL_RUNS_H_
