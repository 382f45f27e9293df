// Generation: one text that grows by steps. generate() is one run to its end.
#ifndef KVCACHE_RUNNER_GENERATE_GENERATION_H_
#define KVCACHE_RUNNER_GENERATE_GENERATION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runner/generate/continuation.h"
#include "runner/generate/generate.h"
#include "runner/generate/options.h"
#include "runner/model/history.h"
#include "runner/model/model.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

// Thread safety: one thread at a time; several generations of one model may run together.
class Generation {
 public:
  // REQUIRES: model and tokenizer outlive it. Errors: those of check_prompt and check_options;
  // kInvalidArgument for beams, whose texts do not grow by steps; what the cache reports.
  static Result<std::unique_ptr<Generation>> create(const Model& model, const Tokenizer& tokenizer,
                                                    std::span<const std::int32_t> prompt,
                                                    const GenerateOptions& options);

  // A chunk of the prompt (the last one gives a token too), or a token. REQUIRES: !done().
  // Errors: what the model and the cache report; the generation is then over.
  Status step(const GenerateCallbacks& callbacks = {});

  bool done() const { return continuation_->ended().has_value(); }

  // What has come so far; whole once it is done.
  const GenerateResult& result() const { return result_; }
  GenerateResult take_result() && { return std::move(result_); }

 private:
  Generation(const Model& model, std::span<const std::int32_t> prompt,
             const GenerateOptions& options)
      : model_(&model), options_(options), prompt_(prompt.begin(), prompt.end()) {}

  Status prefill_a_chunk(const GenerateCallbacks& callbacks);
  Status decode();
  Status take_token(const GenerateCallbacks& callbacks);
  void show(const std::string& text, const GenerateCallbacks& callbacks);
  void finish(const GenerateCallbacks& callbacks);

  const Model* model_;
  GenerateOptions options_;
  std::vector<std::int32_t> prompt_;
  std::int64_t prefilled_ = 0;  // tokens of the prompt stored
  std::optional<Continuation> continuation_;
  std::unique_ptr<History> history_;
  ForwardState state_;
  StepCounters counted_;  // before the step that computes the next token
  double seconds_ = 0;    // of that step
  std::vector<float> logits_;
  GenerateResult result_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_GENERATION_H_
