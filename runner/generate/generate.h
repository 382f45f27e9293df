// Generation: a prompt goes in, tokens come out one at a time, through any cache or none.
#ifndef KVCACHE_RUNNER_GENERATE_GENERATE_H_
#define KVCACHE_RUNNER_GENERATE_GENERATE_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "runner/generate/options.h"
#include "runner/model/model.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

// Called on the generating thread, in order. Any may be empty. A beam search tells its text once,
// at the end, and its tokens not at all.
struct GenerateCallbacks {
  std::function<void(std::string_view)> on_text;  // whole characters only
  std::function<void(const TokenTrace&)> on_token;
  std::function<void(std::int64_t done, std::int64_t total)> on_prefill;  // tokens
};

// Errors: those of check_prompt and check_options, what the model and the cache report.
Result<GenerateResult> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const std::int32_t> prompt,
                                const GenerateOptions& options,
                                const GenerateCallbacks& callbacks = {});

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_GENERATE_H_
