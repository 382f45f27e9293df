// The regular expression that cuts text into words before merges.
#ifndef KVCACHE_RUNNER_TOKENIZER_SPLIT_PATTERN_H_
#define KVCACHE_RUNNER_TOKENIZER_SPLIT_PATTERN_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"

struct pcre2_real_code_8;
struct pcre2_real_match_context_8;

namespace kvcache::runner {

// Patterns of tokenizer.json are written for Oniguruma and run here on PCRE2. Both agree on what
// published byte-level tokenizers use; the shorthands they read differently are rewritten (\s, \w),
// and everything that could mean something else is refused by name.
class SplitPattern {
 public:
  // `where` is what errors call the pattern.
  // Errors: kUnsupported: a construct whose meaning differs, or a pattern that matches nothing at
  // all somewhere; kCorrupt: PCRE2 does not accept it.
  static Result<SplitPattern> compile(const std::string& pattern, const std::string& where);

  // Appends the pieces of `text` in order: every match and every gap between matches, none empty.
  // The pieces point into `text`. Thread safety: const.
  // REQUIRES: `text` is UTF-8. Errors: kUnsupported: the pattern gives up on this text (match
  // limit); kOutOfMemory.
  Status split(std::string_view text, std::vector<std::string_view>* pieces) const;

 private:
  struct CodeDeleter {
    void operator()(pcre2_real_code_8* code) const noexcept;
  };
  struct ContextDeleter {
    void operator()(pcre2_real_match_context_8* context) const noexcept;
  };

  SplitPattern() = default;

  std::unique_ptr<pcre2_real_code_8, CodeDeleter> code_;
  std::unique_ptr<pcre2_real_match_context_8, ContextDeleter> limits_;
  std::string where_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_SPLIT_PATTERN_H_
