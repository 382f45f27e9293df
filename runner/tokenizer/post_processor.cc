#include "runner/tokenizer/post_processor.h"

#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "runner/tokenizer/component.h"

namespace kvcache::runner {
namespace {

// What a TemplateProcessing puts around its single text.
Status read_template(const JsonObject& component,
                     const std::function<bool(std::uint64_t)>& is_token, PostProcessor* result) {
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type", "single", "pair", "special_tokens"}));
  const Json* single = component.find("single");
  if (single == nullptr || !single->is_array()) {
    return component.error(StatusCode::kCorrupt, "single", "a list");
  }
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> after;
  bool seen_text = false;
  for (const Json& item : *single) {
    KVC_ASSIGN_OR_RETURN(const JsonObject piece,
                         JsonObject::create(item, component.where() + ": single"));
    if (piece.node().size() != 1) {
      return found_expected(StatusCode::kCorrupt, piece.where(), describe(item),
                            "an object with one key");
    }
    if (piece.has("Sequence")) {
      KVC_ASSIGN_OR_RETURN(const JsonObject sequence, piece.object("Sequence"));
      KVC_ASSIGN_OR_RETURN(const std::string id, sequence.text("id"));
      if (id != "A" || seen_text) {
        return sequence.error(StatusCode::kUnsupported, "id", "A, once");
      }
      seen_text = true;
      continue;
    }
    KVC_ASSIGN_OR_RETURN(const JsonObject special, piece.object("SpecialToken"));
    KVC_ASSIGN_OR_RETURN(const std::string name, special.text("id"));
    KVC_ASSIGN_OR_RETURN(const JsonObject table, component.object("special_tokens"));
    KVC_ASSIGN_OR_RETURN(const JsonObject entry, table.object(name));
    const Json* ids = entry.find("ids");
    if (ids == nullptr || !ids->is_array()) {
      return entry.error(StatusCode::kCorrupt, "ids", "a list of ids");
    }
    for (const Json& value : *ids) {
      const auto* id = value.get_ptr<const Json::number_unsigned_t*>();
      if (id == nullptr || !is_token(*id)) {
        return found_expected(StatusCode::kCorrupt, entry.where() + ": ids", describe(value),
                              "the id of a token");
      }
      (seen_text ? after : before).push_back(static_cast<std::int32_t>(*id));
    }
  }
  if (!seen_text) return component.error(StatusCode::kUnsupported, "single", "the text A in it");
  result->prefix = std::move(before);
  result->suffix = std::move(after);
  return Status();
}

}  // namespace

Result<PostProcessor> PostProcessor::create(const JsonObject& root,
                                            const std::function<bool(std::uint64_t)>& is_token) {
  PostProcessor result;
  if (!root.has("post_processor")) return result;
  KVC_ASSIGN_OR_RETURN(const JsonObject component, root.object("post_processor"));
  KVC_ASSIGN_OR_RETURN(const auto parts, flatten_sequence(component, "processors"));
  bool has_template = false;
  for (const JsonObject& part : parts) {
    KVC_ASSIGN_OR_RETURN(const std::string type, part.text("type"));
    if (type == "TemplateProcessing") {
      // tokenizers takes what one template made for the texts of the next, and breaks.
      if (has_template) {
        return part.error(StatusCode::kUnsupported, "type", "TemplateProcessing once");
      }
      has_template = true;
      KVC_RETURN_IF_ERROR(read_template(part, is_token, &result));
    } else if (type == "ByteLevel") {
      KVC_RETURN_IF_ERROR(
          refuse_unknown_keys(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    } else {
      return part.error(StatusCode::kUnsupported, "type", "TemplateProcessing or ByteLevel");
    }
  }
  return result;
}

}  // namespace kvcache::runner
