#include "runner/generate/continuation.h"

#include <algorithm>
#include <utility>

namespace kvcache::runner {

Continuation::Continuation(const ModelConfig& config, const Tokenizer& tokenizer,
                           std::span<const std::int32_t> prompt, const GenerateOptions& options,
                           Sampler sampler)
    : config_(&config),
      options_(&options),
      sampler_(std::move(sampler)),
      decoder_(tokenizer),
      stop_(options.stop),
      text_(prompt.begin(), prompt.end()),
      prompt_tokens_(static_cast<std::int64_t>(prompt.size())) {}

Result<Continuation> Continuation::create(const ModelConfig& config, const Tokenizer& tokenizer,
                                          std::span<const std::int32_t> prompt,
                                          const GenerateOptions& options) {
  KVC_ASSIGN_OR_RETURN(Sampler sampler, Sampler::create(options.sampler));
  return Continuation(config, tokenizer, prompt, options, std::move(sampler));
}

Result<std::int32_t> Continuation::sample(std::span<const float> logits) {
  return sampler_.sample(logits, text_);
}

std::string Continuation::push(std::int32_t token) {
  const auto& eos = config_->eos_token_ids;
  if (options_->stop_at_eos && std::find(eos.begin(), eos.end(), token) != eos.end()) {
    ended_ = StopReason::kEos;
    return {};
  }
  text_.push_back(token);
  std::string shown = stop_.push(decoder_.push(token));
  const auto length = static_cast<std::int64_t>(text_.size());
  if (stop_.found()) {
    ended_ = StopReason::kStopText;
  } else if (length - prompt_tokens_ >= options_->max_tokens) {
    ended_ = StopReason::kMaxTokens;
  } else if (length > config_->max_position_embeddings) {  // the last token takes no room
    ended_ = StopReason::kContext;
  }
  return shown;
}

std::string Continuation::flush() {
  std::string shown = stop_.push(decoder_.flush());
  return shown + stop_.flush();
}

std::vector<std::int32_t> Continuation::new_tokens() const {
  return {text_.begin() + prompt_tokens_, text_.end()};
}

}  // namespace kvcache::runner
