// What every way to generate takes and gives.
#ifndef KVCACHE_RUNNER_GENERATE_OPTIONS_H_
#define KVCACHE_RUNNER_GENERATE_OPTIONS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runner/model/history.h"
#include "runner/model/model.h"
#include "runner/model/prefix_store.h"
#include "runner/sampler/sampler.h"

namespace kvcache::runner {

inline constexpr std::int64_t kMostBeams = 1024;

struct GenerateOptions {
  HistoryKind cache = HistoryKind::kDynamic;
  KvDtype kv_dtype;  // of what it does not name: the model's default_kv_dtype()
  Layout layout = Layout::kHND;
  std::int64_t page_size = 16;     // tokens
  std::int64_t max_tokens = 128;   // new tokens, >= 1
  std::int64_t prefill_chunk = 0;  // tokens per prefill step; 0: the whole prompt at once
  SamplerOptions sampler;
  std::int64_t num_beams = 1;  // 1 .. kMostBeams; more than one is a beam search: see beam_search.h
  double length_penalty = 1.0;    // of a beam search
  std::vector<std::string> stop;  // generation ends before the first of these in the text
  bool stop_at_eos = true;
  AttentionOptions attention;
  MemoryResource* memory = nullptr;
  ExecContext context;

  // Where rows are kept, and prompts find their beginnings, instead: `cache`, kv_dtype, layout,
  // page_size and memory are then those of the store. A text that it has no room for goes past it,
  // by itself: see open_history. Null: nothing is found.
  std::shared_ptr<PrefixStore> prefixes;
  std::int64_t tenant = 0;  // there: texts of different tenants never meet
};

// Why generation ended: an end-of-text token, a stop text, max_tokens, or the model's context; of a
// request of an engine also that it was cancelled, or failed.
enum class StopReason : std::uint8_t { kEos, kStopText, kMaxTokens, kContext, kCancelled, kError };

// "eos", "stop", "length", "context", "cancelled", "error".
const char* name_of(StopReason reason) noexcept;

// One generated token: what its step cost, counted.
struct TokenTrace {
  std::int64_t position = 0;  // of the generated token in the whole text, from 0
  std::int32_t token = 0;
  double seconds = 0;              // of the step that computed it (the whole prefill for the first)
  std::int64_t rows_computed = 0;  // K/V rows a layer computed in that step
  std::int64_t rows_read = 0;      // K/V rows a layer's attention read in that step
  std::int64_t cache_length = 0;   // tokens stored after it
  KvUsage usage;                   // after it
};

// What a beam search finished.
struct Hypothesis {
  std::vector<std::int32_t> tokens;  // new ones, an end-of-text token at the end included
  double score = 0;                  // sum of log-probabilities / number of tokens ^ length_penalty
};

struct GenerateResult {
  std::string text;                  // of the new tokens, up to a stop text
  std::vector<std::int32_t> tokens;  // new ones, without the end-of-text token
  StopReason stop_reason = StopReason::kMaxTokens;
  Status status;  // why a request of an engine failed (kError); ok for all others
  std::int64_t prompt_tokens = 0;
  std::int64_t reused_tokens = 0;  // of the prompt: their rows were found, not computed
  double prefill_seconds = 0;
  double decode_seconds = 0;       // of the steps after the prefill
  std::int64_t decode_steps = 0;   // their number
  StepCounters counters;           // over all steps
  KvUsage usage;                   // at the end
  std::vector<TokenTrace> trace;   // one a sampled token; none of a beam search
  std::vector<float> last_logits;  // of the last step, [vocab_size]; none of a beam search
  std::vector<Hypothesis> beams;   // of a beam search, best first; tokens and text are the best's
};

// Errors: kInvalidArgument for an empty prompt or bad options, kOutOfRange for a prompt that leaves
// no room in the model's context.
Status check_prompt(const ModelConfig& config, std::span<const std::int32_t> prompt);
Status check_options(const GenerateOptions& options);

// Pages of options.prefixes that a prompt and what is generated after it are given, or not: one
// that is found in part is held while it is copied. REQUIRES: options.prefixes.
std::int64_t shared_pages_of(const Model& model, std::int64_t prompt_tokens,
                             const GenerateOptions& options);

// A history for a prompt and what is generated after it, with room for options.num_beams sequences:
// in the pages of options.prefixes, or where these are spoken for in what the other options say.
Result<std::unique_ptr<History>> open_history(const Model& model, std::int64_t prompt_tokens,
                                              const GenerateOptions& options);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_OPTIONS_H_
