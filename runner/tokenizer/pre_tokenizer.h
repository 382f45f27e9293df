// The cutting of text into words, between which nothing merges.
#ifndef KVCACHE_RUNNER_TOKENIZER_PRE_TOKENIZER_H_
#define KVCACHE_RUNNER_TOKENIZER_PRE_TOKENIZER_H_

#include <string_view>
#include <variant>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"
#include "runner/tokenizer/normalizer.h"
#include "runner/tokenizer/pre_tokenizer_steps.h"

namespace kvcache::runner {

// "pre_tokenizer" of tokenizer.json: null, Split, Digits, ByteLevel, Metaspace, or a Sequence of
// them.
class PreTokenizer {
 public:
  // Errors: kUnsupported for anything else, by name, and for a prepend_scheme "first" whose meaning
  // would hang on where the normalizer or another step moved the start of the text; kCorrupt.
  static Result<PreTokenizer> create(const JsonObject& root, const Normalizer& normalizer);

  // Appends the words of `text` to `words`; they point into it or into words->storage.
  // `starts_text`: nothing comes before it in what the user wrote, no added token either.
  // REQUIRES: `text` is UTF-8. Errors: those of Regex::find. Thread safety: const.
  Status split(std::string_view text, bool starts_text, Words* words) const;

 private:
  using Step = std::variant<Split, ByteLevel, Metaspace>;

  static Result<Step> read_step(const JsonObject& component, bool is_first,
                                const Normalizer& normalizer);

  std::vector<Step> steps_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_PRE_TOKENIZER_H_
