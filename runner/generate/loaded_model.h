// LoadedModel: what a model directory holds, model and tokenizer, checked against one another.
#ifndef KVCACHE_RUNNER_GENERATE_LOADED_MODEL_H_
#define KVCACHE_RUNNER_GENERATE_LOADED_MODEL_H_

#include <string>

#include "runner/model/model.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

struct LoadedModel {
  std::string directory;
  Model model;
  Tokenizer tokenizer;

  // Errors: those of Model::load and Tokenizer::load; kCorrupt for a tokenizer with more tokens
  // than the model's vocabulary.
  static Result<LoadedModel> load(const std::string& directory, WeightMode mode,
                                  Activations activations = Activations::kInt16);
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_LOADED_MODEL_H_
