// Normalisation, and the cutting of text into words: the stages before merges.
#ifndef KVCACHE_RUNNER_TOKENIZER_PRE_TOKENIZER_H_
#define KVCACHE_RUNNER_TOKENIZER_PRE_TOKENIZER_H_

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"
#include "runner/tokenizer/split_pattern.h"

namespace kvcache::runner {

// "normalizer" of tokenizer.json: null, NFC, or a Sequence of them.
class Normalizer {
 public:
  // Errors: kUnsupported for any other type, by name; kCorrupt.
  static Result<Normalizer> create(const JsonObject& root);

  // REQUIRES: `text` is UTF-8. Errors: kOutOfMemory; kInvalidArgument: utf8proc refuses the text.
  Result<std::string> apply(std::string_view text) const;

  bool changes_nothing() const { return !nfc_; }

 private:
  bool nfc_ = false;
};

// "pre_tokenizer" of tokenizer.json: a ByteLevel, alone or as the last of a Sequence of Splits with
// behavior Isolated. ByteLevel's own mapping to characters is left out: merges work on bytes.
class PreTokenizer {
 public:
  // Errors: kUnsupported for anything else, by name; kCorrupt.
  static Result<PreTokenizer> create(const JsonObject& root);

  // Words of `text`, which point into it or into `storage`. Thread safety: const.
  Status split(std::string_view text, std::deque<std::string>* storage,
               std::vector<std::string_view>* words) const;

 private:
  struct Stage {
    std::optional<SplitPattern> pattern;
    bool add_prefix_space = false;  // before the pattern, where the piece does not begin with one
  };

  Status add_stage(const JsonObject& component, bool last);

  std::vector<Stage> stages_;
};

// Refuses a key of `component` that is not in `known`: an option nobody has heard of may change
// every id. Errors: kUnsupported.
Status refuse_unknown_keys(const JsonObject& component,
                           std::initializer_list<std::string_view> known);

// The parts a Sequence lists under `list_key`, or the component itself when it is no Sequence.
Result<std::vector<JsonObject>> flatten_sequence(const JsonObject& component,
                                                 std::string_view list_key);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_PRE_TOKENIZER_H_
