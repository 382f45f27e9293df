#include "runner/config/model_config.h"

#include <random>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runner/config/json_file.h"
#include "support/mutate.h"
#include "support/paths.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

const char* const kGoldens[] = {"llama2_plain", "llama3_grouped", "llama3_tied",    "llama_bias",
                                "qwen2_tied",   "qwen2_untied",   "qwen3_explicit", "qwen3_tied"};

std::string golden(const std::string& name) {
  return testing::source_dir() + "/tests/golden/" + name;
}

Json llama() {
  return Json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2})");
}

Json qwen(const char* type) {
  Json config = llama();
  config["model_type"] = type;
  config["architectures"] =
      Json::array({std::string(type) == "qwen2" ? "Qwen2ForCausalLM" : "Qwen3ForCausalLM"});
  return config;
}

Result<ModelConfig> parse(const Json& config) { return parse_model_config(config.dump(), "c"); }

ModelConfig good(const Json& config) {
  Result<ModelConfig> result = parse(config);
  EXPECT_TRUE(result.ok()) << result.status().to_string();
  return result.ok() ? *result : ModelConfig{};
}

// The message for `config` with one field changed.
std::string error(Json config, const std::string& key, const Json& value) {
  config[key] = value;
  const Status status = parse(config).status();
  EXPECT_NE(status.code(), StatusCode::kOk) << key << " = " << value;
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  return status.message();
}

TEST(ModelConfig, ReadsTheSizesOfALlama) {
  const ModelConfig config = good(llama());
  EXPECT_EQ(config.family, ModelFamily::kLlama);
  EXPECT_EQ(config.vocab_size, 100);
  EXPECT_EQ(config.hidden_size, 32);
  EXPECT_EQ(config.intermediate_size, 48);
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.num_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.max_position_embeddings, 64);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_EQ(config.rope.type, RopeConfig::Type::kDefault);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_FALSE(config.attention_output_bias);
  EXPECT_FALSE(config.mlp_bias);
  EXPECT_FALSE(config.qk_norm);
  EXPECT_EQ(config.eos_token_ids, std::vector<std::int32_t>{2});
}

TEST(ModelConfig, BothSpellingsOfEveryGoldenMeanTheSame) {
  for (const char* name : kGoldens) {
    SCOPED_TRACE(name);
    const Json expected = Json::parse(test::read_file(golden(name) + "/golden.json"));
    const Result<ModelConfig> loaded = load_model_config(golden(name));
    ASSERT_TRUE(loaded.ok()) << loaded.status().to_string();
    const Result<ModelConfig> hub =
        parse_model_config(test::read_file(golden(name) + "/config.hub.json"), "hub");
    ASSERT_TRUE(hub.ok()) << hub.status().to_string();

    EXPECT_EQ(loaded->eos_token_ids, expected["eos_token_ids"].get<std::vector<std::int32_t>>());
    EXPECT_EQ(loaded->vocab_size, expected["vocab_size"].get<std::int64_t>());
    EXPECT_EQ(loaded->head_dim, 2 * static_cast<std::int64_t>(expected["rope_inv_freq"].size()));
    const std::string family = expected["family"];  // "Llama", "Qwen2", ...
    EXPECT_EQ(std::string(name_of(loaded->family)).substr(1), family.substr(1));
    EXPECT_EQ(loaded->family, hub->family);
    EXPECT_EQ(loaded->hidden_size, hub->hidden_size);
    EXPECT_EQ(loaded->intermediate_size, hub->intermediate_size);
    EXPECT_EQ(loaded->num_layers, hub->num_layers);
    EXPECT_EQ(loaded->num_heads, hub->num_heads);
    EXPECT_EQ(loaded->num_kv_heads, hub->num_kv_heads);
    EXPECT_EQ(loaded->head_dim, hub->head_dim);
    EXPECT_EQ(loaded->max_position_embeddings, hub->max_position_embeddings);
    EXPECT_EQ(loaded->rms_norm_eps, hub->rms_norm_eps);
    EXPECT_EQ(loaded->rope.type, hub->rope.type);
    EXPECT_EQ(loaded->rope.theta, hub->rope.theta);
    EXPECT_EQ(loaded->rope.factor, hub->rope.factor);
    EXPECT_EQ(loaded->rope.low_freq_factor, hub->rope.low_freq_factor);
    EXPECT_EQ(loaded->rope.high_freq_factor, hub->rope.high_freq_factor);
    EXPECT_EQ(loaded->rope.original_max_position_embeddings,
              hub->rope.original_max_position_embeddings);
    EXPECT_EQ(loaded->tie_word_embeddings, hub->tie_word_embeddings);
    EXPECT_EQ(loaded->attention_bias, hub->attention_bias);
    EXPECT_EQ(loaded->attention_output_bias, hub->attention_output_bias);
    EXPECT_EQ(loaded->mlp_bias, hub->mlp_bias);
  }
}

