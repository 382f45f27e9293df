#include "runner/model/model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <new>
#include <utility>

#include "runner/ops/ops.h"

namespace kvcache::runner {
namespace {

const float* bias_of(const std::vector<float>& bias) {
  return bias.empty() ? nullptr : bias.data();
}

void grow(std::vector<float>& buffer, std::int64_t elements) {
  if (buffer.size() < static_cast<std::size_t>(elements)) {
    buffer.resize(static_cast<std::size_t>(elements));
  }
}

// fn(first, count) over the rows of a step, in pieces that keep every thread busy; one token's
// rows on the calling thread.
template <typename Fn>
void for_rows(std::int64_t rows, Executor& executor, Fn&& fn) {
  constexpr std::int64_t kPiece = 8;
  if (rows <= kPiece) return fn(std::int64_t{0}, rows);
  auto piece = [&](std::int64_t task) {
    fn(task * kPiece, std::min(kPiece, rows - task * kPiece));
  };
  executor.parallel_for((rows + kPiece - 1) / kPiece,
                        [](void* context, std::int64_t task, std::int32_t) noexcept {
                          (*static_cast<decltype(piece)*>(context))(task);
                        },
                        &piece);
}

// Adds the seconds of its life to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() { sum_ += std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  double& sum_;
  const Clock::time_point start_ = Clock::now();
};

// An open step of a history: abandoned unless it was ended, whatever goes wrong in between.
class OpenStep {
 public:
  explicit OpenStep(History& history) : history_(&history) {}
  OpenStep(const OpenStep&) = delete;
  OpenStep& operator=(const OpenStep&) = delete;
  ~OpenStep() {
    if (history_ != nullptr) history_->abandon();
  }

  Status end() {
    KVC_RETURN_IF_ERROR(history_->end());
    history_ = nullptr;
    return {};
  }

 private:
  History* history_;
};

}  // namespace

