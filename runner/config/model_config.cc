#include "runner/config/model_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

#include "runner/config/json_file.h"
#include "runner/config/likely_cause.h"

namespace kvcache::runner {
namespace {

// Far above any published model, low enough that products of a few sizes stay within int64.
constexpr std::int64_t kMaxConfigBytes = std::int64_t{16} << 20;
constexpr std::int64_t kMaxHidden = std::int64_t{1} << 20;
constexpr std::int64_t kMaxIntermediate = std::int64_t{1} << 22;
constexpr std::int64_t kMaxVocab = std::int64_t{1} << 24;
constexpr std::int64_t kMaxLayers = 4096;
constexpr std::int64_t kMaxHeads = 4096;
constexpr std::int64_t kMaxHeadDim = 4096;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 30;

struct FamilyTraits {
  ModelFamily family;
  const char* model_type;
  const char* architecture;
};
constexpr FamilyTraits kFamilies[] = {
    {ModelFamily::kLlama, "llama", "LlamaForCausalLM"},
    {ModelFamily::kQwen2, "qwen2", "Qwen2ForCausalLM"},
    {ModelFamily::kQwen3, "qwen3", "Qwen3ForCausalLM"},
};

Result<ModelFamily> parse_family(const JsonObject& root) {
  const FamilyTraits* by_type = nullptr;
  if (root.has("model_type")) {
    KVC_ASSIGN_OR_RETURN(const std::string type, root.text("model_type"));
    for (const FamilyTraits& traits : kFamilies) {
      if (type == traits.model_type) by_type = &traits;
    }
    if (by_type == nullptr) {
      return root.error(StatusCode::kUnsupported, "model_type", "llama, qwen2 or qwen3");
    }
  }
  const Json* architectures = root.find("architectures");
  if (architectures == nullptr || *architectures == Json::array()) {
    if (by_type == nullptr) {
      return root.error(StatusCode::kCorrupt, "model_type", "llama, qwen2 or qwen3");
    }
    return by_type->family;
  }
  if (!architectures->is_array()) {
    return root.error(StatusCode::kCorrupt, "architectures", "a list of names");
  }
  const FamilyTraits* listed = nullptr;
  for (const FamilyTraits& traits : kFamilies) {
    if (std::find(architectures->begin(), architectures->end(), Json(traits.architecture)) ==
        architectures->end()) {
      continue;
    }
    if (by_type == nullptr || by_type == &traits) return traits.family;
    listed = &traits;
  }
  const std::string where = root.where() + ": architectures";
  const std::string found = describe(architectures->front());
  if (listed == nullptr) {
    return found_expected(StatusCode::kUnsupported, where, found,
                          "LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM");
  }
  return found_expected(StatusCode::kCorrupt, where, found,
                        std::string(by_type->architecture) + " for this model_type");
}

// Whether a window slides over the keys of some layer of Qwen2 and Qwen3, where no layer_types say
// it.
Result<bool> slides(const JsonObject& root, std::int64_t num_layers) {
  KVC_ASSIGN_OR_RETURN(const bool in_use, root.boolean("use_sliding_window", false));
  const bool absent = !root.node().contains("sliding_window");
  if (!in_use || root.has("layer_types") || !(absent || root.has("sliding_window"))) return false;
  KVC_ASSIGN_OR_RETURN(const std::int64_t first,
                       root.integer("max_window_layers", 0, INT64_MAX, 28));
  return first < num_layers;
}

// What transformers would compute and this runner does not, by name.
Status refuse_unsupported(const JsonObject& root, ModelFamily family) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const Json* config = root.find(key);
    if (config == nullptr) continue;
    std::string found = describe(*config);
    if (config->is_object()) {
      const auto method = config->find("quant_method");
      if (method != config->end()) found = describe(*method);
    }
    return found_expected(StatusCode::kUnsupported, root.where() + ": " + key, found,
                          "none: quantized weights are not supported");
  }
  KVC_ASSIGN_OR_RETURN(const std::string activation, root.text("hidden_act", "silu"));
  if (activation != "silu") {
    return root.error(StatusCode::kUnsupported, "hidden_act", "silu");
  }
  if (family != ModelFamily::kLlama) {
    KVC_ASSIGN_OR_RETURN(const std::int64_t layers,
                         root.integer("num_hidden_layers", 1, kMaxLayers));
    KVC_ASSIGN_OR_RETURN(const bool window, slides(root, layers));
    if (window) {
      return root.error(StatusCode::kUnsupported, "use_sliding_window",
                        "false: sliding_window attention is not supported");
    }
  }
  if (const Json* types = root.find("layer_types")) {
    if (!types->is_array()) {
      return root.error(StatusCode::kCorrupt, "layer_types", "a list of names");
    }
    for (const Json& type : *types) {
      if (type != Json("full_attention")) {
        return found_expected(StatusCode::kUnsupported, root.where() + ": layer_types",
                              describe(type), "full_attention");
      }
    }
  }
  return Status();
}

