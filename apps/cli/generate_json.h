// What `generate --json` prints of a text.
#ifndef KVCACHE_APPS_CLI_GENERATE_JSON_H_
#define KVCACHE_APPS_CLI_GENERATE_JSON_H_

#include <nlohmann/json.hpp>

#include "runner/generate/generate.h"

namespace kvcache::cli {

inline double per_second(std::int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

inline nlohmann::ordered_json to_json(const runner::GenerateResult& result,
                                      const runner::Tokenizer& tokenizer) {
  nlohmann::ordered_json json;
  json["text"] = result.text;
  json["tokens"] = result.tokens;
  json["stop_reason"] = name_of(result.stop_reason);
  if (!result.status.ok()) json["error"] = result.status.to_string();
  json["prompt_tokens"] = result.prompt_tokens;
  json["reused_tokens"] = result.reused_tokens;
  json["prefill_tokens_per_s"] =
      per_second(result.prompt_tokens - result.reused_tokens, result.prefill_seconds);
  json["decode_tokens_per_s"] = per_second(result.decode_steps, result.decode_seconds);
  json["kv_bytes"] = result.usage.nbytes;
  for (const runner::Hypothesis& beam : result.beams) {
    json["beams"].push_back(
        {{"text", tokenizer.decode(beam.tokens)}, {"tokens", beam.tokens}, {"score", beam.score}});
  }
  return json;
}

}  // namespace kvcache::cli

#endif  // KVCACHE_APPS_CLI_GENERATE_JSON_H_
