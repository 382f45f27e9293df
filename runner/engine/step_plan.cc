#include "runner/engine/step_plan.h"

namespace kvcache::runner {

std::vector<std::int64_t> plan_step(std::span<const NextTokens> requests,
                                    std::int64_t prompt_tokens) {
  std::vector<std::int64_t> counts;
  counts.reserve(requests.size());
  std::int64_t taken = 0;
  bool full = false;
  for (const NextTokens& next : requests) {
    if (!next.prompt) {
      counts.push_back(next.count);
      continue;
    }
    full = full || (taken > 0 && next.count > prompt_tokens - taken);
    counts.push_back(full ? 0 : next.count);
    taken += counts.back();
  }
  return counts;
}

}  // namespace kvcache::runner
