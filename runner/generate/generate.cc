#include "runner/generate/generate.h"

#include <new>
#include <utility>

#include "runner/generate/beam_search.h"
#include "runner/generate/generation.h"

namespace kvcache::runner {
namespace {

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
  KVC_ASSIGN_OR_RETURN(const auto generation,
                       Generation::create(model, tokenizer, prompt, options));
  while (!generation->done()) KVC_RETURN_IF_ERROR(generation->step(callbacks));
  return std::move(*generation).take_result();
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kOutOfMemory, "out of memory");
}

}  // namespace kvcache::runner
