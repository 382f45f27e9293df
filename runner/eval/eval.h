// What a form of stored rows costs in quality: a text through caches that store it differently,
// token by token against the same text through 16-bit rows.
#ifndef KVCACHE_RUNNER_EVAL_EVAL_H_
#define KVCACHE_RUNNER_EVAL_EVAL_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runner/model/kv_dtype.h"
#include "runner/model/model.h"

namespace kvcache::runner {

struct EvalOptions {
  std::vector<KvDtype> forms;        // beside the reference, bf16 rows
  std::int64_t context = 2048;       // tokens of a window, 2 .. the model's context
  std::int64_t prefill_chunk = 128;  // tokens a step brings: most queries read rows of steps before
  std::int64_t greedy_tokens = 64;   // decoded greedily after half a window; 0: none
  std::int64_t page_size = 16;
  ExecContext context_of_work;
};

// One form. Divergences are means over all predicted tokens, in nats.
struct EvalRun {
  std::string words;             // of the form, "bf16" of the reference
  std::int64_t token_bytes = 0;  // of the rows of a token in all layers
  std::int64_t predicted = 0;    // tokens: all of a window but its first
  double perplexity = 0;
  double divergence = 0;           // KL(reference || form) of the next token's distribution
  double same_top = 0;             // share of tokens whose likeliest successor is the reference's
  std::int64_t greedy_tokens = 0;  // decoded
  std::int64_t first_difference = 0;  // of them before one differs from the reference's; all: the
                                      // same words
  double prefill_seconds = 0, decode_seconds = 0;
  std::int64_t prefilled = 0, decoded = 0;  // tokens of those seconds

  double prefill_tokens_per_s() const { return rate(prefilled, prefill_seconds); }
  double decode_tokens_per_s() const { return rate(decoded, decode_seconds); }

 private:
  static double rate(std::int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
  }
};

// Feeds `text` window by window, in chunks, through pages of every form, and then decodes greedily.
// The reference comes first. `on_progress` may be empty; it counts tokens over all forms.
// Errors: kInvalidArgument for options out of their bounds and a text of fewer than two tokens;
// what the model and the cache report.
Result<std::vector<EvalRun>> evaluate(
    const Model& model, std::span<const std::int32_t> text, const EvalOptions& options,
    const std::function<void(std::int64_t done, std::int64_t total)>& on_progress = {});

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_EVAL_EVAL_H_
