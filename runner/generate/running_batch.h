// RunningBatch: requests that join and leave while others decode.
#ifndef KVCACHE_RUNNER_GENERATE_RUNNING_BATCH_H_
#define KVCACHE_RUNNER_GENERATE_RUNNING_BATCH_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "runner/generate/continuation.h"
#include "runner/generate/options.h"
#include "runner/model/batching_store.h"
#include "runner/model/layered_store.h"
#include "runner/model/model.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

// Requests are numbered from 0 in the order they were added. Any of these may be empty.
struct BatchCallbacks {
  std::function<void(std::int64_t request, std::string_view)> on_text;  // whole characters only
  std::function<void(std::int64_t request, const GenerateResult&)> on_end;
};

// A queue of requests before `max_active` slots. A request waits for a free slot, is prefilled in a
// cache of its own, chunk by chunk between the steps of the others, and then decodes with them
// until it ends and frees its slot. Each has the tokens of its run alone (generate() with the same
// options): the others never reach its numbers.
// Thread safety: one thread at a time.
class RunningBatch {
 public:
  // Of `options`, `cache` and `page_size` are not looked at. REQUIRES: model and tokenizer outlive
  // the batch. Errors: those of check_options; kInvalidArgument for max_active outside 1 .. 65536
  // and for beams.
  static Result<RunningBatch> create(const Model& model, const Tokenizer& tokenizer,
                                     const GenerateOptions& options, std::int64_t max_active);

  // Queues a request, which may come at any time; returns its number. max_tokens: default that of
  // the options. Errors: those of check_prompt and check_options; Sampler::create.
  Result<std::int64_t> add(std::span<const std::int32_t> prompt,
                           std::optional<std::int64_t> max_tokens = {});

  // One round: a chunk of the prompt whose turn it is, then a token for every request that decodes.
  // Errors: what the model and the caches report; the batch is then over.
  Status step(const BatchCallbacks& callbacks = {});

  // Whether every request added so far has ended.
  bool done() const { return ended_ == requests_.size(); }

  std::int64_t active() const;  // requests that decode
  std::int64_t size() const { return static_cast<std::int64_t>(requests_.size()); }

  // What a request has given. Its seconds and steps are of the rounds it took part in, its usage of
  // its rows when it ended; `trace` is empty and `counters` are 0: those are of the batch.
  // REQUIRES: 0 <= request < size().
  const GenerateResult& result(std::int64_t request) const {
    return requests_[static_cast<std::size_t>(request)]->result;
  }

  // Rows computed and read over all requests, prompts included.
  const StepCounters& counters() const { return state_.counters(); }
  std::int64_t copied_bytes() const { return store_->usage().copied_bytes; }
  std::int64_t decode_steps() const { return decode_steps_; }
  double decode_seconds() const { return decode_seconds_; }  // of those steps

 private:
  struct Request {
    std::int64_t number = 0;
    GenerateOptions options;
    std::vector<std::int32_t> prompt;
    std::optional<Continuation> continuation;
    std::unique_ptr<LayeredStore> prefilled;  // until it has a slot
    std::int64_t done = 0;                    // tokens of the prompt stored
    GenerateResult result;
  };

  RunningBatch(const Model& model, const Tokenizer& tokenizer, const GenerateOptions& options,
               std::unique_ptr<BatchingStore> store);

  Status prefill_a_chunk(const BatchCallbacks& callbacks);
  Status decode(const BatchCallbacks& callbacks);
  // Samples and tells the next token of a request; whether it goes on.
  Result<bool> take_token(Request& request, std::span<const float> logits,
                          const BatchCallbacks& callbacks);
  void finish(Request& request, const BatchCallbacks& callbacks);
  std::optional<std::int64_t> free_slot() const;

  const Model* model_;
  const Tokenizer* tokenizer_;
  GenerateOptions options_;
  std::unique_ptr<BatchingStore> store_;
  ForwardState state_;
  std::vector<float> logits_;
  std::vector<std::unique_ptr<Request>> requests_;
  std::deque<Request*> waiting_;  // the first may be half prefilled
  std::vector<Request*> slots_;   // null: idle
  std::vector<std::int64_t> counts_;
  std::size_t ended_ = 0;
  std::int64_t decode_steps_ = 0;
  double decode_seconds_ = 0;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_RUNNING_BATCH_H_
