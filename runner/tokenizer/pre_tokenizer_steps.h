// The kinds of pre-tokenizers a PreTokenizer strings together.
#ifndef KVCACHE_RUNNER_TOKENIZER_PRE_TOKENIZER_STEPS_H_
#define KVCACHE_RUNNER_TOKENIZER_PRE_TOKENIZER_STEPS_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"
#include "runner/tokenizer/pattern.h"
#include "runner/tokenizer/regex.h"

namespace kvcache::runner {

// Words of a text. Those that are not found in it as they are lie in `storage`.
struct Words {
  std::vector<std::string_view> list;
  std::deque<std::string> storage;
};

// Every step has
//   Status apply(piece, starts_text, storage, pieces)
// which appends to `pieces` what `piece` becomes, nothing empty.
// REQUIRES: `piece` is UTF-8, not empty. Errors: those of Regex::find.

// Cuts at the matches of a pattern. An inverted one takes matches for gaps and gaps for matches.
struct Split {
  enum class Behavior : std::uint8_t {
    kRemoved,             // gaps alone
    kIsolated,            // every match and every gap
    kMergedWithPrevious,  // a match belongs to the gap before it
    kMergedWithNext,      // a match belongs to the gap after it
    kContiguous,          // matches that touch are one
  };
  Pattern pattern;
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;

  static Result<Split> read(const JsonObject& component);
  // "Digits": cuts out numbers, or each of their characters.
  static Result<Split> read_digits(const JsonObject& component);
  Status apply(std::string_view piece, bool starts_text, std::deque<std::string>* storage,
               std::vector<std::string_view>* pieces) const;
};

// Cuts by the pattern of GPT-2, and writes every byte as a character of the byte alphabet.
struct ByteLevel {
  std::optional<Regex> pattern;   // use_regex
  bool add_prefix_space = false;  // before a piece that does not begin with one

  static Result<ByteLevel> read(const JsonObject& component);
  Status apply(std::string_view piece, bool starts_text, std::deque<std::string>* storage,
               std::vector<std::string_view>* pieces) const;
};

// Writes spaces as another character, and cuts before each.
struct Metaspace {
  enum class Prepend : std::uint8_t { kAlways, kFirst, kNever };
  std::string replacement;             // one character
  Prepend prepend = Prepend::kAlways;  // where a piece begins otherwise; kFirst: starts_text
  bool split = true;

  static Result<Metaspace> read(const JsonObject& component);
  Status apply(std::string_view piece, bool starts_text, std::deque<std::string>* storage,
               std::vector<std::string_view>* pieces) const;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_PRE_TOKENIZER_STEPS_H_
