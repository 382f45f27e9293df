// Normalisation: what happens to text before it is cut into words.
#ifndef KVCACHE_RUNNER_TOKENIZER_NORMALIZER_H_
#define KVCACHE_RUNNER_TOKENIZER_NORMALIZER_H_

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"
#include "runner/tokenizer/replace.h"

namespace kvcache::runner {

// Unicode's canonical composition, of the version kUnicodeNormalization.
struct Nfc {
  // Errors: kInvalidArgument: utf8proc refuses the text; kOutOfMemory.
  Result<std::string> apply(std::string_view text) const;
};

// A text before every text that is not empty.
struct Prepend {
  std::string prefix;

  Result<std::string> apply(std::string_view text) const;
};

// "normalizer" of tokenizer.json: null, NFC, Prepend, Replace, or a Sequence of them.
class Normalizer {
 public:
  // Errors: kUnsupported for any other type, by name; kCorrupt.
  static Result<Normalizer> create(const JsonObject& root);

  // REQUIRES: `text` is UTF-8. Errors: kOutOfMemory; kInvalidArgument: utf8proc refuses the text;
  // kUnsupported: a pattern gives up on it.
  Result<std::string> apply(std::string_view text) const;

  // Whether the normalised text always begins where the text began: no step can drop or join its
  // first characters.
  bool keeps_start() const;

 private:
  std::vector<std::variant<Nfc, Prepend, Replace>> steps_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_NORMALIZER_H_
