#include "runner/generate/generate.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <utility>

#include "runner/generate/stop_text.h"

namespace kvcache::runner {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The steps of one text: prefill in chunks, then a token at a time; without a cache the whole text
// every time.
class Session {
 public:
  Session(const Model& model, const GenerateOptions& options, std::unique_ptr<KvStore> store)
      : model_(model), options_(options), store_(std::move(store)) {}

  Status prefill(std::span<const std::int32_t> prompt, const GenerateCallbacks& callbacks) {
    text_.assign(prompt.begin(), prompt.end());
    const auto total = static_cast<std::int64_t>(prompt.size());
    const bool chunked = options_.prefill_chunk > 0 && store_->keeps_history();
    const std::int64_t chunk = chunked ? options_.prefill_chunk : total;
    for (std::int64_t done = 0; done < total;) {
      const std::int64_t count = std::min(chunk, total - done);
      KVC_RETURN_IF_ERROR(
          forward(prompt.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count))));
      done += count;
      if (callbacks.on_prefill) callbacks.on_prefill(done, total);
    }
    return {};
  }

  Status step(std::int32_t token) {
    text_.push_back(token);
    if (store_->keeps_history()) return forward({&text_.back(), 1});
    return forward(text_);
  }

  const KvStore& store() const { return *store_; }
  const StepCounters& counters() const { return state_.counters(); }
  std::vector<float>& logits() { return logits_; }
  std::span<const std::int32_t> text() const { return text_; }

 private:
  Status forward(std::span<const std::int32_t> tokens) {
    return model_.forward(tokens, *store_, state_, logits_, LogitRows::kLast, options_.attention,
                          options_.context);
  }

  const Model& model_;
  const GenerateOptions& options_;
  std::unique_ptr<KvStore> store_;
  ForwardState state_;
  std::vector<float> logits_;
  std::vector<std::int32_t> text_;
};

Status check(const Model& model, std::span<const std::int32_t> prompt,
             const GenerateOptions& options) {
  const auto count = static_cast<std::int64_t>(prompt.size());
  const std::int64_t context = model.config().max_position_embeddings;
  if (count == 0) {
    return Status(StatusCode::kInvalidArgument, "prompt: found no tokens, expected at least one");
  }
  if (count > context) {
    return Status(StatusCode::kOutOfRange, "prompt: found " + std::to_string(count) +
                                               " tokens, expected at most " +
                                               std::to_string(context) + " (the model's context)");
  }
  if (options.max_tokens < 1) {
    return Status(
        StatusCode::kInvalidArgument,
        "max_tokens: found " + std::to_string(options.max_tokens) + ", expected at least 1");
  }
  if (options.prefill_chunk < 0) {
    return Status(StatusCode::kInvalidArgument, "prefill_chunk: found " +
                                                    std::to_string(options.prefill_chunk) +
                                                    ", expected 0 (the whole prompt) or more");
  }
  return {};
}

Result<std::unique_ptr<KvStore>> open_store(const Model& model, std::int64_t prompt_tokens,
                                            const GenerateOptions& options) {
  const std::int64_t context = model.config().max_position_embeddings;
  KvStoreOptions store;
  store.kind = options.cache;
  store.dtype = options.kv_dtype.value_or(model.default_kv_dtype());
  store.layout = options.layout;
  store.page_size = options.page_size;
  // The last generated token is never stored.
  store.max_length = prompt_tokens + std::min(options.max_tokens - 1, context - prompt_tokens);
  store.memory = options.memory;
  return make_kv_store(model.config(), store);
}

TokenTrace trace_of(const Session& session, std::int32_t token, double seconds,
                    const StepCounters& before) {
  TokenTrace trace;
  trace.position = static_cast<std::int64_t>(session.text().size());
  trace.token = token;
  trace.seconds = seconds;
  trace.rows_computed = session.counters().rows_computed - before.rows_computed;
  trace.rows_read = session.counters().rows_read - before.rows_read;
  trace.cache_length = session.store().length();
  trace.usage = session.store().usage();
  return trace;
}

}  // namespace

const char* name_of(StopReason reason) noexcept {
  switch (reason) {
    case StopReason::kEos:
      return "eos";
    case StopReason::kStopText:
      return "stop";
    case StopReason::kMaxTokens:
      return "length";
    case StopReason::kContext:
      return "context";
  }
  return "?";
}

Result<GenerateResult> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const std::int32_t> prompt,
                                const GenerateOptions& options,
                                const GenerateCallbacks& callbacks) try {
  KVC_RETURN_IF_ERROR(check(model, prompt, options));
  KVC_ASSIGN_OR_RETURN(Sampler sampler, Sampler::create(options.sampler));
  KVC_ASSIGN_OR_RETURN(auto store,
                       open_store(model, static_cast<std::int64_t>(prompt.size()), options));
  Session session(model, options, std::move(store));
  StreamDecoder decoder(tokenizer);
  StopText stop(options.stop);
  GenerateResult result;
  result.prompt_tokens = static_cast<std::int64_t>(prompt.size());
  const auto show = [&](const std::string& text) {
    if (text.empty()) return;
    result.text += text;
    if (callbacks.on_text) callbacks.on_text(text);
  };
  const auto is_eos = [&](std::int32_t token) {
    const auto& ids = model.config().eos_token_ids;
    return options.stop_at_eos && std::find(ids.begin(), ids.end(), token) != ids.end();
  };

  auto start = Clock::now();
  StepCounters before;
  KVC_RETURN_IF_ERROR(session.prefill(prompt, callbacks));
  result.prefill_seconds = seconds_since(start);
  double seconds = result.prefill_seconds;
  while (true) {
    KVC_ASSIGN_OR_RETURN(const std::int32_t token,
                         sampler.sample(session.logits(), session.text()));
    result.trace.push_back(trace_of(session, token, seconds, before));
    if (is_eos(token)) {
      result.stop_reason = StopReason::kEos;
      break;
    }
    result.tokens.push_back(token);
    if (callbacks.on_token) callbacks.on_token(result.trace.back());
    show(stop.push(decoder.push(token)));
    if (stop.found()) {
      result.stop_reason = StopReason::kStopText;
      break;
    }
    if (static_cast<std::int64_t>(result.tokens.size()) >= options.max_tokens) {
      result.stop_reason = StopReason::kMaxTokens;
      break;
    }
    if (static_cast<std::int64_t>(session.text().size()) >=
        model.config().max_position_embeddings) {
      result.stop_reason = StopReason::kContext;
      break;
    }
    before = session.counters();
    start = Clock::now();
    KVC_RETURN_IF_ERROR(session.step(token));
    seconds = seconds_since(start);
    result.decode_seconds += seconds;
    ++result.decode_steps;
  }
  show(stop.push(decoder.flush()));
  show(stop.flush());
  result.counters = session.counters();
  result.usage = session.store().usage();
  result.last_logits = std::move(session.logits());
  return result;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "out of memory");
}

}  // namespace kvcache::runner
