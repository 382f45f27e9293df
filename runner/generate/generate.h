// Generation: a prompt goes in, tokens come out one at a time, through any cache or none.
#ifndef KVCACHE_RUNNER_GENERATE_GENERATE_H_
#define KVCACHE_RUNNER_GENERATE_GENERATE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runner/model/kv_store.h"
#include "runner/model/model.h"
#include "runner/sampler/sampler.h"
#include "runner/tokenizer/stream_decoder.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

struct GenerateOptions {
  StoreKind cache = StoreKind::kDynamic;
  std::optional<DType> kv_dtype;  // default: the model's default_kv_dtype()
  Layout layout = Layout::kHND;
  std::int64_t page_size = 16;     // tokens
  std::int64_t max_tokens = 128;   // new tokens, >= 1
  std::int64_t prefill_chunk = 0;  // tokens per prefill step; 0: the whole prompt at once
  SamplerOptions sampler;
  std::vector<std::string> stop;  // generation ends before the first of these in the text
  bool stop_at_eos = true;
  AttentionOptions attention;
  MemoryResource* memory = nullptr;
  ExecContext context;
};

// Why generation ended: an end-of-text token, a stop text, max_tokens, or the model's context.
enum class StopReason : std::uint8_t { kEos, kStopText, kMaxTokens, kContext };

// "eos", "stop", "length", "context".
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

// Called on the generating thread, in order. Any may be empty.
struct GenerateCallbacks {
  std::function<void(std::string_view)> on_text;  // whole characters only
  std::function<void(const TokenTrace&)> on_token;
  std::function<void(std::int64_t done, std::int64_t total)> on_prefill;  // tokens
};

struct GenerateResult {
  std::string text;                  // of the new tokens, up to a stop text
  std::vector<std::int32_t> tokens;  // new ones, without the end-of-text token
  StopReason stop_reason = StopReason::kMaxTokens;
  std::int64_t prompt_tokens = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;       // of the steps after the prefill
  std::int64_t decode_steps = 0;   // their number
  StepCounters counters;           // over all steps
  KvUsage usage;                   // at the end
  std::vector<TokenTrace> trace;   // one a sampled token
  std::vector<float> last_logits;  // of the last step, [vocab_size]
};

// Errors: kInvalidArgument for an empty prompt or bad options, kOutOfRange for a prompt that
// leaves no room in the model's context; what the model and the cache report.
Result<GenerateResult> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const std::int32_t> prompt,
                                const GenerateOptions& options,
                                const GenerateCallbacks& callbacks = {});

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_GENERATE_H_
