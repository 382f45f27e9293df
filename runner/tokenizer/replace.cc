#include "runner/tokenizer/replace.h"

#include <algorithm>
#include <utility>

#include "runner/tokenizer/component.h"

namespace kvcache::runner {

Result<Replace> Replace::read(const JsonObject& component) {
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type", "pattern", "content"}));
  KVC_ASSIGN_OR_RETURN(Pattern pattern, Pattern::read(component));
  KVC_ASSIGN_OR_RETURN(std::string content, short_text(component, "content"));
  return Replace{std::move(pattern), std::move(content)};
}

Result<std::string> Replace::apply(std::string_view text) const {
  std::vector<Span> spans;
  KVC_RETURN_IF_ERROR(pattern.find(text, &spans));
  std::string result;
  for (const Span& span : spans) {
    result +=
        span.matches ? std::string_view(content) : text.substr(span.begin, span.end - span.begin);
  }
  return result;
}

std::size_t Replace::growth() const {
  const std::size_t shortest = pattern.text() == nullptr ? 1 : pattern.text()->size();
  return std::max<std::size_t>(1, (content.size() + shortest - 1) / shortest);
}

}  // namespace kvcache::runner
