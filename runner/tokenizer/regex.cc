#define PCRE2_CODE_UNIT_WIDTH 8
#include "runner/tokenizer/regex.h"

#include <pcre2.h>

#include <cstring>
#include <optional>
#include <utility>

#include "runner/config/json_file.h"

namespace kvcache::runner {
namespace {

constexpr std::size_t kMaxPatternBytes = 16384;
constexpr std::uint32_t kMatchLimit = 10'000'000;
constexpr std::uint32_t kHeapLimitKib = 65'536;

// Oniguruma's \s is the property White_Space, its \w is letters, marks, digits and connectors.
// PCRE2's \s has U+180E besides, its \w lacks the marks.
constexpr std::string_view kSpace = "\\p{White_Space}";
constexpr std::string_view kNotSpace = "\\P{White_Space}";
constexpr std::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

Status refuse(const std::string& where, std::string_view found, std::string_view expected) {
  return found_expected(StatusCode::kUnsupported, where, describe(found), expected);
}

// `pattern` for PCRE2.
Result<std::string> translate(std::string_view pattern, const std::string& where) {
  static constexpr std::string_view kPlainEscapes = "dDrntf";
  static constexpr std::string_view kPunctuation = "\\.^$|?*+()[]{}/-'\"#&~!@%=:;<>,`_ ";
  std::string out;
  bool in_class = false;
  bool class_start = false;  // right after '[' or '[^', where ']' would be a literal
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const bool first_in_class = std::exchange(class_start, false);
    if (c == '\\') {
      if (++i == pattern.size()) return refuse(where, "\\", "an escape after it");
      const char escaped = pattern[i];
      const std::string_view escape = pattern.substr(i - 1, 2);
      if (escaped == 's') {
        out += kSpace;
      } else if (escaped == 'S') {
        out += kNotSpace;
      } else if (escaped == 'w') {
        out += in_class ? std::string(kWord) : "[" + std::string(kWord) + "]";
      } else if (escaped == 'W' && !in_class) {
        out += "[^" + std::string(kWord) + "]";
      } else if (escaped == 'p' || escaped == 'P' || escaped == 'x') {
        const std::size_t end = pattern.find('}', i);
        if (pattern.substr(i + 1, 1) != "{" || end == std::string_view::npos) {
          return refuse(where, escape, "\\p{..}, \\P{..} or \\x{..}");
        }
        out += pattern.substr(i - 1, end - i + 2);
        i = end;
      } else if (kPlainEscapes.find(escaped) != std::string_view::npos ||
                 kPunctuation.find(escaped) != std::string_view::npos) {
        out += escape;
      } else {
        return refuse(where, escape,
                      "\\s \\S \\w \\W \\d \\D \\p{..} \\P{..} \\x{..} \\r \\n \\t \\f");
      }
    } else if (in_class) {
      if (c == '[') return refuse(where, "[ within [..]", "no nested set");
      if (c == '&' && pattern.substr(i, 2) == "&&") {
        return refuse(where, "&& within [..]", "no intersection of sets");
      }
      if (c == ']' && first_in_class) return refuse(where, "[]", "\\] for a bracket in a set");
      if (c == ']') in_class = false;
      out += c;
    } else {
      if (c == '^' || c == '$') {
        return refuse(where, std::string_view(&c, 1), "no anchors: lines differ between engines");
      }
      if (c == '(' && pattern.substr(i, 2) == "(?") {
        // (?m) and (?s) trade places between the engines; only these openings agree.
        const std::string_view rest = pattern.substr(i);
        bool known = false;
        for (const char* opening : {"(?:", "(?i:", "(?i)", "(?!", "(?=", "(?<!", "(?<=", "(?>"}) {
          known |= rest.starts_with(opening);
        }
        if (!known) return refuse(where, rest.substr(0, 4), "(?: (?i: (?! (?= (?<! (?<= or (?>");
      } else if (c == '{' && pattern.substr(i, 2) == "{,") {
        return refuse(where, "{,", "{0,");
      } else if (c == '}' && pattern.substr(i, 2) == "}+") {
        return refuse(where, "}+", "no + after a counted repetition");  // possessive only in PCRE2
      } else if (c == '(' && pattern.substr(i, 2) == "(*") {
        return refuse(where, pattern.substr(i, 6), "no verb");
      } else if (c == '[') {
        in_class = true;
        class_start = true;
        if (pattern.substr(i, 2) == "[^") {
          out += c;
          ++i;
          out += '^';
          continue;
        }
      }
      out += c;
    }
  }
  return out;
}

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
};

}  // namespace

