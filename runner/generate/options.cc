#include "runner/generate/options.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "runner/model/paged_history.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {

const char* name_of(StopReason reason) noexcept {
  switch (reason) {
    case StopReason::kEos:
      return "eos";
    case StopReason::kStopText:
      return "stop";
    case StopReason::kMaxTokens:
      return "length";
    case StopReason::kContext:
      return "context";
    case StopReason::kCancelled:
      return "cancelled";
    case StopReason::kError:
      return "error";
  }
  return "?";
}

Status check_prompt(const ModelConfig& config, std::span<const std::int32_t> prompt) {
  const auto count = static_cast<std::int64_t>(prompt.size());
  const std::int64_t context = config.max_position_embeddings;
  if (count == 0) {
    return Status(StatusCode::kInvalidArgument, "prompt: found no tokens, expected at least one");
  }
  if (count > context) {
    return Status(StatusCode::kOutOfRange, "prompt: found " + std::to_string(count) +
                                               " tokens, expected at most " +
                                               std::to_string(context) + " (the model's context)");
  }
  for (const std::int32_t token : prompt) {
    if (token >= 0 && token < config.vocab_size) continue;
    return Status(StatusCode::kInvalidArgument,
                  "prompt: found id " + std::to_string(token) + ", expected 0 .. " +
                      std::to_string(config.vocab_size - 1) + " (vocab_size of config.json)");
  }
  return {};
}

Status check_options(const GenerateOptions& options) {
  if (options.max_tokens < 1) {
    return Status(
        StatusCode::kInvalidArgument,
        "max_tokens: found " + std::to_string(options.max_tokens) + ", expected at least 1");
  }
  if (options.prefill_chunk < 0) {
    return Status(StatusCode::kInvalidArgument, "prefill_chunk: found " +
                                                    std::to_string(options.prefill_chunk) +
                                                    ", expected 0 (the whole prompt) or more");
  }
  for (const std::string& stop : options.stop) {
    // Ended within a character, a text would be no UTF-8.
    if (const auto at = find_invalid_utf8(stop)) {
      return Status(StatusCode::kInvalidArgument,
                    "stop: at byte " + std::to_string(*at) + ": found no UTF-8, expected UTF-8");
    }
  }
  if (options.num_beams < 1 || options.num_beams > kMostBeams) {
    return Status(StatusCode::kInvalidArgument,
                  "num_beams: found " + std::to_string(options.num_beams) + ", expected 1 .. " +
                      std::to_string(kMostBeams));
  }
  if (!std::isfinite(options.length_penalty)) {
    return Status(StatusCode::kInvalidArgument, "length_penalty: found " +
                                                    std::to_string(options.length_penalty) +
                                                    ", expected a finite number");
  }
  if (options.num_beams == 1) return {};
  const SamplerOptions& sampler = options.sampler;
  if (sampler.temperature != 0 || sampler.repetition_penalty != 1) {
    return Status(StatusCode::kInvalidArgument,
                  "num_beams: found " + std::to_string(options.num_beams) +
                      " with a temperature or a repetition penalty, expected neither: a beam "
                      "search keeps the likeliest texts");
  }
  if (!options.stop.empty()) {
    return Status(StatusCode::kInvalidArgument,
                  "num_beams: found " + std::to_string(options.num_beams) +
                      " with a stop text, expected none: beams end at an end-of-text token");
  }
  return {};
}

namespace {

HistoryOptions history_options(const Model& model, std::int64_t prompt_tokens,
                               const GenerateOptions& options) {
  const std::int64_t context = model.config().max_position_embeddings;
  HistoryOptions history;
  history.kind = options.cache;
  history.rows = options.kv_dtype;
  history.dtype = model.default_kv_dtype();
  history.layout = options.layout;
  history.page_size = options.page_size;
  // The last generated token is never stored.
  history.max_length = prompt_tokens + std::min(options.max_tokens - 1, context - prompt_tokens);
  history.num_sequences = options.num_beams;
  history.memory = options.memory;
  return history;
}

}  // namespace

std::int64_t shared_pages_of(const Model& model, std::int64_t prompt_tokens,
                             const GenerateOptions& options) {
  HistoryOptions shared = history_options(model, prompt_tokens, options);
  shared.page_size = options.prefixes->page_size();
  return pages_of(shared) + 1;
}

Result<std::unique_ptr<History>> open_history(const Model& model, std::int64_t prompt_tokens,
                                              const GenerateOptions& options) {
  const HistoryOptions history = history_options(model, prompt_tokens, options);
  if (options.prefixes == nullptr) return make_history(model.config(), history);
  auto lease = options.prefixes->lease(shared_pages_of(model, prompt_tokens, options));
  if (!lease.has_value()) return make_history(model.config(), history);
  KVC_ASSIGN_OR_RETURN(auto made, PagedHistory::create_in(std::move(*lease), options.tenant));
  KVC_RETURN_IF_ERROR(made->add());
  return std::unique_ptr<History>(std::move(made));
}

}  // namespace kvcache::runner
