// What a tokenizer puts around the ids of a text.
#ifndef KVCACHE_RUNNER_TOKENIZER_POST_PROCESSOR_H_
#define KVCACHE_RUNNER_TOKENIZER_POST_PROCESSOR_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"

namespace kvcache::runner {

// "post_processor" of tokenizer.json: null, TemplateProcessing, ByteLevel (which moves offsets that
// nobody asks for here), or a Sequence of them.
struct PostProcessor {
  std::vector<std::int32_t> prefix;  // before a single text
  std::vector<std::int32_t> suffix;  // after it

  // `is_token` tells which ids exist. Errors: kUnsupported for any other type, by name, and a
  // template without its text; kCorrupt: an id that does not exist, ...
  static Result<PostProcessor> create(const JsonObject& root,
                                      const std::function<bool(std::uint64_t)>& is_token);
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_POST_PROCESSOR_H_
