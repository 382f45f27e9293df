// The prompt goes through the model, in chunks.
#ifndef KVCACHE_RUNNER_GENERATE_PREFILL_H_
#define KVCACHE_RUNNER_GENERATE_PREFILL_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "runner/generate/options.h"

namespace kvcache::runner {

// Tokens that the next step of a prompt takes, of which `done` are stored: options.prefill_chunk of
// them, or all that are left.
std::int64_t next_chunk(std::int64_t total, std::int64_t done, const GenerateOptions& options);

// Stores what the history does not hold of the prompt, and leaves the logits [vocab_size] of its
// last token. Without a cache it is one chunk. `on_prefill` may be empty.
Status prefill(const Model& model, std::span<const std::int32_t> prompt,
               const GenerateOptions& options, History& history, ForwardState& state,
               std::vector<float>& logits,
               const std::function<void(std::int64_t done, std::int64_t total)>& on_prefill);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_PREFILL_H_