TEST(ModelConfig, FamiliesDifferInBiasesNormsAndDefaults) {
  const ModelConfig qwen2 = good(qwen("qwen2"));
  EXPECT_TRUE(qwen2.attention_bias);
  EXPECT_FALSE(qwen2.attention_output_bias);
  EXPECT_FALSE(qwen2.qk_norm);
  EXPECT_EQ(qwen2.head_dim, 8);
  Json config = qwen("qwen3");
  EXPECT_EQ(good(config).head_dim, 128);
  EXPECT_TRUE(good(config).qk_norm);
  EXPECT_FALSE(good(config).attention_bias);
  config["attention_bias"] = true;
  EXPECT_TRUE(good(config).attention_bias);
  EXPECT_TRUE(good(config).attention_output_bias);

  config = llama();
  config.erase("num_key_value_heads");
  config.erase("rms_norm_eps");
  EXPECT_EQ(good(config).num_kv_heads, 4);
  EXPECT_EQ(good(config).rms_norm_eps, 1e-6);
  config = qwen("qwen2");
  config["num_attention_heads"] = 32;
  config["num_key_value_heads"] = nullptr;
  config["head_dim"] = 2;
  EXPECT_EQ(good(config).num_kv_heads, 32);
  config.erase("num_key_value_heads");
  EXPECT_EQ(good(config).num_kv_heads, 32);
  config["num_attention_heads"] = 16;
  EXPECT_FALSE(parse(config).ok());
}

TEST(ModelConfig, RopeScalingInEverySpelling) {
  const Json llama3 = Json::parse(
      R"({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32})");
  for (const char* key : {"type", "rope_type"}) {
    for (const char* table : {"rope_scaling", "rope_parameters"}) {
      Json config = llama();
      config["rope_theta"] = 500000.0;
      config[table] = llama3;
      config[table][key] = "llama3";
      const RopeConfig rope = good(config).rope;
      EXPECT_EQ(rope.type, RopeConfig::Type::kLlama3);
      EXPECT_EQ(rope.theta, 500000.0);
      EXPECT_EQ(rope.factor, 8.0);
      EXPECT_EQ(rope.low_freq_factor, 1.0);
      EXPECT_EQ(rope.high_freq_factor, 4.0);
      EXPECT_EQ(rope.original_max_position_embeddings, 32);
    }
  }
  Json config = llama();
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  EXPECT_EQ(good(config).rope.theta, 1e6);
  config["rope_scaling"] = nullptr;
  EXPECT_EQ(good(config).rope.theta, 1e6);
}

