// The weights of a model, as stored (mapped from the file), widened, or quantised.
#ifndef KVCACHE_RUNNER_MODEL_WEIGHTS_H_
#define KVCACHE_RUNNER_MODEL_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/types.h"
#include "runner/config/model_config.h"
#include "runner/ops/linear.h"
#include "runner/safetensors/checkpoint.h"

namespace kvcache::runner {

// kAuto widens to f32 below 100 M parameters and keeps the stored dtype above. kInt8 holds each row
// of a matrix as int8 with a scale (quantise_row in runner/ops/linear.h); norms and biases stay
// f32.
enum class WeightMode : std::uint8_t { kAuto, kF32, kStored, kInt8 };

Result<WeightMode> parse_weight_mode(std::string_view name);   // "auto", "f32", "stored", "int8"
Result<Activations> parse_activations(std::string_view name);  // "int16", "int8"

// Vectors (norms, biases) are float32; empty where the family has none.
struct LayerWeights {
  Weight q, k, v, o;      // [heads * head_dim, hidden] and back
  Weight gate, up, down;  // [intermediate, hidden] and back
  std::vector<float> q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;
  std::vector<float> attention_norm, feed_forward_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;                     // [head_dim]
};

// Memory of matrices that are not mapped, in huge pages where the system has them: one row of
// inputs reads all of it, and looks up an address for each page.
class WeightMemory {
 public:
  WeightMemory() = default;
  WeightMemory(WeightMemory&& other) noexcept;
  WeightMemory& operator=(WeightMemory&& other) noexcept;
  ~WeightMemory();

  // Zeros, aligned to a line of cache; they live and stay where they are until this ends. Throws
  // bad_alloc.
  std::byte* take(std::int64_t bytes);

 private:
  std::vector<Region> regions_;
  std::int64_t left_ = 0;  // bytes at the end of the last
};

struct Weights {
  Weight embedding;  // [vocab, hidden]
  Weight head;       // [vocab, hidden]; the embedding itself where tied
  std::vector<float> final_norm;
  std::vector<LayerWeights> layers;

  WeightType type = WeightType::kF32;  // of the matrices, all of them
  DType dtype = DType::kF32;           // of the matrices; of kInt8 what kAuto would have held
  Activations activations = Activations::kInt16;  // of kInt8
  std::int64_t num_parameters = 0;
  std::int64_t nbytes = 0;  // of the matrices, their scales and the vectors, as held

  std::vector<std::string> notes;  // where config and files disagree: what was taken

  std::optional<Checkpoint> mapped;  // what stored matrices point into
  WeightMemory owned;                // what other matrices and scales point into
};

// Every tensor the family needs, checked by name and shape. With tie_word_embeddings the head is
// the embedding as in transformers: unless both are stored and differ, and from whichever is
// stored. Errors: kInvalidArgument for 8 bit activations where weights are not kInt8; kNotFound for
// a missing tensor, kCorrupt for a wrong shape, kUnsupported for matrices of different dtypes with
// WeightMode::kStored and for a NaN or an infinity in a matrix with WeightMode::kInt8,
// kOutOfMemory.
Result<Weights> load_weights(const std::string& directory, ModelConfig config, WeightMode mode,
                             Activations activations = Activations::kInt16);

// Normal random matrices scaled by 1 / sqrt(in), seeded; norms 1 + small noise, biases small.
// Of kInt8: the f32 ones, quantised.
Result<Weights> random_weights(const ModelConfig& config, WeightType type, std::uint64_t seed,
                               Activations activations = Activations::kInt16);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_WEIGHTS_H_
