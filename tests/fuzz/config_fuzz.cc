// Any text as config.json (and, after a byte 0, generation_config.json): refused, or a
// configuration whose sizes fit each other.
#include "runner/config/model_config.h"
#include "support/fuzz.h"

using kvcache::fuzz::expect;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto [config, generation] = kvcache::fuzz::split_at_zero(data, size);
  const bool has_generation = generation.data() != nullptr;
  const auto parsed = kvcache::runner::parse_model_config(
      config, "config.json", has_generation ? std::optional(generation) : std::nullopt,
      "generation_config.json");
  if (!parsed.ok()) {
    const std::string message = parsed.status().message();
    expect(message.find("config.json") != std::string::npos, "an error that names the file");
    expect(message.find('\n') == std::string::npos, "an error of one line");
    return 0;
  }
  expect(parsed->vocab_size > 0 && parsed->hidden_size > 0 && parsed->intermediate_size > 0 &&
             parsed->num_layers > 0 && parsed->num_kv_heads > 0 && parsed->head_dim > 0 &&
             parsed->max_position_embeddings > 0,
         "positive sizes");
  expect(parsed->num_heads % parsed->num_kv_heads == 0, "whole groups of heads");
  expect(parsed->head_dim % 2 == 0, "an even head_dim");
  return 0;
}
