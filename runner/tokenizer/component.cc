#include "runner/tokenizer/component.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

constexpr std::size_t kMaxTextBytes = 4096;

Status append_parts(const JsonObject& component, std::string_view list_key,
                    std::vector<JsonObject>* parts) {
  KVC_ASSIGN_OR_RETURN(const std::string type, component.text("type"));
  if (type != "Sequence") {
    parts->push_back(component);
    return Status();
  }
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type", list_key}));
  const Json* list = component.find(list_key);
  if (list == nullptr || !list->is_array()) {
    return component.error(StatusCode::kCorrupt, list_key, "a list");
  }
  std::size_t index = 0;
  for (const Json& item : *list) {
    std::string where =
        component.where() + ": " + std::string(list_key) + "[" + std::to_string(index++) + "]";
    KVC_ASSIGN_OR_RETURN(const JsonObject part, JsonObject::create(item, std::move(where)));
    KVC_RETURN_IF_ERROR(append_parts(part, list_key, parts));  // as deep as parse_json lets it be
  }
  return Status();
}

}  // namespace

Status refuse_unknown_keys(const JsonObject& component,
                           std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : component.node().items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return found_expected(StatusCode::kUnsupported, component.where(),
                            "the unknown key " + describe(std::string_view(key)),
                            "only keys it knows");
    }
  }
  return Status();
}

Result<std::vector<JsonObject>> flatten_sequence(const JsonObject& component,
                                                 std::string_view list_key) {
  std::vector<JsonObject> parts;
  KVC_RETURN_IF_ERROR(append_parts(component, list_key, &parts));
  return parts;
}

Result<std::string> short_text(const JsonObject& component, std::string_view key) {
  KVC_ASSIGN_OR_RETURN(std::string text, component.text(key));
  if (text.size() > kMaxTextBytes) {
    return component.error(StatusCode::kUnsupported, key,
                           "at most " + std::to_string(kMaxTextBytes) + " bytes");
  }
  return text;
}

Result<std::string> one_character(const JsonObject& component, std::string_view key) {
  KVC_ASSIGN_OR_RETURN(std::string text, component.text(key));
  if (text.empty() || next_utf8(text).length != text.size()) {
    return component.error(StatusCode::kCorrupt, key, "one character");
  }
  return text;
}

}  // namespace kvcache::runner