TEST(ModelConfig, RopeItCannotComputeIsRefusedByName) {
  for (const char* type : {"linear", "dynamic", "yarn", "longrope", "mrope", ""}) {
    for (const char* key : {"type", "rope_type"}) {
      EXPECT_EQ(error(llama(), "rope_scaling", {{key, type}, {"factor", 2.0}}),
                std::string("c: rope_scaling: ") + key + ": found \"" + type +
                    "\", expected default or llama3");
    }
  }
  EXPECT_EQ(error(llama(), "rope_scaling", {{"factor", 2.0}}),
            "c: rope_scaling: rope_type: found nothing, expected default or llama3");
  EXPECT_EQ(error(llama(), "rope_scaling", {{"rope_type", "llama3"}, {"factor", 2.0}}),
            "c: rope_scaling: low_freq_factor: found nothing, expected a number above 0.0");
  EXPECT_EQ(error(llama(), "rope_parameters",
                  {{"rope_type", "llama3"},
                   {"factor", 8},
                   {"low_freq_factor", 4},
                   {"high_freq_factor", 4}}),
            "c: rope_parameters: high_freq_factor: found 4, expected a number above 4.0");
  EXPECT_EQ(error(llama(), "rope_theta", 0), "c: rope_theta: found 0, expected a number above 0.0");
  EXPECT_EQ(error(llama(), "partial_rotary_factor", 0.5),
            "c: partial_rotary_factor: found 0.5, expected 1");
  EXPECT_EQ(error(llama(), "rope_parameters", {{"partial_rotary_factor", 0.25}}),
            "c: rope_parameters: partial_rotary_factor: found 0.25, expected 1");
  EXPECT_EQ(error(qwen("qwen3"), "rope_parameters", {{"full_attention", Json::object()}}),
            "c: rope_parameters: full_attention: found an object, expected one rotation for all "
            "layers");
  EXPECT_EQ(error(llama(), "rope_scaling", "llama3"),
            "c: rope_scaling: found \"llama3\", expected an object");
}

TEST(ModelConfig, SlidingWindowsAreIgnoredUnlessInUse) {
  for (const char* type : {"qwen2", "qwen3"}) {
    Json config = qwen(type);
    config["sliding_window"] = 8;
    EXPECT_TRUE(parse(config).ok());
    config["use_sliding_window"] = false;
    EXPECT_TRUE(parse(config).ok());
    // Of two layers none is past the 28 that have no window where nothing else is written.
    config["use_sliding_window"] = true;
    EXPECT_TRUE(parse(config).ok());
    config["max_window_layers"] = 2;
    EXPECT_TRUE(parse(config).ok());
    config["max_window_layers"] = 1;
    config["sliding_window"] = nullptr;
    EXPECT_TRUE(parse(config).ok());
    config["sliding_window"] = 8;
    EXPECT_EQ(error(config, "use_sliding_window", true),
              "c: use_sliding_window: found true, expected false: sliding_window attention is not "
              "supported");
    config["layer_types"] = {"full_attention", "full_attention"};
    EXPECT_TRUE(parse(config).ok());
    EXPECT_EQ(error(config, "layer_types", {"full_attention", "sliding_attention"}),
              "c: layer_types: found \"sliding_attention\", expected full_attention");
  }
}

TEST(ModelConfig, WhatItDoesNotComputeIsRefusedByName) {
  EXPECT_EQ(error(llama(), "hidden_act", "gelu"), "c: hidden_act: found \"gelu\", expected silu");
  EXPECT_EQ(error(llama(), "model_type", "mistral"),
            "c: model_type: found \"mistral\", expected llama, qwen2 or qwen3");
  EXPECT_EQ(error(llama(), "architectures", {"MistralForCausalLM"}),
            "c: architectures: found \"MistralForCausalLM\", expected LlamaForCausalLM, "
            "Qwen2ForCausalLM or Qwen3ForCausalLM");
  EXPECT_EQ(error(llama(), "architectures", {"Qwen2ForCausalLM"}),
            "c: architectures: found \"Qwen2ForCausalLM\", expected LlamaForCausalLM for this "
            "model_type");
  EXPECT_EQ(error(llama(), "quantization_config", {{"quant_method", "gptq"}}),
            "c: quantization_config: found \"gptq\", expected none: quantized weights are not "
            "supported");
  Json config = llama();
  config.erase("model_type");
  EXPECT_EQ(good(config).family, ModelFamily::kLlama);
  config.erase("architectures");
  EXPECT_FALSE(parse(config).ok());
}

