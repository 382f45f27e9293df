// Model: a decoder of the Llama family (Llama 2 / 3.x, Qwen2 / 2.5, Qwen3) over the public caches.
#ifndef KVCACHE_RUNNER_MODEL_MODEL_H_
#define KVCACHE_RUNNER_MODEL_MODEL_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvcache/kvcache.h"
#include "runner/config/model_config.h"
#include "runner/model/history.h"
#include "runner/model/weights.h"

namespace kvcache::runner {

// What a step of the model did, counted (not derived from formulas).
struct StepCounters {
  std::int64_t rows_computed = 0;  // K/V rows a layer computed
  std::int64_t rows_read = 0;      // K/V rows a layer's attention read
  double product_seconds = 0;      // in linear layers, waiting for threads included
  double attend_seconds = 0;       // in storing rows and attending
};

// Scratch of forward passes, and what they counted. One per conversation; grows to the largest
// step. Thread safety: used by one forward pass at a time.
class ForwardState {
 public:
  const StepCounters& counters() const { return counters_; }

 private:
  friend class Model;
  StepCounters counters_;
  std::vector<std::int64_t> positions_;
  std::vector<std::int64_t> logit_rows_;  // packed rows that logits are wanted of
  std::vector<float> cosines_, sines_;
  std::vector<float> hidden_, normed_, q_, k_, v_, attended_, projected_, gate_, up_, scratch_;
};

enum class LogitRows : std::uint8_t { kLast, kAll };

// The tokens of a step, packed: those of the history's first sequence, then those of its second,
// and so on.
struct StepTokens {
  std::span<const std::int32_t> ids;     // [sum of counts]
  std::span<const std::int64_t> counts;  // [history.num_sequences()] of each sequence, >= 0
};

// Immutable after loading. Thread safety: forward passes over distinct histories and states may run
// together.
class Model {
 public:
  // Loads a model directory as Hugging Face writes it: config.json, generation_config.json,
  // model.safetensors or shards. Errors: kNotFound, kIo, kCorrupt, kUnsupported, kOutOfMemory; one
  // line that names file, field, found and expected.
  static Result<Model> load(const std::string& directory, WeightMode mode = WeightMode::kAuto,
                            Activations activations = Activations::kInt16);

  // A model of the given shape with random weights (normal, seeded; norms near 1), for tests and
  // benchmarks. Errors: kOutOfMemory.
  static Result<Model> random(const ModelConfig& config, WeightType type, std::uint64_t seed,
                              Activations activations = Activations::kInt16);

  const ModelConfig& config() const { return config_; }
  std::int64_t num_parameters() const { return weights_.num_parameters; }
  std::int64_t weight_bytes() const { return weights_.nbytes; }
  WeightType weight_type() const { return weights_.type; }

  // That of the weights: f32 for f32 weights; for int8 ones as if they had been loaded by kAuto.
  DType default_kv_dtype() const { return weights_.dtype; }

  // One step: stores the keys and values of the tokens, which follow what each sequence of
  // `history` holds (all tokens from the first where it keeps no history), and writes logits [n,
  // vocab_size] of the last token of each sequence that has one, or of all tokens. Nothing is
  // stored if it fails. A token's logits depend on its sequence alone, not on the others of the
  // step. Errors: kInvalidArgument for no tokens, ids outside the vocabulary or counts that do not
  // match; kOutOfRange past max_position_embeddings; what the history reports.
  Status forward(const StepTokens& tokens, History& history, ForwardState& state,
                 std::vector<float>& logits, LogitRows rows = LogitRows::kLast,
                 const AttentionOptions& attention = {}, const ExecContext& context = {}) const;

  // The same for a history of one sequence.
  Status forward(std::span<const std::int32_t> tokens, History& history, ForwardState& state,
                 std::vector<float>& logits, LogitRows rows = LogitRows::kLast,
                 const AttentionOptions& attention = {}, const ExecContext& context = {}) const;

 private:
  Model(ModelConfig config, Weights weights);
  Status check(const StepTokens& tokens, const History& history) const;
  Status run_layers(std::span<const std::int32_t> tokens, History& history, ForwardState& state,
                    const AttentionOptions& attention, const ExecContext& context) const;
  Status attend_layer(std::int64_t index, std::int64_t count, History& history, ForwardState& state,
                      const AttentionOptions& attention, const ExecContext& context) const;
  static void multiply(const float* x, std::int64_t rows, std::span<const Product> products,
                       ForwardState& state, Executor& executor);
  void feed_forward(const LayerWeights& layer, std::int64_t count, ForwardState& state,
                    Executor& executor) const;

  ModelConfig config_;
  Weights weights_;
  std::vector<float> inverse_frequencies_;  // [head_dim / 2]
};

// 1 / theta^(2i / head_dim) for i < head_dim / 2, stretched where the config says llama3
// (transformers, modeling_rope_utils.py; the Llama 3.1 technical report).
std::vector<float> rope_inverse_frequencies(const RopeConfig& rope, std::int64_t head_dim);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_MODEL_H_
