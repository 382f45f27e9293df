#include "runner/generate/loaded_model.h"

#include <utility>

namespace kvcache::runner {

Result<LoadedModel> LoadedModel::load(const std::string& directory, WeightMode mode,
                                      Activations activations) {
  KVC_ASSIGN_OR_RETURN(Model model, Model::load(directory, mode, activations));
  KVC_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::load_directory(directory));
  std::vector<std::string> notes = model.config().notes;
  notes.insert(notes.end(), tokenizer.notes().begin(), tokenizer.notes().end());
  return LoadedModel{directory, std::move(model), std::move(tokenizer), std::move(notes)};
}

}  // namespace kvcache::runner
