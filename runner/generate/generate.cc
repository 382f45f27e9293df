#include "runner/generate/generate.h"

#include <chrono>
#include <memory>
#include <new>
#include <utility>

#include "runner/generate/beam_search.h"
#include "runner/generate/continuation.h"
#include "runner/generate/prefill.h"

namespace kvcache::runner {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Result<GenerateResult> generate_with_beams(const Model& model, const Tokenizer& tokenizer,
                                           std::span<const std::int32_t> prompt,
                                           const GenerateOptions& options,
                                           const GenerateCallbacks& callbacks) {
  KVC_ASSIGN_OR_RETURN(GenerateResult result,
                       generate_beams(model, prompt, options, callbacks.on_prefill));
  result.text = tokenizer.decode(result.tokens);
  if (callbacks.on_text) callbacks.on_text(result.text);
  return result;
}

}  // namespace

Result<GenerateResult> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const std::int32_t> prompt,
                                const GenerateOptions& options,
                                const GenerateCallbacks& callbacks) try {
  KVC_RETURN_IF_ERROR(check_prompt(model.config(), prompt));
  KVC_RETURN_IF_ERROR(check_options(options));
  if (options.num_beams > 1) {
    return generate_with_beams(model, tokenizer, prompt, options, callbacks);
  }
  KVC_ASSIGN_OR_RETURN(auto continuation,
                       Continuation::create(model.config(), tokenizer, prompt, options));
  KVC_ASSIGN_OR_RETURN(const auto store,
                       open_store(model, static_cast<std::int64_t>(prompt.size()), options));
  ForwardState state;
  std::vector<float> logits;
  GenerateResult result;
  result.prompt_tokens = continuation.prompt_tokens();
  const auto show = [&](const std::string& text) {
    if (text.empty()) return;
    result.text += text;
    if (callbacks.on_text) callbacks.on_text(text);
  };

  auto start = Clock::now();
  StepCounters before;
  KVC_RETURN_IF_ERROR(prefill(model, prompt, options, *store, state, logits, callbacks.on_prefill));
  result.prefill_seconds = seconds_since(start);
  double seconds = result.prefill_seconds;
  while (true) {
    KVC_ASSIGN_OR_RETURN(const std::int32_t token, continuation.sample(logits));
    TokenTrace trace;
    trace.position = static_cast<std::int64_t>(continuation.text().size());
    trace.token = token;
    trace.seconds = seconds;
    trace.rows_computed = state.counters().rows_computed - before.rows_computed;
    trace.rows_read = state.counters().rows_read - before.rows_read;
    trace.cache_length = store->length();
    trace.usage = store->usage();
    result.trace.push_back(trace);
    const std::string text = continuation.push(token);
    if (continuation.ended() == StopReason::kEos) break;
    if (callbacks.on_token) callbacks.on_token(trace);
    show(text);
    if (continuation.ended().has_value()) break;

    before = state.counters();
    start = Clock::now();
    // Without a cache, the whole text every time.
    const auto all = continuation.text();
    KVC_RETURN_IF_ERROR(model.forward(store->keeps_history() ? all.last(1) : all, *store, state,
                                      logits, LogitRows::kLast, options.attention,
                                      options.context));
    seconds = seconds_since(start);
    result.decode_seconds += seconds;
    ++result.decode_steps;
  }
  show(continuation.flush());
  result.tokens = continuation.new_tokens();
  result.stop_reason = *continuation.ended();
  result.counters = state.counters();
  result.usage = store->usage();
  result.last_logits = std::move(logits);
  return result;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "out of memory");
}

}  // namespace kvcache::runner
