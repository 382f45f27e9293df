// Continuation: the text that follows one prompt, token by token: what is sampled, the characters
// that may be shown, and when it ends.
#ifndef KVCACHE_RUNNER_GENERATE_CONTINUATION_H_
#define KVCACHE_RUNNER_GENERATE_CONTINUATION_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runner/generate/options.h"
#include "runner/generate/stop_text.h"
#include "runner/sampler/sampler.h"
#include "runner/tokenizer/stream_decoder.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

// REQUIRES: the config, the tokenizer and the options outlive it.
class Continuation {
 public:
  // Errors: those of Sampler::create.
  static Result<Continuation> create(const ModelConfig& config, const Tokenizer& tokenizer,
                                     std::span<const std::int32_t> prompt,
                                     const GenerateOptions& options);

  // Chooses the next token from logits [vocab_size]. Errors: those of Sampler::sample.
  Result<std::int32_t> sample(std::span<const float> logits);

  // Takes the token in, unless it ends the text; returns the characters that may be shown now.
  std::string push(std::int32_t token);

  // The characters held back, when the text has ended.
  std::string flush();

  // Why the text has ended; none while it goes on.
  const std::optional<StopReason>& ended() const { return ended_; }

  std::span<const std::int32_t> text() const { return text_; }  // the prompt, then the new tokens
  std::int64_t prompt_tokens() const { return prompt_tokens_; }
  std::vector<std::int32_t> new_tokens() const;

 private:
  Continuation(const ModelConfig& config, const Tokenizer& tokenizer,
               std::span<const std::int32_t> prompt, const GenerateOptions& options,
               Sampler sampler);

  const ModelConfig* config_;
  const GenerateOptions* options_;
  Sampler sampler_;
  StreamDecoder decoder_;
  StopText stop_;
  std::vector<std::int32_t> text_;
  std::int64_t prompt_tokens_;
  std::optional<StopReason> ended_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_CONTINUATION_H_
