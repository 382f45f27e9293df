// The checkpoints of tests/golden and what transformers makes of them. See tests/golden/README.md.
#ifndef KVCACHE_TESTS_SUPPORT_GOLDEN_CHECKPOINT_H_
#define KVCACHE_TESTS_SUPPORT_GOLDEN_CHECKPOINT_H_

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runner/safetensors/safetensors_file.h"
#include "support/paths.h"
#include "support/tensors.h"

namespace kvcache::testing {

inline const std::vector<std::string>& golden_names() {
  static const std::vector<std::string> names = {"llama3_grouped", "llama3_tied", "llama2_plain",
                                                 "llama_bias",     "qwen2_tied",  "qwen2_untied",
                                                 "qwen3_explicit", "qwen3_tied"};
  return names;
}

inline std::string golden_directory(const std::string& name) {
  return source_dir() + "/tests/golden/" + name;
}

// A beam search, best first.
struct GoldenBeams {
  std::int64_t num_beams = 0;
  double length_penalty = 0;
  std::int64_t max_new_tokens = 0;
  std::vector<std::int32_t> eos_token_ids;
  std::vector<std::vector<std::int32_t>> sequences;  // new ids, up to and with the EOS
  std::vector<double> scores;
};

struct GoldenPrompt {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> greedy;
  std::vector<std::int32_t> greedy_eos;
  std::vector<float> logits;  // [tokens + greedy, vocab_size]
  GoldenBeams beam4, beam4_no_eos;
  std::string text, greedy_text;

  // The prompt and its greedy continuation.
  std::vector<std::int32_t> all() const {
    std::vector<std::int32_t> ids = tokens;
    ids.insert(ids.end(), greedy.begin(), greedy.end());
    return ids;
  }
};

struct GoldenCheckpoint {
  std::string directory;
  std::int64_t vocab_size = 0;
  std::vector<std::int32_t> eos_token_ids;
  std::vector<float> rope_inv_freq;
  std::vector<GoldenPrompt> prompts;
};

inline GoldenBeams golden_beams(const nlohmann::json& json) {
  GoldenBeams beams;
  beams.num_beams = json.at("num_beams");
  beams.length_penalty = json.at("length_penalty");
  beams.max_new_tokens = json.at("max_new_tokens");
  beams.eos_token_ids = json.at("eos_token_ids").get<std::vector<std::int32_t>>();
  beams.sequences = json.at("sequences").get<std::vector<std::vector<std::int32_t>>>();
  beams.scores = json.at("scores").get<std::vector<double>>();
  return beams;
}

inline GoldenCheckpoint load_golden(const std::string& name) {
  GoldenCheckpoint golden;
  golden.directory = golden_directory(name);
  const auto json = nlohmann::json::parse(std::ifstream(golden.directory + "/golden.json"));
  golden.vocab_size = json.at("vocab_size");
  golden.eos_token_ids = json.at("eos_token_ids").get<std::vector<std::int32_t>>();
  golden.rope_inv_freq = json.at("rope_inv_freq").get<std::vector<float>>();
  const auto file = runner::SafetensorsFile::open(golden.directory + "/golden.safetensors");
  EXPECT_TRUE(file.ok()) << file.status().to_string();
  for (const auto& entry : json.at("prompts")) {
    GoldenPrompt prompt;
    prompt.tokens = entry.at("tokens").get<std::vector<std::int32_t>>();
    prompt.greedy = entry.at("greedy").get<std::vector<std::int32_t>>();
    prompt.greedy_eos = entry.at("greedy_eos").get<std::vector<std::int32_t>>();
    prompt.beam4 = golden_beams(entry.at("beam4"));
    prompt.beam4_no_eos = golden_beams(entry.at("beam4_no_eos"));
    prompt.text = entry.value("text", "");
    prompt.greedy_text = entry.value("greedy_text", "");
    const auto logits = file->find(entry.at("logits").get<std::string>());
    EXPECT_TRUE(logits.ok()) << logits.status().to_string();
    prompt.logits = values(*logits);
    golden.prompts.push_back(std::move(prompt));
  }
  return golden;
}

// Fills `directory` with links to the checkpoint's files, config.hub.json taking the place of
// config.json.
inline void link_hub_spelling(const GoldenCheckpoint& golden, const std::string& directory) {
  namespace fs = std::filesystem;
  for (const auto& entry : fs::directory_iterator(golden.directory)) {
    const std::string file = entry.path().filename().string();
    if (file == "config.json") continue;
    const std::string as = file == "config.hub.json" ? "config.json" : file;
    fs::create_symlink(entry.path(), fs::path(directory) / as);
  }
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_GOLDEN_CHECKPOINT_H_
