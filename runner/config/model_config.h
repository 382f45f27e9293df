// What a model directory says about its model: config.json and generation_config.json.
#ifndef KVCACHE_RUNNER_CONFIG_MODEL_CONFIG_H_
#define KVCACHE_RUNNER_CONFIG_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"

namespace kvcache::runner {

enum class ModelFamily : std::uint8_t { kLlama, kQwen2, kQwen3 };

// "llama", "qwen2", "qwen3".
const char* name_of(ModelFamily family) noexcept;

// Rotary position embedding. Pair i of a head turns by position / theta^(2i / head_dim); kLlama3
// then stretches the slow pairs (Llama 3.1 technical report; transformers, modeling_rope_utils.py).
struct RopeConfig {
  enum class Type : std::uint8_t { kDefault, kLlama3 };

  Type type = Type::kDefault;
  double theta = 10000.0;
  // kLlama3 only. factor >= 1, 0 < low_freq_factor < high_freq_factor.
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  std::int64_t original_max_position_embeddings = 0;
};

// Every number here has been checked: sizes are positive and within the limits of
// model_config.cc, num_heads is a multiple of num_kv_heads, head_dim is even.
struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;  // num_heads * head_dim may differ from hidden_size
  std::int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  bool tie_word_embeddings = false;
  bool attention_bias = false;         // q_proj, k_proj and v_proj have a bias
  bool attention_output_bias = false;  // o_proj has one (Llama and Qwen3 with attention_bias)
  bool mlp_bias = false;               // gate_proj, up_proj and down_proj have one
  bool qk_norm = false;                // an RMS norm per head on q and k before the rotation

  // Generation stops at any of these. As in transformers, a generation_config.json decides alone,
  // even when it names none; config.json counts only where there is no such file.
  std::vector<std::int32_t> eos_token_ids;

  // Where the files contradict one another or themselves: a line each, which names the field, what
  // was found and what was taken.
  std::vector<std::string> notes;
};

// Reads `directory`/config.json and, where there is one, `directory`/generation_config.json. Both
// spellings are understood: rope_theta + rope_scaling, and rope_parameters as transformers 5 writes
// it. Absent fields take the defaults of transformers' configuration of the family, except the
// sizes, which must be there. Errors: kNotFound, kIo: no readable file. kCorrupt: not JSON, a
// missing or absurd value.
//         kUnsupported: an architecture, activation, rotation, attention or quantization that this
//         runner does not compute. Each names file, field, found and expected.
Result<ModelConfig> load_model_config(const std::string& directory);

// The same from text; `name` and `generation_name` are what errors call the files.
Result<ModelConfig> parse_model_config(
    std::string_view config_json, const std::string& name,
    std::optional<std::string_view> generation_config_json = std::nullopt,
    const std::string& generation_name = {});

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_CONFIG_MODEL_CONFIG_H_
