// The weights of a model, as stored (mapped from the file) or widened.
#ifndef KVCACHE_RUNNER_MODEL_WEIGHTS_H_
#define KVCACHE_RUNNER_MODEL_WEIGHTS_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"
#include "kvcache/types.h"
#include "runner/config/model_config.h"
#include "runner/ops/linear.h"
#include "runner/safetensors/checkpoint.h"

namespace kvcache::runner {

// kAuto widens to f32 below 100 M parameters and keeps the stored dtype above.
enum class WeightMode : std::uint8_t { kAuto, kF32, kStored };

Result<WeightMode> parse_weight_mode(std::string_view name);  // "auto", "f32", "stored"

// Vectors (norms, biases) are float32; empty where the family has none.
struct LayerWeights {
  Weight q, k, v, o;      // [heads * head_dim, hidden] and back
  Weight gate, up, down;  // [intermediate, hidden] and back
  std::vector<float> q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;
  std::vector<float> attention_norm, feed_forward_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;                     // [head_dim]
};

struct Weights {
  Weight embedding;  // [vocab, hidden]
  Weight head;       // [vocab, hidden]; the embedding itself where tied
  std::vector<float> final_norm;
  std::vector<LayerWeights> layers;

  DType dtype = DType::kF32;  // of the matrices, all of them
  std::int64_t num_parameters = 0;
  std::int64_t nbytes = 0;  // of the matrices and vectors, as held

  std::optional<Checkpoint> mapped;              // what stored matrices point into
  std::deque<std::vector<std::uint32_t>> owned;  // what widened matrices point into
};

// Every tensor the family needs, checked by name and shape.
// Errors: kNotFound for a missing tensor, kCorrupt for a wrong shape, kUnsupported for matrices of
// different dtypes with WeightMode::kStored, kOutOfMemory.
Result<Weights> load_weights(const std::string& directory, const ModelConfig& config,
                             WeightMode mode);

// Normal random matrices scaled by 1 / sqrt(in), seeded; norms 1 + small noise, biases small.
Result<Weights> random_weights(const ModelConfig& config, DType dtype, std::uint64_t seed);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_WEIGHTS_H_
