#define PCRE2_CODE_UNIT_WIDTH 8
#include "runner/tokenizer/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "runner/config/json_file.h"
#include "runner/tokenizer/unicode.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

constexpr std::size_t kMaxPatternBytes = 16384;
constexpr std::uint32_t kMatchLimit = 10'000'000;
constexpr std::uint32_t kHeapLimitKib = 65'536;

// Far more than the longest published pattern becomes; PCRE2 takes less than this.
constexpr std::size_t kMaxTranslatedBytes = std::size_t{1} << 20;

Status refuse(const std::string& where, std::string_view found, std::string_view expected) {
  return found_expected(StatusCode::kUnsupported, where, describe(found), expected);
}

using Ranges = std::vector<CodeRange>;

void append(const Ranges& more, Ranges* ranges) {
  ranges->insert(ranges->end(), more.begin(), more.end());
}

// The property White_Space, which Oniguruma's \s is.
Ranges space_ranges() {
  Ranges ranges;
  for (char32_t c = 0; c <= 0x3000; ++c) {
    if (is_white_space(c)) ranges.push_back({c, c});
  }
  return ranges;
}

// Oniguruma's \w: what is alphabetic (circled letters are, too), marks, digits, connectors; outside
// [..] also the superscripts and fractions of Latin-1.
Ranges word_ranges(bool in_set) {
  Ranges ranges = {{0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};
  for (const char* name : {"L", "M", "Nd", "Nl", "Pc"}) append(ranges_of(name), &ranges);
  if (!in_set) append({{0xB2, 0xB3}, {0xB9, 0xB9}, {0xBC, 0xBE}}, &ranges);
  return ranges;
}

Ranges complement_of(Ranges ranges) {
  ranges.push_back({0xD800, 0xDFFF});  // which PCRE2 does not let a pattern name
  std::sort(ranges.begin(), ranges.end(),
            [](const CodeRange& a, const CodeRange& b) { return a.first < b.first; });
  Ranges result;
  char32_t next = 0;
  for (const CodeRange& range : ranges) {
    if (range.first > next) result.push_back({next, range.first - 1});
    next = std::max<char32_t>(next, range.last + 1);
  }
  if (next <= 0x10FFFF) result.push_back({next, 0x10FFFF});
  return result;
}

// A class as it stands within [..]. PCRE2 goes through the ranges in their order, so the widest
// come first: most letters of a text lie in a few of them.
std::string items_of(Ranges ranges) {
  std::stable_sort(ranges.begin(), ranges.end(), [](const CodeRange& a, const CodeRange& b) {
    return a.last - a.first > b.last - b.first;
  });
  std::string items;
  char item[32];
  for (const CodeRange& range : ranges) {
    std::snprintf(item, sizeof(item), range.first == range.last ? "\\x{%x}" : "\\x{%x}-\\x{%x}",
                  static_cast<unsigned>(range.first), static_cast<unsigned>(range.last));
    items += item;
  }
  return items;
}

// A pattern for PCRE2. The host's PCRE2 knows the Unicode of its day, so classes are spelled out.
class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where)
      : pattern_(pattern), where_(where) {}

  Result<std::string> run() {
    for (at_ = 0; at_ < pattern_.size(); ++at_) {
      const bool first_in_set = std::exchange(set_starts_, false);
      const bool after_class = std::exchange(class_ends_, false);
      const bool after_hyphen = std::exchange(hyphen_ends_, false);
      if (pattern_[at_] == '\\') {
        KVC_RETURN_IF_ERROR(escape());
        if (class_ends_ && after_hyphen) return refuse(where_, "-\\", "\\- before a class");
      } else if (in_set_ && pattern_[at_] == '-') {
        // Beside a class it is itself, and no range from the end of what is spelled out.
        out_ += after_class ? "\\-" : "-";
        hyphen_ends_ = !after_class && !first_in_set;
      } else if (in_set_) {
        KVC_RETURN_IF_ERROR(within_set(first_in_set));
      } else {
        KVC_RETURN_IF_ERROR(outside_set());
      }
      if (out_.size() > kMaxTranslatedBytes) {
        return refuse(where_, pattern_, "fewer classes of characters");
      }
    }
    return std::move(out_);
  }

 private:
  Status escape() {
    static constexpr std::string_view kPlain = "rntf";
    static constexpr std::string_view kPunctuation = "\\.^$|?*+()[]{}/-'\"#&~!@%=:;<>,`_ ";
    if (at_ + 1 == pattern_.size()) return refuse(where_, "\\", "an escape after it");
    const char escaped = pattern_[++at_];
    const std::string_view escape = pattern_.substr(at_ - 1, 2);
    if (escaped == 's' || escaped == 'S') {
      put_class(space_ranges(), escaped == 'S');
    } else if (escaped == 'd' || escaped == 'D') {
      put_class(ranges_of("Nd"), escaped == 'D');
    } else if (escaped == 'w' || (escaped == 'W' && !in_set_)) {
      put_class(word_ranges(in_set_), escaped == 'W');
    } else if (escaped == 'p' || escaped == 'P' || escaped == 'x') {
      const std::size_t end = pattern_.find('}', at_);
      if (pattern_.substr(at_ + 1, 1) != "{" || end == std::string_view::npos) {
        return refuse(where_, escape, "\\p{..}, \\P{..} or \\x{..}");
      }
      const std::string_view name = pattern_.substr(at_ + 2, end - at_ - 2);
      const std::string_view whole = pattern_.substr(at_ - 1, end - at_ + 2);
      at_ = end;
      if (escaped == 'x') {
        out_ += whole;
        return Status();
      }
      const Ranges ranges = name == "White_Space" ? space_ranges() : ranges_of(name);
      if (ranges.empty()) {
        return refuse(where_, whole, "a general category (L, Lu, ..) or a script written today");
      }
      put_class(ranges, escaped == 'P');
    } else if (kPlain.find(escaped) != std::string_view::npos ||
               kPunctuation.find(escaped) != std::string_view::npos) {
      out_ += escape;
    } else {
      return refuse(where_, escape,
                    "\\s \\S \\w \\W \\d \\D \\p{..} \\P{..} \\x{..} \\r \\n \\t \\f");
    }
    return Status();
  }

  // Within a set both engines let (?i) widen a class; outside of one Oniguruma does not.
  void put_class(const Ranges& ranges, bool negated) {
    if (in_set_) {
      out_ += items_of(negated ? complement_of(ranges) : ranges);
      class_ends_ = true;
      return;
    }
    const std::string set = (negated ? "[^" : "[") + items_of(ranges) + "]";
    out_ += caseless_.back() ? "(?-i:" + set + ")" : set;
  }

  Status within_set(bool first) {
    const char c = pattern_[at_];
    if (c == '[') return refuse(where_, "[ within [..]", "no nested set");
    if (c == '&' && pattern_.substr(at_, 2) == "&&") {
      return refuse(where_, "&& within [..]", "no intersection of sets");
    }
    if (c == ']' && first) return refuse(where_, "[]", "\\] for a bracket in a set");
    if (c == ']') in_set_ = false;
    out_ += c;
    return Status();
  }

  Status outside_set() {
    const char c = pattern_[at_];
    const std::string_view rest = pattern_.substr(at_);
    if (c == '^' || c == '$') {
      return refuse(where_, rest.substr(0, 1), "no anchors: lines differ between engines");
    }
    if (rest.starts_with("(?")) {
      // (?m) and (?s) trade places between the engines; only these openings agree.
      bool known = false;
      for (const char* opening : {"(?:", "(?i:", "(?i)", "(?!", "(?=", "(?<!", "(?<=", "(?>"}) {
        known |= rest.starts_with(opening);
      }
      if (!known) return refuse(where_, rest.substr(0, 4), "(?: (?i: (?! (?= (?<! (?<= or (?>");
    } else if (rest.starts_with("{,")) {
      return refuse(where_, "{,", "{0,");
    } else if (rest.starts_with("}+")) {
      return refuse(where_, "}+", "no + after a counted repetition");  // possessive only in PCRE2
    } else if (rest.starts_with("(*")) {
      return refuse(where_, rest.substr(0, 6), "no verb");
    }
    out_ += c;
    if (c == '(') {
      if (rest.starts_with("(?i)")) {
        caseless_.back() = true;  // to the end of the group it stands in
      }
      caseless_.push_back(caseless_.back() || rest.starts_with("(?i:"));
    } else if (c == ')') {
      if (caseless_.size() > 1) caseless_.pop_back();
    } else if (c == '[') {
      in_set_ = set_starts_ = true;
      if (rest.starts_with("[^")) {
        out_ += '^';
        ++at_;
      }
    }
    return Status();
  }

  std::string_view pattern_;
  const std::string& where_;
  std::size_t at_ = 0;
  std::string out_;
  bool in_set_ = false;
  bool set_starts_ = false;               // right after '[' or '[^', where ']' would be a literal
  bool class_ends_ = false;               // right after a class in a set
  bool hyphen_ends_ = false;              // right after a hyphen in a set, not its first character
  std::vector<bool> caseless_ = {false};  // of the groups that are open, outermost first
};

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
  KVC_ASSIGN_OR_RETURN(const std::string translated, Translator(pattern, where).run());
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
