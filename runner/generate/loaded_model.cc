#include "runner/generate/loaded_model.h"

#include <utility>

namespace kvcache::runner {

Result<LoadedModel> LoadedModel::load(const std::string& directory, WeightMode mode,
                                      Activations activations) {
  KVC_ASSIGN_OR_RETURN(Model model, Model::load(directory, mode, activations));
  KVC_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::load(directory + "/tokenizer.json"));
  if (tokenizer.vocab_size() > model.config().vocab_size) {
    return Status(StatusCode::kCorrupt,
                  directory + "/tokenizer.json: found " + std::to_string(tokenizer.vocab_size()) +
                      " tokens, expected at most " + std::to_string(model.config().vocab_size) +
                      " (vocab_size of config.json)");
  }
  return LoadedModel{directory, std::move(model), std::move(tokenizer)};
}

}  // namespace kvcache::runner
