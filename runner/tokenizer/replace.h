// Replace, which is a normalizer and a decoder of tokenizer.json.
#ifndef KVCACHE_RUNNER_TOKENIZER_REPLACE_H_
#define KVCACHE_RUNNER_TOKENIZER_REPLACE_H_

#include <cstddef>
#include <string>
#include <string_view>

#include "kvcache/status.h"
#include "runner/config/json_file.h"
#include "runner/tokenizer/pattern.h"

namespace kvcache::runner {

struct Replace {
  Pattern pattern;
  std::string content;  // put in as it is: $1 means nothing in it

  // Errors: kUnsupported, kCorrupt.
  static Result<Replace> read(const JsonObject& component);

  // `text` with every match replaced. REQUIRES: `text` is UTF-8. Errors: those of Regex::find.
  Result<std::string> apply(std::string_view text) const;

  // No text becomes more than this many times as long.
  std::size_t growth() const;
};

// All the Replaces of a file together make a text at most this many times as long: a small file
// cannot ask for all memory.
inline constexpr std::size_t kMaxGrowth = 4096;

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_REPLACE_H_
