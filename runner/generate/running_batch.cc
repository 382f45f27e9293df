#include "runner/generate/running_batch.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <string>
#include <utility>

#include "runner/generate/prefill.h"

namespace kvcache::runner {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void show(const std::string& text, std::int64_t request, GenerateResult& result,
          const BatchCallbacks& callbacks) {
  if (text.empty()) return;
  result.text += text;
  if (callbacks.on_text) callbacks.on_text(request, text);
}

}  // namespace

RunningBatch::RunningBatch(const Model& model, const Tokenizer& tokenizer,
                           const GenerateOptions& options, std::unique_ptr<BatchingStore> store)
    : model_(&model),
      tokenizer_(&tokenizer),
      options_(options),
      store_(std::move(store)),
      slots_(static_cast<std::size_t>(store_->num_sequences()), nullptr) {}

Result<RunningBatch> RunningBatch::create(const Model& model, const Tokenizer& tokenizer,
                                          const GenerateOptions& options,
                                          std::int64_t max_active) try {
  KVC_RETURN_IF_ERROR(check_options(options));
  if (options.num_beams != 1) {
    return Status(StatusCode::kInvalidArgument, "num_beams: found " +
                                                    std::to_string(options.num_beams) +
                                                    " in a running batch, expected 1");
  }
  KvStoreOptions rows;
  rows.dtype = options.kv_dtype.value_or(model.default_kv_dtype());
  rows.layout = options.layout;
  rows.memory = options.memory;
  KVC_ASSIGN_OR_RETURN(auto store, BatchingStore::create(model.config(), rows, max_active));
  return RunningBatch(model, tokenizer, options, std::move(store));
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "out of memory");
}

Result<std::int64_t> RunningBatch::add(std::span<const std::int32_t> prompt,
                                       std::optional<std::int64_t> max_tokens) try {
  KVC_RETURN_IF_ERROR(check_prompt(model_->config(), prompt));
  auto request = std::make_unique<Request>();
  request->number = size();
  request->options = options_;
  if (max_tokens.has_value()) request->options.max_tokens = *max_tokens;
  KVC_RETURN_IF_ERROR(check_options(request->options));
  request->prompt.assign(prompt.begin(), prompt.end());
  KVC_ASSIGN_OR_RETURN(request->continuation, Continuation::create(model_->config(), *tokenizer_,
                                                                   prompt, request->options));
  request->result.prompt_tokens = request->continuation->prompt_tokens();
  requests_.push_back(std::move(request));
  waiting_.push_back(requests_.back().get());
  return requests_.back()->number;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "out of memory");
}

std::int64_t RunningBatch::active() const {
  return static_cast<std::int64_t>(slots_.size()) -
         std::count(slots_.begin(), slots_.end(), nullptr);
}

std::optional<std::int64_t> RunningBatch::free_slot() const {
  const auto found = std::find(slots_.begin(), slots_.end(), nullptr);
  if (found == slots_.end()) return std::nullopt;
  return found - slots_.begin();
}

Status RunningBatch::step(const BatchCallbacks& callbacks) try {
  KVC_RETURN_IF_ERROR(prefill_a_chunk(callbacks));
  return decode(callbacks);
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "out of memory");
}

Status RunningBatch::prefill_a_chunk(const BatchCallbacks& callbacks) {
  const auto slot = free_slot();
  if (waiting_.empty() || !slot.has_value()) return {};
  Request& request = *waiting_.front();
  if (request.prefilled == nullptr) {
    CacheOptions rows;
    rows.dtype = options_.kv_dtype.value_or(model_->default_kv_dtype());
    rows.layout = options_.layout;
    rows.memory = options_.memory;
    KVC_ASSIGN_OR_RETURN(DynamicCache cache, DynamicCache::create(rows));
    request.prefilled =
        std::make_unique<LayeredStore>(std::make_unique<DynamicCache>(std::move(cache)));
  }
  const auto start = Clock::now();
  const std::int64_t count =
      next_chunk(request.result.prompt_tokens, request.done, request.options);
  const auto chunk =
      std::span(request.prompt)
          .subspan(static_cast<std::size_t>(request.done), static_cast<std::size_t>(count));
  KVC_RETURN_IF_ERROR(model_->forward(chunk, *request.prefilled, state_, logits_, LogitRows::kLast,
                                      options_.attention, options_.context));
  request.done += count;
  request.result.prefill_seconds += seconds_since(start);
  if (request.done < request.result.prompt_tokens) return {};

  waiting_.pop_front();
  KVC_ASSIGN_OR_RETURN(const bool goes_on, take_token(request, logits_, callbacks));
  request.result.usage = request.prefilled->usage();
  if (goes_on) {
    KVC_RETURN_IF_ERROR(store_->add(*slot, request.prefilled->cache()));
    slots_[static_cast<std::size_t>(*slot)] = &request;
  }
  request.prefilled.reset();
  if (!goes_on) finish(request, callbacks);
  return {};
}

Status RunningBatch::decode(const BatchCallbacks& callbacks) {
  if (active() == 0) return {};
  const auto start = Clock::now();
  std::vector<std::int32_t> ids;
  counts_.assign(slots_.size(), 0);
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot] == nullptr) continue;
    ids.push_back(slots_[slot]->continuation->text().back());
    counts_[slot] = 1;
  }
  KVC_RETURN_IF_ERROR(model_->forward({ids, counts_}, *store_, state_, logits_, LogitRows::kLast,
                                      options_.attention, options_.context));
  const double seconds = seconds_since(start);
  decode_seconds_ += seconds;
  ++decode_steps_;

  const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
  std::size_t row = 0;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot] == nullptr) continue;
    Request& request = *slots_[slot];
    request.result.decode_seconds += seconds;
    ++request.result.decode_steps;
    const auto logits = std::span<const float>(logits_).subspan(row++ * vocab, vocab);
    KVC_ASSIGN_OR_RETURN(const bool goes_on, take_token(request, logits, callbacks));
    if (goes_on) continue;
    const KvUsage with = store_->usage();
    KVC_RETURN_IF_ERROR(store_->remove(static_cast<std::int64_t>(slot)));
    const KvUsage without = store_->usage();
    request.result.usage.nbytes = with.nbytes - without.nbytes;
    request.result.usage.reserved_bytes = with.reserved_bytes - without.reserved_bytes;
    slots_[slot] = nullptr;
    finish(request, callbacks);
  }
  return {};
}

Result<bool> RunningBatch::take_token(Request& request, std::span<const float> logits,
                                      const BatchCallbacks& callbacks) {
  Continuation& continuation = *request.continuation;
  KVC_ASSIGN_OR_RETURN(const std::int32_t token, continuation.sample(logits));
  show(continuation.push(token), request.number, request.result, callbacks);
  if (!continuation.ended().has_value()) return true;
  request.result.last_logits.assign(logits.begin(), logits.end());
  return false;
}

void RunningBatch::finish(Request& request, const BatchCallbacks& callbacks) {
  GenerateResult& result = request.result;
  show(request.continuation->flush(), request.number, result, callbacks);
  result.tokens = request.continuation->new_tokens();
  result.stop_reason = *request.continuation->ended();
  ++ended_;
  if (callbacks.on_end) callbacks.on_end(request.number, result);
}

}  // namespace kvcache::runner