std::vector<float> rope_inverse_frequencies(const RopeConfig& rope, std::int64_t head_dim) {
  std::vector<float> frequencies(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    double frequency = 1.0 / std::pow(rope.theta, exponent);
    if (rope.type == RopeConfig::Type::kLlama3) {
      // Waves longer than the low bound are slowed by `factor`, shorter than the high bound kept,
      // and those between are blended.
      const auto context = static_cast<double>(rope.original_max_position_embeddings);
      const double wavelength = 2.0 * M_PI / frequency;
      if (wavelength > context / rope.low_freq_factor) {
        frequency /= rope.factor;
      } else if (wavelength >= context / rope.high_freq_factor) {
        const double kept = (context / wavelength - rope.low_freq_factor) /
                            (rope.high_freq_factor - rope.low_freq_factor);
        frequency = (1.0 - kept) * frequency / rope.factor + kept * frequency;
      }
    }
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

Model::Model(ModelConfig config, Weights weights)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      inverse_frequencies_(rope_inverse_frequencies(config_.rope, config_.head_dim)) {}

Result<Model> Model::load(const std::string& directory, WeightMode mode,
                          Activations activations) try {
  KVC_ASSIGN_OR_RETURN(ModelConfig config, load_model_config(directory));
  KVC_ASSIGN_OR_RETURN(Weights weights, load_weights(directory, config, mode, activations));
  config.tie_word_embeddings = weights.head.data == weights.embedding.data;
  config.notes.insert(config.notes.end(), weights.notes.begin(), weights.notes.end());
  return Model(std::move(config), std::move(weights));
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, directory + ": found no memory left to load it");
}

Result<Model> Model::random(const ModelConfig& config, WeightType type, std::uint64_t seed,
                            Activations activations) {
  KVC_ASSIGN_OR_RETURN(Weights weights, random_weights(config, type, seed, activations));
  return Model(config, std::move(weights));
}

Status Model::check(const StepTokens& tokens, const History& history) const {
  std::int64_t sum = 0;
  for (const std::int64_t count : tokens.counts) {
    if (count < 0) {
      return Status(StatusCode::kInvalidArgument,
                    "counts: found " + std::to_string(count) + ", expected 0 or more");
    }
    sum += count;
  }
  if (tokens.ids.empty()) {
    return Status(StatusCode::kInvalidArgument, "tokens: found none, expected at least one");
  }
  if (static_cast<std::int64_t>(tokens.counts.size()) != history.num_sequences()) {
    return Status(StatusCode::kInvalidArgument,
                  "counts: found " + std::to_string(tokens.counts.size()) + ", expected " +
                      std::to_string(history.num_sequences()) + " (the sequences of the history)");
  }
  if (static_cast<std::int64_t>(tokens.ids.size()) != sum) {
    return Status(StatusCode::kInvalidArgument,
                  "tokens: found " + std::to_string(tokens.ids.size()) + ", expected " +
                      std::to_string(sum) + " (the sum of counts)");
  }
  for (const std::int32_t token : tokens.ids) {
    if (token < 0 || token >= config_.vocab_size) {
      return Status(StatusCode::kInvalidArgument, "tokens: found id " + std::to_string(token) +
                                                      ", expected 0 .. " +
                                                      std::to_string(config_.vocab_size - 1));
    }
  }
  for (std::size_t i = 0; i < tokens.counts.size(); ++i) {
    const std::int64_t first = history.next_position(static_cast<std::int64_t>(i));
    if (tokens.counts[i] > 0 && tokens.counts[i] > config_.max_position_embeddings - first) {
      return Status(StatusCode::kOutOfRange, "context: found " +
                                                 std::to_string(first + tokens.counts[i]) +
                                                 " tokens, expected at most " +
                                                 std::to_string(config_.max_position_embeddings) +
                                                 " (max_position_embeddings)");
    }
  }
  return {};
}

Status Model::forward(std::span<const std::int32_t> tokens, History& history, ForwardState& state,
                      std::vector<float>& logits, LogitRows rows, const AttentionOptions& attention,
                      const ExecContext& context) const {
  const std::int64_t counts[] = {static_cast<std::int64_t>(tokens.size())};
  return forward({tokens, counts}, history, state, logits, rows, attention, context);
}

Status Model::forward(const StepTokens& tokens, History& history, ForwardState& state,
                      std::vector<float>& logits, LogitRows rows, const AttentionOptions& attention,
                      const ExecContext& context) const try {
  KVC_RETURN_IF_ERROR(check(tokens, history));
  const auto count = static_cast<std::int64_t>(tokens.ids.size());
  state.positions_.clear();
  state.logit_rows_.clear();
  for (std::size_t i = 0; i < tokens.counts.size(); ++i) {
    const std::int64_t first = history.next_position(static_cast<std::int64_t>(i));
    for (std::int64_t t = 0; t < tokens.counts[i]; ++t) {
      if (rows == LogitRows::kAll || t + 1 == tokens.counts[i]) {
        state.logit_rows_.push_back(static_cast<std::int64_t>(state.positions_.size()));
      }
      state.positions_.push_back(first + t);
    }
  }
  rope_angles(state.positions_, inverse_frequencies_, state.cosines_, state.sines_);
  const auto num_rows = static_cast<std::int64_t>(state.logit_rows_.size());
  logits.resize(static_cast<std::size_t>(num_rows * config_.vocab_size));

  KVC_RETURN_IF_ERROR(history.begin(tokens.counts, tokens.ids));
  OpenStep step(history);
  KVC_RETURN_IF_ERROR(run_layers(tokens.ids, history, state, attention, context));
  const std::int64_t hidden = config_.hidden_size;
  float* last = state.hidden_.data();
  for (std::int64_t i = 0; i < num_rows; ++i) {
    const float* row =
        state.hidden_.data() + state.logit_rows_[static_cast<std::size_t>(i)] * hidden;
    if (row != last + i * hidden) std::copy_n(row, hidden, last + i * hidden);
  }
  rms_norm(last, num_rows, hidden, weights_.final_norm.data(),
           static_cast<float>(config_.rms_norm_eps), last);
  const Product head[] = {{&weights_.head, nullptr, logits.data()}};
  multiply(last, num_rows, head, state, context.get());
  KVC_RETURN_IF_ERROR(step.end());
  state.counters_.rows_computed += count;
  state.counters_.rows_read += history.rows_read();
  return {};
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory,
                "forward: found no memory for " + std::to_string(tokens.ids.size()) + " tokens");
}

Status Model::run_layers(std::span<const std::int32_t> tokens, History& history,
                         ForwardState& state, const AttentionOptions& attention,
                         const ExecContext& context) const {
  const auto count = static_cast<std::int64_t>(tokens.size());
  const std::int64_t hidden = config_.hidden_size;
  const std::int64_t q_size = config_.num_heads * config_.head_dim;
  const std::int64_t kv_size = config_.num_kv_heads * config_.head_dim;
  grow(state.hidden_, count * hidden);
  grow(state.normed_, count * hidden);
  grow(state.projected_, count * hidden);
  grow(state.q_, count * q_size);
  grow(state.attended_, count * q_size);
  grow(state.k_, count * kv_size);
  grow(state.v_, count * kv_size);
  grow(state.gate_, count * config_.intermediate_size);
  grow(state.up_, count * config_.intermediate_size);

  for (std::int64_t i = 0; i < count; ++i) {
    widen_row(weights_.embedding, tokens[static_cast<std::size_t>(i)],
              state.hidden_.data() + i * hidden);
  }
  for (std::int64_t index = 0; index < config_.num_layers; ++index) {
    KVC_RETURN_IF_ERROR(attend_layer(index, count, history, state, attention, context));
    feed_forward(weights_.layers[static_cast<std::size_t>(index)], count, state, context.get());
  }
  return {};
}

