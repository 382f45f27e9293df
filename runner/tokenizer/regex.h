// Regular expressions of tokenizer.json.
#ifndef KVCACHE_RUNNER_TOKENIZER_REGEX_H_
#define KVCACHE_RUNNER_TOKENIZER_REGEX_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"

struct pcre2_real_code_8;
struct pcre2_real_match_context_8;

namespace kvcache::runner {

// A stretch of text: a match, or the gap between two. [begin, end) in bytes.
struct Span {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool matches = false;
};

// Patterns of tokenizer.json are written for Oniguruma and run here on PCRE2. Both agree on what
// published byte-level tokenizers use; classes of characters (\s, \w, \d, \p{..}) are spelled out
// as runner/tokenizer/unicode.h has them, and everything that could mean something else is refused
// by name.
class Regex {
 public:
  // `where` is what errors call the pattern.
  // Errors: kUnsupported: a construct whose meaning differs, or a pattern that matches nothing at
  // all somewhere; kCorrupt: PCRE2 does not accept it.
  static Result<Regex> compile(const std::string& pattern, const std::string& where);

  // Appends the spans of `text` in order: every match and every gap between matches, none empty.
  // Thread safety: const.
  // REQUIRES: `text` is UTF-8. Errors: kUnsupported: the pattern gives up on this text (match
  // limit); kOutOfMemory.
  Status find(std::string_view text, std::vector<Span>* spans) const;

 private:
  struct CodeDeleter {
    void operator()(pcre2_real_code_8* code) const noexcept;
  };
  struct ContextDeleter {
    void operator()(pcre2_real_match_context_8* context) const noexcept;
  };

  Regex() = default;

  std::unique_ptr<pcre2_real_code_8, CodeDeleter> code_;
  std::unique_ptr<pcre2_real_match_context_8, ContextDeleter> limits_;
  std::string where_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_REGEX_H_
