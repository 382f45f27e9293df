// Request: one prompt and the text that follows it, on its way through an engine.
#ifndef KVCACHE_RUNNER_ENGINE_REQUEST_H_
#define KVCACHE_RUNNER_ENGINE_REQUEST_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "runner/engine/step_plan.h"
#include "runner/generate/continuation.h"
#include "runner/generate/options.h"
#include "runner/generate/prefill.h"

namespace kvcache::runner {

struct Request {
  enum class State : std::uint8_t { kWaiting, kActive, kEnded };

  std::int64_t number = 0;
  State state = State::kWaiting;
  std::optional<StopReason> leaving;  // it ends with the step, if it is active
  GenerateOptions options;
  std::vector<std::int32_t> prompt;
  std::optional<Continuation> continuation;
  bool looked = false;         // for what is known of its prompt
  std::int64_t prefilled = 0;  // tokens of the prompt stored
  GenerateResult result;

  std::int64_t prompt_tokens() const { return static_cast<std::int64_t>(prompt.size()); }
  bool prefilling() const { return prefilled < prompt_tokens(); }

  // Tokens stored while it is active: the newest one never is.
  std::int64_t stored() const {
    if (prefilling()) return prefilled;
    return static_cast<std::int64_t>(continuation->text().size()) - 1;
  }

  // The most it will ever history.
  std::int64_t most_stored(std::int64_t context) const {
    return prompt_tokens() + std::min(options.max_tokens - 1, context - prompt_tokens());
  }

  NextTokens next() const {
    if (!looked) return {0, true};
    if (!prefilling()) return {1, false};
    return {next_chunk(prompt_tokens(), prefilled, options), true};
  }
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_ENGINE_REQUEST_H_