TEST(ModelConfig, AbsurdSizesAreRefused) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "head_dim"}) {
    for (const Json& value : {Json(0), Json(-1), Json(1.5), Json("8"), Json(true), Json::array(),
                              Json(1LL << 40), Json(UINT64_MAX)}) {
      const std::string message = error(llama(), key, value);
      EXPECT_EQ(message.rfind(std::string("c: ") + key + ": found ", 0), 0u) << message;
    }
    Json config = llama();
    config.erase(key);
    const bool optional =
        std::string(key) == "num_key_value_heads" || std::string(key) == "head_dim";
    EXPECT_EQ(parse(config).ok(), optional) << key;
  }
  EXPECT_EQ(error(llama(), "num_key_value_heads", 3),
            "c: num_key_value_heads: found 3, expected a divisor of num_attention_heads = 4");
  EXPECT_EQ(error(llama(), "hidden_size", 30),
            "c: hidden_size: found 30, expected a multiple of num_attention_heads = 4 where there "
            "is no head_dim");
  EXPECT_EQ(error(llama(), "hidden_size", 12),
            "c: head_dim: found 3, expected an even number up "
            "to 4096");
  for (const Json& value : {Json(0), Json(-1e-6), Json(1.0), Json("1e-6")}) {
    error(llama(), "rms_norm_eps", value);
  }
}

TEST(ModelConfig, EosIsANumberOrAListAndGenerationConfigDecides) {
  Json config = llama();
  config["eos_token_id"] = {3, 4};
  EXPECT_EQ(good(config).eos_token_ids, (std::vector<std::int32_t>{3, 4}));
  const auto eos = [&](const char* generation) {
    return parse_model_config(config.dump(), "c", generation, "g");
  };
  EXPECT_EQ(eos(R"({"eos_token_id": [7, 8]})")->eos_token_ids, (std::vector<std::int32_t>{7, 8}));
  EXPECT_EQ(eos(R"({"eos_token_id": 9})")->eos_token_ids, std::vector<std::int32_t>{9});
  EXPECT_TRUE(eos("{}")->eos_token_ids.empty());
  EXPECT_EQ(eos("").status().code(), StatusCode::kCorrupt);
  error(llama(), "eos_token_id", {2, "3"});
  error(llama(), "eos_token_id", 2.5);
  error(llama(), "eos_token_id", true);
  // That of config.json is not read where there is another.
  config["eos_token_id"] = "none";
  EXPECT_EQ(eos(R"({"eos_token_id": 9})")->eos_token_ids, std::vector<std::int32_t>{9});
  config.erase("eos_token_id");
  EXPECT_TRUE(good(config).eos_token_ids.empty());
}

TEST(ModelConfig, FilesThatAreNotThereOrNotJsonAreNamed) {
  const test::TempDir dir;
  EXPECT_EQ(load_model_config(dir.path()).status().code(), StatusCode::kNotFound);
  const std::string path = dir.write("config.json", "{\"a\": ");
  Status status = load_model_config(dir.path()).status();
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_EQ(status.message(), path + ": found bad syntax at byte 6, expected JSON");
  dir.write("config.json", "[1, 2]");
  EXPECT_EQ(load_model_config(dir.path()).status().message(),
            path + ": found a list of 2, expected an object");
  dir.write("config.json", llama().dump());
  EXPECT_TRUE(load_model_config(dir.path()).ok());
  const std::string generation = dir.write("generation_config.json", "");
  EXPECT_EQ(load_model_config(dir.path()).status().message().rfind(generation, 0), 0u);
}

TEST(ModelConfig, AnEosThatIsNoTokenEndsNothing) {
  const auto eos = [](const Json& value) {
    Json config = llama();
    config["eos_token_id"] = value;
    return good(config);
  };
  EXPECT_EQ(eos(40.0).eos_token_ids, std::vector<std::int32_t>{40});
  EXPECT_TRUE(eos(40.0).notes.empty());
  EXPECT_TRUE(eos(-1).eos_token_ids.empty());
  EXPECT_TRUE(eos(-1).notes.empty());
  for (const Json& absurd : {Json(100), Json(-7), Json(1e9), Json(UINT64_MAX)}) {
    EXPECT_EQ(eos({3, absurd}).eos_token_ids, std::vector<std::int32_t>{3});
    ASSERT_EQ(eos(absurd).notes.size(), 1u) << absurd;
    EXPECT_EQ(eos(absurd).notes[0], "c: eos_token_id: found " + absurd.dump() +
                                        ", expected token ids 0 .. 99: it ends no text");
  }
}

