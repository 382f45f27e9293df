#include "runner/tokenizer/pre_tokenizer_steps.h"

#include <utility>

#include "runner/tokenizer/byte_alphabet.h"
#include "runner/tokenizer/component.h"

namespace kvcache::runner {
namespace {

// What ByteLevel cuts by when use_regex is true (GPT-2).
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// What Digits takes for a digit: numeric characters of Unicode 17, which Rust's standard library
// knows, while \p{N} of its patterns is of Unicode 16.
constexpr const char* kDigit = R"([\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}])";

// The spans a Split keeps, from those of its pattern: `behavior` of tokenizers'
// NormalizedString::split.
std::vector<Span> arrange(const std::vector<Span>& spans, Split::Behavior behavior) {
  std::vector<Span> kept;
  bool previous_matches = false;
  switch (behavior) {
    case Split::Behavior::kRemoved:
      for (const Span& span : spans) {
        if (!span.matches) kept.push_back(span);
      }
      return kept;
    case Split::Behavior::kIsolated:
      return spans;
    case Split::Behavior::kMergedWithPrevious:
      for (const Span& span : spans) {
        if (span.matches && !previous_matches && !kept.empty()) {
          kept.back().end = span.end;
        } else {
          kept.push_back(span);
        }
        previous_matches = span.matches;
      }
      return kept;
    case Split::Behavior::kMergedWithNext:
      for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
        if (span->matches && !previous_matches && !kept.empty()) {
          kept.back().begin = span->begin;
        } else {
          kept.push_back(*span);
        }
        previous_matches = span->matches;
      }
      return {kept.rbegin(), kept.rend()};
    case Split::Behavior::kContiguous:
      for (const Span& span : spans) {
        if (span.matches == previous_matches && !kept.empty()) {
          kept.back().end = span.end;
        } else {
          kept.push_back(span);
        }
        previous_matches = span.matches;
      }
      return kept;
  }
  return kept;
}

}  // namespace

Result<Split> Split::read(const JsonObject& component) {
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type", "pattern", "behavior", "invert"}));
  static constexpr std::pair<const char*, Behavior> kBehaviors[] = {
      {"Removed", Behavior::kRemoved},
      {"Isolated", Behavior::kIsolated},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  KVC_ASSIGN_OR_RETURN(const std::string name, component.text("behavior"));
  std::optional<Behavior> behavior;
  for (const auto& [known, value] : kBehaviors) {
    if (name == known) behavior = value;
  }
  if (!behavior) {
    return component.error(StatusCode::kUnsupported, "behavior",
                           "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
  }
  KVC_ASSIGN_OR_RETURN(const bool invert, component.boolean("invert", false));
  KVC_ASSIGN_OR_RETURN(Pattern pattern, Pattern::read(component));
  return Split{std::move(pattern), *behavior, invert};
}

Result<Split> Split::read_digits(const JsonObject& component) {
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type", "individual_digits"}));
  KVC_ASSIGN_OR_RETURN(const bool individual, component.boolean("individual_digits"));
  KVC_ASSIGN_OR_RETURN(
      Regex digits, Regex::compile(kDigit + std::string(individual ? "" : "+"), component.where()));
  return Split{Pattern(std::move(digits)), Behavior::kIsolated, false};
}

Status Split::apply(std::string_view piece, bool /*starts_text*/,
                    std::deque<std::string>* /*storage*/,
                    std::vector<std::string_view>* pieces) const {
  std::vector<Span> spans;
  KVC_RETURN_IF_ERROR(pattern.find(piece, &spans));
  if (invert) {
    for (Span& span : spans) span.matches = !span.matches;
  }
  for (const Span& span : arrange(spans, behavior)) {
    pieces->push_back(piece.substr(span.begin, span.end - span.begin));
  }
  return Status();
}

Result<ByteLevel> ByteLevel::read(const JsonObject& component) {
  KVC_RETURN_IF_ERROR(
      refuse_unknown_keys(component, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  ByteLevel result;
  KVC_ASSIGN_OR_RETURN(result.add_prefix_space, component.boolean("add_prefix_space"));
  KVC_ASSIGN_OR_RETURN(const bool use_regex, component.boolean("use_regex", true));
  if (use_regex) {
    KVC_ASSIGN_OR_RETURN(result.pattern, Regex::compile(kByteLevelPattern, component.where()));
  }
  return result;
}

Status ByteLevel::apply(std::string_view piece, bool /*starts_text*/,
                        std::deque<std::string>* storage,
                        std::vector<std::string_view>* pieces) const {
  std::string with_space;
  if (add_prefix_space && piece.front() != ' ') {
    with_space = " " + std::string(piece);
    piece = with_space;
  }
  std::vector<Span> spans;
  if (pattern) {
    KVC_RETURN_IF_ERROR(pattern->find(piece, &spans));
  } else {
    spans.push_back({0, piece.size(), true});
  }
  for (const Span& span : spans) {
    std::string& word = storage->emplace_back();
    append_byte_characters(piece.substr(span.begin, span.end - span.begin), &word);
    pieces->push_back(word);
  }
  return Status();
}

Result<Metaspace> Metaspace::read(const JsonObject& component) {
  // str_rep is what old files repeat the replacement as.
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type", "replacement", "add_prefix_space",
                                                      "prepend_scheme", "split", "str_rep"}));
  Metaspace result;
  KVC_ASSIGN_OR_RETURN(result.replacement, one_character(component, "replacement"));
  KVC_ASSIGN_OR_RETURN(const std::string scheme, component.text("prepend_scheme", "always"));
  if (scheme == "first") {
    result.prepend = Prepend::kFirst;
  } else if (scheme == "never") {
    result.prepend = Prepend::kNever;
  } else if (scheme != "always") {
    return component.error(StatusCode::kUnsupported, "prepend_scheme", "always, first or never");
  }
  // The older spelling. Where it is false tokenizers wants the newer one to agree; where it is true
  // the newer one holds.
  KVC_ASSIGN_OR_RETURN(const bool add_prefix_space, component.boolean("add_prefix_space", true));
  if (!add_prefix_space && result.prepend != Prepend::kNever) {
    return component.error(StatusCode::kUnsupported, "add_prefix_space",
                           "true, or a prepend_scheme \"never\" beside it");
  }
  KVC_ASSIGN_OR_RETURN(result.split, component.boolean("split", true));
  return result;
}

Status Metaspace::apply(std::string_view piece, bool starts_text, std::deque<std::string>* storage,
                        std::vector<std::string_view>* pieces) const {
  std::string& text = storage->emplace_back();
  const bool begins_with_it = piece.front() == ' ' || piece.starts_with(replacement);
  if (!begins_with_it &&
      (prepend == Prepend::kAlways || (prepend == Prepend::kFirst && starts_text))) {
    text = replacement;
  }
  for (const char c : piece) {
    if (c == ' ') {
      text += replacement;
    } else {
      text += c;
    }
  }
  if (!split) {
    pieces->push_back(text);
    return Status();
  }
  std::vector<Span> spans;
  KVC_RETURN_IF_ERROR(Pattern(replacement).find(text, &spans));
  for (const Span& span : arrange(spans, Split::Behavior::kMergedWithNext)) {
    pieces->push_back(std::string_view(text).substr(span.begin, span.end - span.begin));
  }
  return Status();
}

}  // namespace kvcache::runner
