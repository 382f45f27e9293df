#include "runner/tokenizer/pattern.h"

#include <nlohmann/json.hpp>

#include "runner/tokenizer/component.h"

namespace kvcache::runner {

Result<Pattern> Pattern::read(const JsonObject& component) {
  KVC_ASSIGN_OR_RETURN(const JsonObject pattern, component.object("pattern"));
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(pattern, {"String", "Regex"}));
  if (pattern.node().size() != 1) {
    return component.error(StatusCode::kCorrupt, "pattern", "either String or Regex");
  }
  if (pattern.has("Regex")) {
    KVC_ASSIGN_OR_RETURN(const std::string expression, pattern.text("Regex"));
    KVC_ASSIGN_OR_RETURN(Regex regex, Regex::compile(expression, pattern.where() + ": Regex"));
    return Pattern(std::move(regex));
  }
  KVC_ASSIGN_OR_RETURN(std::string text, short_text(pattern, "String"));
  if (text.empty()) {  // tokenizers finds it between all characters
    return pattern.error(StatusCode::kUnsupported, "String", "at least one character");
  }
  return Pattern(std::move(text));
}

Status Pattern::find(std::string_view text, std::vector<Span>* spans) const {
  const std::string* searched = this->text();
  if (searched == nullptr) return std::get<Regex>(searched_).find(text, spans);
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t begin = text.find(*searched, at);
    if (begin == std::string_view::npos) break;
    if (begin > at) spans->push_back({at, begin, false});
    at = begin + searched->size();
    spans->push_back({begin, at, true});
  }
  if (at < text.size()) spans->push_back({at, text.size(), false});
  return Status();
}

}  // namespace kvcache::runner
