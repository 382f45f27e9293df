// The plan of a step: how many new tokens each request brings.
#ifndef KVCACHE_RUNNER_ENGINE_STEP_PLAN_H_
#define KVCACHE_RUNNER_ENGINE_STEP_PLAN_H_

#include <cstdint>
#include <span>
#include <vector>

namespace kvcache::runner {

// What a request could bring next.
struct NextTokens {
  std::int64_t count = 1;  // of the next chunk of its prompt, 0 while it waits, or 1
  bool prompt = false;     // whether they are of its prompt
};

// Counts of each request, [requests.size()]. All that decode bring their token; prompts bring a
// chunk each, in their order, as long as a step has at most `prompt_tokens` of them, and the first
// of them always: so a prompt is cut as it would be alone, and a long one holds up nobody else.
std::vector<std::int64_t> plan_step(std::span<const NextTokens> requests,
                                    std::int64_t prompt_tokens);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_ENGINE_STEP_PLAN_H_
