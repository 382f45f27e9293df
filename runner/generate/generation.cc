#include "runner/generate/generation.h"

#include <chrono>
#include <new>
#include <string>

#include "runner/generate/prefill.h"

namespace kvcache::runner {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Result<std::unique_ptr<Generation>> Generation::create(const Model& model,
                                                       const Tokenizer& tokenizer,
                                                       std::span<const std::int32_t> prompt,
                                                       const GenerateOptions& options) try {
  KVC_RETURN_IF_ERROR(check_prompt(model.config(), prompt));
  KVC_RETURN_IF_ERROR(check_options(options));
  if (options.num_beams != 1) {
    return Status(StatusCode::kInvalidArgument, "num_beams: found " +
                                                    std::to_string(options.num_beams) +
                                                    " in a text that grows by steps, expected 1");
  }
  std::unique_ptr<Generation> made(new Generation(model, prompt, options));
  KVC_ASSIGN_OR_RETURN(made->continuation_,
                       Continuation::create(model.config(), tokenizer, prompt, made->options_));
  made->result_.prompt_tokens = made->continuation_->prompt_tokens();
  KVC_ASSIGN_OR_RETURN(made->history_, open_history(model, made->result_.prompt_tokens, options));
  made->prefilled_ = made->result_.reused_tokens = made->history_->find(0, prompt);
  return made;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "out of memory");
}

Status Generation::step(const GenerateCallbacks& callbacks) try {
  if (prefilled_ < result_.prompt_tokens) {
    KVC_RETURN_IF_ERROR(prefill_a_chunk(callbacks));
    if (prefilled_ < result_.prompt_tokens) return {};
  } else {
    KVC_RETURN_IF_ERROR(decode());
  }
  KVC_RETURN_IF_ERROR(take_token(callbacks));
  if (done()) finish(callbacks);
  return {};
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "out of memory");
}

Status Generation::prefill_a_chunk(const GenerateCallbacks& callbacks) {
  const auto start = Clock::now();
  const std::int64_t total = result_.prompt_tokens;
  const std::int64_t count =
      history_->keeps_history() ? next_chunk(total, prefilled_, options_) : total;
  const auto chunk = std::span<const std::int32_t>(prompt_).subspan(
      static_cast<std::size_t>(prefilled_), static_cast<std::size_t>(count));
  KVC_RETURN_IF_ERROR(model_->forward(chunk, *history_, state_, logits_, LogitRows::kLast,
                                      options_.attention, options_.context));
  prefilled_ += count;
  result_.prefill_seconds += seconds_since(start);
  seconds_ = result_.prefill_seconds;
  if (callbacks.on_prefill) callbacks.on_prefill(prefilled_, total);
  return {};
}

Status Generation::decode() {
  const auto start = Clock::now();
  counted_ = state_.counters();
  // Without a cache, the whole text every time.
  const auto all = continuation_->text();
  KVC_RETURN_IF_ERROR(model_->forward(history_->keeps_history() ? all.last(1) : all, *history_,
                                      state_, logits_, LogitRows::kLast, options_.attention,
                                      options_.context));
  seconds_ = seconds_since(start);
  result_.decode_seconds += seconds_;
  ++result_.decode_steps;
  return {};
}

Status Generation::take_token(const GenerateCallbacks& callbacks) {
  KVC_ASSIGN_OR_RETURN(const std::int32_t token, continuation_->sample(logits_));
  TokenTrace trace;
  trace.position = static_cast<std::int64_t>(continuation_->text().size());
  trace.token = token;
  trace.seconds = seconds_;
  trace.rows_computed = state_.counters().rows_computed - counted_.rows_computed;
  trace.rows_read = state_.counters().rows_read - counted_.rows_read;
  trace.cache_length = history_->length();
  trace.usage = history_->usage();
  result_.trace.push_back(trace);
  const std::string text = continuation_->push(token);
  if (continuation_->ended() == StopReason::kEos) return {};
  if (callbacks.on_token) callbacks.on_token(trace);
  show(text, callbacks);
  return {};
}

void Generation::show(const std::string& text, const GenerateCallbacks& callbacks) {
  if (text.empty()) return;
  result_.text += text;
  if (callbacks.on_text) callbacks.on_text(text);
}

void Generation::finish(const GenerateCallbacks& callbacks) {
  show(continuation_->flush(), callbacks);
  result_.tokens = continuation_->new_tokens();
  result_.stop_reason = *continuation_->ended();
  result_.counters = state_.counters();
  result_.usage = history_->usage();
  result_.last_logits = std::move(logits_);
}

}  // namespace kvcache::runner
