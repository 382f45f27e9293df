#include "runner/compare/compare.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace kvcache::runner {

std::int64_t expected_rows_computed(StoreKind cache, std::int64_t prompt_tokens,
                                    std::int64_t new_tokens) {
  const std::int64_t last = prompt_tokens + new_tokens - 1;
  if (cache != StoreKind::kNone) return last;
  return (prompt_tokens + last) * new_tokens / 2;
}

Result<std::vector<CompareRun>> compare(const Model& model, const Tokenizer& tokenizer,
                                        std::span<const std::int32_t> prompt,
                                        GenerateOptions options,
                                        const CompareCallbacks& callbacks) {
  options.stop_at_eos = false;
  std::vector<CompareRun> runs;
  for (const StoreKind cache :
       {StoreKind::kNone, StoreKind::kDynamic, StoreKind::kStatic, StoreKind::kPaged}) {
    if (callbacks.on_run) callbacks.on_run(cache);
    options.cache = cache;
    GenerateCallbacks progress;
    std::int64_t done = 0;
    progress.on_text = [&](std::string_view text) {
      if (callbacks.on_text) callbacks.on_text(cache, text);
    };
    progress.on_token = [&](const TokenTrace&) {
      if (callbacks.on_progress) callbacks.on_progress(cache, ++done, options.max_tokens);
    };
    CompareRun run;
    run.cache = cache;
    KVC_ASSIGN_OR_RETURN(run.generated, generate(model, tokenizer, prompt, options, progress));
    if (!runs.empty()) {
      const GenerateResult& without = runs.front().generated;
      run.same_tokens = run.generated.tokens == without.tokens;
      for (std::size_t i = 0; i < without.last_logits.size(); ++i) {
        const float difference = std::fabs(run.generated.last_logits[i] - without.last_logits[i]);
        run.max_logit_difference = std::max(run.max_logit_difference, difference);
      }
    }
    runs.push_back(std::move(run));
  }
  return runs;
}

}  // namespace kvcache::runner
