// The namespace of a model's rows in files: other rows of the same ids are never found.
#ifndef KVCACHE_RUNNER_GENERATE_MODEL_SPACE_H_
#define KVCACHE_RUNNER_GENERATE_MODEL_SPACE_H_

#include <string_view>

#include "kvcache/prefix.h"
#include "runner/generate/loaded_model.h"

namespace kvcache::runner {

// Of the version of this library, config.json, tokenizer.json, the weights (names, sizes, and a
// quarter of a MiB at the beginning, in the middle and at the end of each file) and how they are
// held; `how` is what else decides, in words. The stored form is no part: files say their layers.
// Errors: kNotFound, kIo.
Result<PrefixNamespace> space_of(const LoadedModel& loaded, std::string_view how = {});

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_MODEL_SPACE_H_