Status refuse_partial_rotation(const JsonObject& object) {
  const Json* factor = object.find("partial_rotary_factor");
  if (factor == nullptr || (factor->is_number() && factor->get<double>() == 1.0)) return Status();
  return object.error(StatusCode::kUnsupported, "partial_rotary_factor", "1");
}

// transformers takes rope_scaling over rope_parameters, and a rope_theta inside over one outside;
// of original_max_position_embeddings it is the other way round.
Result<RopeConfig> parse_rope(const JsonObject& root, std::int64_t max_position_embeddings,
                              std::vector<std::string>* notes) {
  RopeConfig rope;
  KVC_RETURN_IF_ERROR(refuse_partial_rotation(root));
  KVC_ASSIGN_OR_RETURN(rope.theta, root.number_above("rope_theta", 0.0, rope.theta));
  std::string_view key = "rope_scaling";
  if (!root.has(key) || (root.find(key)->is_object() && root.find(key)->empty())) {
    key = "rope_parameters";
    if (!root.has(key)) return rope;
  }
  KVC_ASSIGN_OR_RETURN(const JsonObject fields, root.object(key));
  for (const auto& [name, value] : fields.node().items()) {
    if (value.is_object()) {
      return fields.error(StatusCode::kUnsupported, name, "one rotation for all layers");
    }
  }
  KVC_RETURN_IF_ERROR(refuse_partial_rotation(fields));
  KVC_ASSIGN_OR_RETURN(rope.theta, fields.number_above("rope_theta", 0.0, rope.theta));
  const std::string_view type_key = fields.has("rope_type") ? "rope_type" : "type";
  // A factor without a type would be ignored; whoever wrote it meant some scaling.
  if (!fields.has(type_key) && fields.has("factor")) {
    return fields.error(StatusCode::kCorrupt, "rope_type", "default or llama3");
  }
  KVC_ASSIGN_OR_RETURN(const std::string type, fields.text(type_key, "default"));
  if (type == "default") return rope;
  if (type != "llama3") {
    return fields.error(StatusCode::kUnsupported, type_key, "default or llama3");
  }
  rope.type = RopeConfig::Type::kLlama3;
  KVC_ASSIGN_OR_RETURN(rope.factor, fields.number_above("factor", 0.0));
  if (rope.factor < 1.0) {
    return fields.error(StatusCode::kCorrupt, "factor", "a number of at least 1");
  }
  KVC_ASSIGN_OR_RETURN(rope.low_freq_factor, fields.number_above("low_freq_factor", 0.0));
  KVC_ASSIGN_OR_RETURN(rope.high_freq_factor,
                       fields.number_above("high_freq_factor", rope.low_freq_factor));
  constexpr const char* kOriginal = "original_max_position_embeddings";
  if (!root.has(kOriginal)) {
    KVC_ASSIGN_OR_RETURN(rope.original_max_position_embeddings,
                         fields.integer(kOriginal, 1, kMaxPositions, max_position_embeddings));
    return rope;
  }
  KVC_ASSIGN_OR_RETURN(rope.original_max_position_embeddings,
                       root.integer(kOriginal, 1, kMaxPositions));
  if (fields.has(kOriginal) && *fields.find(kOriginal) != *root.find(kOriginal)) {
    notes->push_back(root.where() + ": " + kOriginal + ": taken is " +
                     describe(*root.find(kOriginal)) + ", as transformers takes it, not the " +
                     describe(*fields.find(kOriginal)) + " of " + std::string(key));
  }
  return rope;
}

