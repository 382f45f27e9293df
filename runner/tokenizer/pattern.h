// What Split and Replace search for: a text, or a regular expression.
#ifndef KVCACHE_RUNNER_TOKENIZER_PATTERN_H_
#define KVCACHE_RUNNER_TOKENIZER_PATTERN_H_

#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"
#include "runner/tokenizer/regex.h"

namespace kvcache::runner {

class Pattern {
 public:
  // Reads "pattern" of a component: {"String": ..} or {"Regex": ..}.
  // Errors: kUnsupported: any other key, an empty text, what Regex refuses; kCorrupt.
  static Result<Pattern> read(const JsonObject& component);

  // REQUIRES: `text` is UTF-8, not empty.
  explicit Pattern(std::string text) : searched_(std::move(text)) {}
  explicit Pattern(Regex regex) : searched_(std::move(regex)) {}

  // As Regex::find. A text is found from the left, without overlap.
  Status find(std::string_view text, std::vector<Span>* spans) const;

  // The text searched for; nullptr for a regular expression.
  const std::string* text() const { return std::get_if<std::string>(&searched_); }

 private:
  std::variant<std::string, Regex> searched_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_PATTERN_H_
