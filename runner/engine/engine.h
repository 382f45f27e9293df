// Engine: requests that go forward together, joining and leaving while others decode.
#ifndef KVCACHE_RUNNER_ENGINE_ENGINE_H_
#define KVCACHE_RUNNER_ENGINE_ENGINE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "runner/engine/admission.h"
#include "runner/engine/request.h"
#include "runner/generate/options.h"
#include "runner/model/model.h"
#include "runner/model/paged_history.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

struct EngineOptions {
  std::int64_t max_active = 8;  // requests that go forward together, 1 .. 65536

  // Room for the tokens of all of them: address space, memory as they fill it. 0: a whole context
  // for each, at most 2^20 tokens in all and at least one context.
  std::int64_t kv_tokens = 0;

  // Prompt tokens a step takes beside what decodes; a chunk of one prompt at the least.
  std::int64_t prompt_tokens = 512;

  // What texts leave behind when they end, to be found by others: as much of it as takes so many
  // bytes (PrefixStats::bytes), beside what goes on. 0: no prefix cache. Not looked at with
  // GenerateOptions::prefixes, whose budget rules: kv_tokens are then spoken for in that store.
  std::int64_t cached_bytes = kPrefixBytes;
  Eviction eviction = Eviction::kLru;  // which of it gives way
};

// Requests are numbered from 0 in the order they were added. Any of these may be empty. A call may
// add and cancel requests.
struct EngineCallbacks {
  std::function<void(std::int64_t request, std::string_view)> on_text;  // whole characters only
  std::function<void(std::int64_t request, const GenerateResult&)> on_end;
};

// A request waits until there is room for it (Admission), is prefilled chunk by chunk in the steps
// in which others decode, and decodes with them until it ends. Rows of all requests are rows of one
// batch over one pool of pages. A prompt begins with what is known of it: pages of texts that
// ended, and of those that go on, as their steps end; where another one is about to compute a page
// of both, it waits for that. Each has the tokens of its run alone (generate() with the same
// options): the others never reach its numbers. One that fails, for the memory it asked for or the
// logits it got, ends alone, and one that ends in whatever way leaves nothing behind.
// Thread safety: one thread at a time.
class Engine {
 public:
  // Of `options`, `cache` is not looked at. REQUIRES: model and tokenizer outlive the engine.
  // Errors: those of check_options; kInvalidArgument for options out of their bounds, beams, and a
  // page_size that no cache could have; kRetryLater where others have spoken for the room of the
  // given store.
  static Result<Engine> create(const Model& model, const Tokenizer& tokenizer,
                               const GenerateOptions& options, const EngineOptions& engine = {});

  // Queues a request, which may come at any time; returns its number. max_tokens: default that of
  // the options. Errors: those of check_prompt and check_options; Sampler::create; kNeverFits for
  // one that kv_tokens have no room for.
  Result<std::int64_t> add(std::span<const std::int32_t> prompt,
                           std::optional<std::int64_t> max_tokens = {});

  // Ends a request with what it has so far. Errors: kOutOfRange for a number never given,
  // kNotFound for a request that has ended.
  Status cancel(std::int64_t request, const EngineCallbacks& callbacks = {});

  // Admits who may join, then takes one forward pass: a token for every request that decodes, and
  // chunks of prompts. What fails for one request ends that request. Errors: kOutOfMemory for the
  // engine's own books; the step may be tried again.
  Status step(const EngineCallbacks& callbacks = {});

  // Whether every request added so far has ended.
  bool done() const { return ended_ == size(); }

  // Of its own or the given prefix cache; zeros without one.
  PrefixStats prefix_stats() const;

  std::int64_t active() const { return static_cast<std::int64_t>(rows_.size()); }
  std::int64_t size() const { return static_cast<std::int64_t>(requests_.size()); }

  // What a request has given. Its seconds and steps are of the steps it took part in, its usage of
  // its rows when it ended; `trace` is empty and `counters` are 0: those are of the engine.
  // REQUIRES: 0 <= request < size().
  const GenerateResult& result(std::int64_t request) const { return at(request).result; }

  // Rows computed and read over all requests, prompts included.
  const StepCounters& counters() const { return state_.counters(); }
  std::int64_t steps() const { return steps_; }
  double seconds() const { return seconds_; }  // of those steps
  std::int64_t decode_steps() const { return decode_steps_; }
  double decode_seconds() const { return decode_seconds_; }  // of the steps in which one decoded

  // Every request is in one place, every active one has a row of the length it thinks, nobody else
  // has one, and the cache's own books agree. Errors: kInternal. For tests.
  Status check_invariants() const;

 private:
  Engine(const Model& model, const Tokenizer& tokenizer, const GenerateOptions& options,
         const EngineOptions& engine, std::unique_ptr<PagedHistory> history, Admission admission);

  const Request& at(std::int64_t request) const {
    return *requests_[static_cast<std::size_t>(request)];
  }
  std::int64_t most_stored(const Request& request) const {
    return request.most_stored(model_->config().max_position_embeddings);
  }

  void admit(const EngineCallbacks& callbacks);
  // Those that joined look for their beginnings, unless others are about to compute them.
  void look();
  bool waits(std::size_t row) const;
  void trim();
  // A forward pass of counts_, without the requests that are refused: they end. Fills logits_.
  void forward(const EngineCallbacks& callbacks);
  Status run();
  // The next counts[row] tokens of each request, packed, into ids_.
  void collect_ids(std::span<const std::int64_t> counts);
  // Says who leaves because a forward pass failed with `status`: at least one.
  void blame(const Status& status);
  void take_tokens(double seconds, const EngineCallbacks& callbacks);
  // Samples and tells the next token of a request. Errors: those of the sampler, kOutOfMemory.
  Status take_token(Request& request, std::span<const float> logits,
                    const EngineCallbacks& callbacks) const;
  // Ends the active requests that leave.
  void sweep(const EngineCallbacks& callbacks);
  // A request ends, its row with it if it has one.
  void end(Request& request, StopReason reason, const EngineCallbacks& callbacks);

  const Model* model_;
  const Tokenizer* tokenizer_;
  GenerateOptions options_;
  EngineOptions engine_;
  std::unique_ptr<PagedHistory> history_;
  Admission admission_;
  ForwardState state_;
  std::vector<float> logits_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::deque<Request*> waiting_;
  std::vector<Request*> rows_;        // by row of the history, oldest first
  std::vector<std::int64_t> counts_;  // [rows_] of the step
  std::vector<std::int32_t> ids_;     // of the step, packed
  std::int64_t ended_ = 0;
  bool stepping_ = false;
  std::int64_t steps_ = 0, decode_steps_ = 0;
  double seconds_ = 0, decode_seconds_ = 0;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_ENGINE_ENGINE_H_