// A whole number, also one written as 40.0.
std::optional<std::int64_t> whole_number(const Json& value) {
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX) return INT64_MAX;
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const double number = value.get<double>();
  if (std::trunc(number) != number || std::abs(number) > 1e15) return std::nullopt;
  return static_cast<std::int64_t>(number);
}

// An id that no token has ends nothing, as in transformers; -1 is how some write "none".
Status parse_eos(const JsonObject& object, ModelConfig* config) {
  const Json* value = object.find("eos_token_id");
  if (value == nullptr) return Status();
  const Json list = value->is_array() ? *value : Json::array({*value});
  const std::string range = "token ids 0 .. " + std::to_string(config->vocab_size - 1);
  for (const Json& item : list) {
    const std::string where = object.where() + ": eos_token_id";
    const std::optional<std::int64_t> id = whole_number(item);
    if (!id) return found_expected(StatusCode::kCorrupt, where, describe(item), range);
    if (*id >= 0 && *id < config->vocab_size) {
      config->eos_token_ids.push_back(static_cast<std::int32_t>(*id));
    } else if (*id != -1) {
      config->notes.push_back(where + ": found " + describe(item) + ", expected " + range +
                              ": it ends no text");
    }
  }
  return Status();
}

// Field by field, as transformers' configuration_{llama,qwen2,qwen3}.py read them.
Result<ModelConfig> parse_fields(const JsonObject& root) {
  ModelConfig config;
  KVC_ASSIGN_OR_RETURN(config.family, parse_family(root));
  KVC_RETURN_IF_ERROR(refuse_unsupported(root, config.family));
  const bool llama = config.family == ModelFamily::kLlama;
  const bool qwen3 = config.family == ModelFamily::kQwen3;

  KVC_ASSIGN_OR_RETURN(config.vocab_size, root.integer("vocab_size", 1, kMaxVocab));
  KVC_ASSIGN_OR_RETURN(config.hidden_size, root.integer("hidden_size", 1, kMaxHidden));
  KVC_ASSIGN_OR_RETURN(config.intermediate_size,
                       root.integer("intermediate_size", 1, kMaxIntermediate));
  KVC_ASSIGN_OR_RETURN(config.num_layers, root.integer("num_hidden_layers", 1, kMaxLayers));
  KVC_ASSIGN_OR_RETURN(config.num_heads, root.integer("num_attention_heads", 1, kMaxHeads));
  // Absent is 32 for Qwen, null is num_heads for all.
  const bool kv_heads_absent = !root.node().contains("num_key_value_heads");
  KVC_ASSIGN_OR_RETURN(config.num_kv_heads,
                       root.integer("num_key_value_heads", 1, config.num_heads,
                                    !llama && kv_heads_absent ? 32 : config.num_heads));
  if (config.num_kv_heads > config.num_heads || config.num_heads % config.num_kv_heads != 0) {
    return found_expected(StatusCode::kCorrupt, root.where() + ": num_key_value_heads",
                          std::to_string(config.num_kv_heads),
                          "a divisor of num_attention_heads = " + std::to_string(config.num_heads));
  }
  if (root.has("head_dim") || qwen3) {
    KVC_ASSIGN_OR_RETURN(config.head_dim, root.integer("head_dim", 1, kMaxHeadDim, 128));
  } else {
    if (config.hidden_size % config.num_heads != 0) {
      return root.error(StatusCode::kCorrupt, "hidden_size",
                        "a multiple of num_attention_heads = " + std::to_string(config.num_heads) +
                            " where there is no head_dim");
    }
    config.head_dim = config.hidden_size / config.num_heads;
  }
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    return found_expected(StatusCode::kCorrupt, root.where() + ": head_dim",
                          std::to_string(config.head_dim),
                          "an even number up to " + std::to_string(kMaxHeadDim));
  }
  KVC_ASSIGN_OR_RETURN(config.max_position_embeddings,
                       root.integer("max_position_embeddings", 1, kMaxPositions));
  KVC_ASSIGN_OR_RETURN(config.rms_norm_eps, root.number_above("rms_norm_eps", 0.0, 1e-6));
  if (config.rms_norm_eps >= 1.0) {
    return root.error(StatusCode::kCorrupt, "rms_norm_eps", "a number below 1");
  }
  KVC_ASSIGN_OR_RETURN(config.rope,
                       parse_rope(root, config.max_position_embeddings, &config.notes));
  KVC_ASSIGN_OR_RETURN(config.tie_word_embeddings, root.boolean("tie_word_embeddings", false));
  if (config.family == ModelFamily::kQwen2) {
    config.attention_bias = true;  // fixed by the family, whatever the file says
  } else {
    KVC_ASSIGN_OR_RETURN(config.attention_bias, root.boolean("attention_bias", false));
    config.attention_output_bias = config.attention_bias;
  }
  if (llama) {
    KVC_ASSIGN_OR_RETURN(config.mlp_bias, root.boolean("mlp_bias", false));
  }
  config.qk_norm = qwen3;
  return config;
}

}  // namespace