TEST(ModelConfig, WhatIsNotReadIsNotJudged) {
  const std::string rest = llama().dump().substr(1);
  for (const char* field :
       {R"("a": NaN)", R"("a": [Infinity, -Infinity, 1e999])", R"("\ud800": "\udfff")",
        R"("bos_token_id": -1)", R"("bos_token_id": 1e999)", R"("pad_token_id": NaN)",
        R"("dtype": "float8_e4m3fn")", R"("initializer_range": NaN)", R"("a": 1, "a": 2)"}) {
    const Result<ModelConfig> config =
        parse_model_config("{" + std::string(field) + "," + rest, "c");
    EXPECT_TRUE(config.ok()) << field << ": " << config.status().to_string();
  }
  const std::string deep = std::string(70, '[') + std::string(70, ']');
  EXPECT_TRUE(parse_model_config("{\"a\": " + deep + "," + rest, "c").ok());
  for (const char* field : {"hidden_size", "rms_norm_eps", "rope_theta", "tie_word_embeddings"}) {
    Json config = llama();
    config.erase(field);
    const std::string text = config.dump().substr(1);
    const std::string start = "{\"" + std::string(field) + "\": ";
    EXPECT_EQ(parse_model_config(start + "NaN," + text, "c")
                  .status()
                  .message()
                  .rfind("c: " + std::string(field) + ": found NaN, expected ", 0),
              0u);
    EXPECT_EQ(parse_model_config(start + "1, \"" + field + "\": 2," + text, "c")
                  .status()
                  .message()
                  .rfind("c: " + std::string(field) + ": found two values of one key, ", 0),
              0u);
  }
}

TEST(ModelConfig, ArchitecturesAreAListThatHoldsTheFamily) {
  for (const Json& names : {Json::array(), Json{"Other", "LlamaForCausalLM"}, Json(nullptr)}) {
    Json config = llama();
    config["architectures"] = names;
    EXPECT_EQ(good(config).family, ModelFamily::kLlama);
  }
  error(llama(), "architectures", "LlamaForCausalLM");
}

// As in transformers 5: that at the top wins.
TEST(ModelConfig, TheOriginalContextMayStandBesideTheScaling) {
  Json config = llama();
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0}};
  EXPECT_EQ(good(config).rope.original_max_position_embeddings, 64);
  config["original_max_position_embeddings"] = 16;
  EXPECT_EQ(good(config).rope.original_max_position_embeddings, 16);
  EXPECT_TRUE(good(config).notes.empty());
  config["rope_scaling"]["original_max_position_embeddings"] = 32;
  EXPECT_EQ(good(config).rope.original_max_position_embeddings, 16);
  EXPECT_EQ(good(config).notes,
            (std::vector<std::string>{"c: original_max_position_embeddings: taken is 16, as "
                                      "transformers takes it, not the 32 of rope_scaling"}));
}

TEST(ModelConfig, DamagedFilesNeverCrash) {
  std::mt19937_64 random(20260101);
  const std::string text = test::read_file(golden("llama3_tied") + "/config.hub.json");
  for (int i = 0; i < 4000; ++i) {
    const Result<ModelConfig> config = parse_model_config(test::mutate(text, random), "c");
    if (!config.ok()) {
      EXPECT_EQ(config.status().message().rfind("c: ", 0), 0u);
      continue;
    }
    EXPECT_GT(config->head_dim, 0);
    EXPECT_EQ(config->num_heads % config->num_kv_heads, 0);
  }
}

}  // namespace
}  // namespace kvcache::runner
