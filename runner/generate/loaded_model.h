// LoadedModel: what a model directory holds, model and tokenizer.
#ifndef KVCACHE_RUNNER_GENERATE_LOADED_MODEL_H_
#define KVCACHE_RUNNER_GENERATE_LOADED_MODEL_H_

#include <string>
#include <vector>

#include "runner/model/model.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

struct LoadedModel {
  std::string directory;
  Model model;
  Tokenizer tokenizer;

  // Where the files disagree: a line each, which says what was taken.
  std::vector<std::string> notes;

  // The tokenizer may have tokens that the model has no row for; a prompt with one is refused when
  // it runs. Errors: those of Model::load and Tokenizer::load.
  static Result<LoadedModel> load(const std::string& directory, WeightMode mode,
                                  Activations activations = Activations::kInt16);
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_LOADED_MODEL_H_
