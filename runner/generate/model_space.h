// The namespace of a model's rows in files: other rows of the same ids are never found.
#ifndef KVCACHE_RUNNER_GENERATE_MODEL_SPACE_H_
#define KVCACHE_RUNNER_GENERATE_MODEL_SPACE_H_

#include <string_view>

#include "kvcache/prefix.h"
#include "runner/generate/loaded_model.h"

namespace kvcache::runner {

// Of the version of this library, all bytes of config.json, tokenizer.json and the weights, and how
// these are held; `how` is what else decides, in words. The stored form is no part: files say their
// layers. Reads the weights, so that it is for who uses files. Errors: kNotFound, kIo,
// kOutOfMemory.
Result<PrefixNamespace> space_of(const LoadedModel& loaded, std::string_view how = {});

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_GENERATE_MODEL_SPACE_H_