void Regex::CodeDeleter::operator()(pcre2_code* code) const noexcept { pcre2_code_free(code); }

void Regex::ContextDeleter::operator()(pcre2_match_context* context) const noexcept {
  pcre2_match_context_free(context);
}

Result<Regex> Regex::compile(const std::string& pattern, const std::string& where) {
  if (pattern.size() > kMaxPatternBytes) {
    return found_expected(StatusCode::kUnsupported, where,
                          std::to_string(pattern.size()) + " bytes",
                          "at most " + std::to_string(kMaxPatternBytes));
  }
  KVC_ASSIGN_OR_RETURN(const std::string translated, translate(pattern, where));
  struct CompileContextDeleter {
    void operator()(pcre2_compile_context* context) const noexcept {
      pcre2_compile_context_free(context);
    }
  };
  std::unique_ptr<pcre2_compile_context, CompileContextDeleter> context(
      pcre2_compile_context_create(nullptr));
  if (!context) return Status(StatusCode::kOutOfMemory, where + ": found no memory to compile it");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);

  Regex result;
  result.where_ = where;
  int error = 0;
  PCRE2_SIZE offset = 0;
  result.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                                   translated.size(), PCRE2_UTF | PCRE2_UCP, &error, &offset,
                                   context.get()));
  if (!result.code_) {
    char message[128] = {};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    return found_expected(StatusCode::kCorrupt, where, describe(std::string_view(pattern)),
                          "a regular expression (" + std::string(message) + ")");
  }
  std::uint32_t matches_empty = 0;
  pcre2_pattern_info(result.code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) {
    return refuse(where, pattern, "a pattern that matches at least one character");
  }
  result.limits_.reset(pcre2_match_context_create(nullptr));
  if (!result.limits_) {
    return Status(StatusCode::kOutOfMemory, where + ": found no memory to compile it");
  }
  pcre2_set_match_limit(result.limits_.get(), kMatchLimit);
  pcre2_set_heap_limit(result.limits_.get(), kHeapLimitKib);
  // Where there is no JIT for this machine, the interpreter gives the same matches.
  pcre2_jit_compile(result.code_.get(), PCRE2_JIT_COMPLETE);
  return result;
}

Status Regex::find(std::string_view text, std::vector<Span>* spans) const {
  std::unique_ptr<pcre2_match_data, MatchDataDeleter> match(
      pcre2_match_data_create_from_pattern(code_.get(), nullptr));
  if (!match) return Status(StatusCode::kOutOfMemory, where_ + ": found no memory to match");
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  std::size_t at = 0;
  while (at < text.size()) {
    // The caller has checked the UTF-8; checking it anew for each word would be quadratic.
    int count = pcre2_match(code_.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK, match.get(),
                            limits_.get());
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) {
      count = pcre2_match(code_.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                          match.get(), limits_.get());
    }
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      char message[128] = {};
      pcre2_get_error_message(count, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
      return found_expected(StatusCode::kUnsupported,
                            where_ + ": at byte " + std::to_string(at) + " of the text", message,
                            "a match within the limits");
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());
    const std::size_t begin = bounds[0];
    const std::size_t end = bounds[1];
    if (begin < at || end <= begin) {
      return found_expected(StatusCode::kUnsupported,
                            where_ + ": at byte " + std::to_string(at) + " of the text",
                            "a match of nothing", "at least one character");
    }
    if (begin > at) spans->push_back({at, begin, false});
    spans->push_back({begin, end, true});
    at = end;
  }
  if (at < text.size()) spans->push_back({at, text.size(), false});
  return Status();
}

}  // namespace kvcache::runner