const char* name_of(ModelFamily family) noexcept {
  for (const FamilyTraits& traits : kFamilies) {
    if (traits.family == family) return traits.model_type;
  }
  return "?";
}

Result<ModelConfig> parse_model_config(std::string_view config_json, const std::string& name,
                                       std::optional<std::string_view> generation_config_json,
                                       const std::string& generation_name) {
  return without_exceptions(name, [&]() -> Result<ModelConfig> {
    KVC_ASSIGN_OR_RETURN(const Json document, parse_json(config_json, name));
    KVC_ASSIGN_OR_RETURN(const JsonObject root, JsonObject::create(document, name));
    KVC_ASSIGN_OR_RETURN(ModelConfig config, parse_fields(root));
    if (!generation_config_json) {
      KVC_RETURN_IF_ERROR(parse_eos(root, &config));
      return config;
    }
    KVC_ASSIGN_OR_RETURN(const Json generation_document,
                         parse_json(*generation_config_json, generation_name));
    KVC_ASSIGN_OR_RETURN(const JsonObject generation,
                         JsonObject::create(generation_document, generation_name));
    KVC_RETURN_IF_ERROR(parse_eos(generation, &config));
    return config;
  });
}

Result<ModelConfig> load_model_config(const std::string& directory) {
  const std::string name = directory + "/config.json";
  const std::string generation_name = directory + "/generation_config.json";
  const Result<std::string> text = read_text_file(name, kMaxConfigBytes);
  if (text.status().code() == StatusCode::kNotFound) {
    const std::string kind = kind_of_directory(directory, "config.json");
    if (!kind.empty()) {
      return found_expected(StatusCode::kNotFound, directory, kind,
                            "a model directory with a config.json");
    }
  }
  if (!text.ok()) return text.status();
  Result<std::string> generation = read_text_file(generation_name, kMaxConfigBytes);
  if (!generation.ok() && generation.status().code() != StatusCode::kNotFound) {
    return generation.status();
  }
  std::optional<std::string_view> generation_text;
  if (generation.ok()) generation_text = *generation;
  return parse_model_config(*text, name, generation_text, generation_name);
}

}  // namespace kvcache::runner
