#include "runner/generate/prefill.h"

#include <algorithm>

namespace kvcache::runner {

std::int64_t next_chunk(std::int64_t total, std::int64_t done, const GenerateOptions& options) {
  const std::int64_t left = total - done;
  return options.prefill_chunk > 0 ? std::min(options.prefill_chunk, left) : left;
}

Status prefill(const Model& model, std::span<const std::int32_t> prompt,
               const GenerateOptions& options, History& history, ForwardState& state,
               std::vector<float>& logits,
               const std::function<void(std::int64_t done, std::int64_t total)>& on_prefill) {
  const auto total = static_cast<std::int64_t>(prompt.size());
  for (std::int64_t done = history.length(); done < total;) {
    const std::int64_t count = history.keeps_history() ? next_chunk(total, done, options) : total;
    const auto chunk =
        prompt.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count));
    KVC_RETURN_IF_ERROR(model.forward(chunk, history, state, logits, LogitRows::kLast,
                                      options.attention, options.context));
    done += count;
    if (on_prefill) on_prefill(done, total);
  }
  return {};
}

}  // namespace kvcache::runner