Status Model::attend_layer(std::int64_t index, std::int64_t count, History& history,
                           ForwardState& state, const AttentionOptions& attention,
                           const ExecContext& context) const {
  const LayerWeights& layer = weights_.layers[static_cast<std::size_t>(index)];
  Executor& executor = context.get();
  const std::int64_t hidden = config_.hidden_size;
  const std::int64_t head_dim = config_.head_dim;
  const std::int64_t heads = config_.num_heads;
  const std::int64_t kv_heads = config_.num_kv_heads;
  const auto epsilon = static_cast<float>(config_.rms_norm_eps);

  float* normed = state.normed_.data();
  float* q = state.q_.data();
  float* k = state.k_.data();
  float* v = state.v_.data();
  for_rows(count, executor, [&](std::int64_t first, std::int64_t rows) {
    rms_norm(state.hidden_.data() + first * hidden, rows, hidden, layer.attention_norm.data(),
             epsilon, normed + first * hidden);
  });
  const Product qkv[] = {{&layer.q, bias_of(layer.q_bias), q},
                         {&layer.k, bias_of(layer.k_bias), k},
                         {&layer.v, bias_of(layer.v_bias), v}};
  multiply(normed, count, qkv, state, executor);
  const std::int64_t half = head_dim / 2;
  for_rows(count, executor, [&](std::int64_t first, std::int64_t rows) {
    float* q_rows = q + first * heads * head_dim;
    float* k_rows = k + first * kv_heads * head_dim;
    if (config_.qk_norm) {
      rms_norm(q_rows, rows * heads, head_dim, layer.q_norm.data(), epsilon, q_rows);
      rms_norm(k_rows, rows * kv_heads, head_dim, layer.k_norm.data(), epsilon, k_rows);
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* cosines = state.cosines_.data() + (first + i) * half;
      const float* sines = state.sines_.data() + (first + i) * half;
      rope_rotate(q_rows + i * heads * head_dim, heads, head_dim, cosines, sines);
      rope_rotate(k_rows + i * kv_heads * head_dim, kv_heads, head_dim, cosines, sines);
    }
  });

  float* attended = state.attended_.data();
  AttentionInputs inputs;
  inputs.q = TensorView(q, DType::kF32, {count, heads, head_dim});
  inputs.k = TensorView(k, DType::kF32, {count, kv_heads, head_dim});
  inputs.v = TensorView(v, DType::kF32, {count, kv_heads, head_dim});
  {
    const Stopwatch stopwatch(state.counters_.attend_seconds);
    KVC_RETURN_IF_ERROR(history.attend(
        index, inputs, MutableTensorView(attended, DType::kF32, {count, heads, head_dim}),
        attention, context));
  }
  float* projected = state.projected_.data();
  const Product out[] = {{&layer.o, bias_of(layer.o_bias), projected}};
  multiply(attended, count, out, state, executor);
  for_rows(count, executor, [&](std::int64_t first, std::int64_t rows) {
    add_in_place(state.hidden_.data() + first * hidden, projected + first * hidden, rows * hidden);
  });
  return {};
}

void Model::multiply(const float* x, std::int64_t rows, std::span<const Product> products,
                     ForwardState& state, Executor& executor) {
  const Stopwatch stopwatch(state.counters_.product_seconds);
  linear(x, rows, products, state.scratch_, executor);
}

void Model::feed_forward(const LayerWeights& layer, std::int64_t count, ForwardState& state,
                         Executor& executor) const {
  const std::int64_t hidden = config_.hidden_size;
  float* normed = state.normed_.data();
  float* projected = state.projected_.data();
  const std::int64_t inner = config_.intermediate_size;
  for_rows(count, executor, [&](std::int64_t first, std::int64_t rows) {
    rms_norm(state.hidden_.data() + first * hidden, rows, hidden, layer.feed_forward_norm.data(),
             static_cast<float>(config_.rms_norm_eps), normed + first * hidden);
  });
  const Product gate_up[] = {{&layer.gate, bias_of(layer.gate_bias), state.gate_.data()},
                             {&layer.up, bias_of(layer.up_bias), state.up_.data()}};
  multiply(normed, count, gate_up, state, executor);
  for_rows(count, executor, [&](std::int64_t first, std::int64_t rows) {
    silu_multiply(state.gate_.data() + first * inner, state.up_.data() + first * inner,
                  rows * inner);
  });
  const Product down[] = {{&layer.down, bias_of(layer.down_bias), projected}};
  multiply(state.gate_.data(), count, down, state, executor);
  for_rows(count, executor, [&](std::int64_t first, std::int64_t rows) {
    add_in_place(state.hidden_.data() + first * hidden, projected + first * hidden, rows * hidden);
  });
}

}  // namespace kvcache::runner
