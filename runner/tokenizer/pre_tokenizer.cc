#include "runner/tokenizer/pre_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

namespace kvcache::runner {
namespace {

// What ByteLevel cuts by when use_regex is true (GPT-2).
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

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
  KVC_ASSIGN_OR_RETURN(const std::string type, component.text("type"));
  if (type != "Sequence") {
    parts.push_back(component);
    return parts;
  }
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type", list_key}));
  const Json* list = component.find(list_key);
  if (list == nullptr || !list->is_array()) {
    return component.error(StatusCode::kCorrupt, list_key, "a list");
  }
  for (const Json& item : *list) {
    std::string where =
        component.where() + ": " + std::string(list_key) + "[" + std::to_string(parts.size()) + "]";
    KVC_ASSIGN_OR_RETURN(JsonObject part, JsonObject::create(item, std::move(where)));
    parts.push_back(std::move(part));
  }
  return parts;
}

Result<Normalizer> Normalizer::create(const JsonObject& root) {
  Normalizer result;
  if (!root.has("normalizer")) return result;
  KVC_ASSIGN_OR_RETURN(const JsonObject component, root.object("normalizer"));
  KVC_ASSIGN_OR_RETURN(const auto parts, flatten_sequence(component, "normalizers"));
  for (const JsonObject& part : parts) {
    KVC_ASSIGN_OR_RETURN(const std::string type, part.text("type"));
    if (type != "NFC") return part.error(StatusCode::kUnsupported, "type", "NFC, or no normalizer");
    KVC_RETURN_IF_ERROR(refuse_unknown_keys(part, {"type"}));
    result.nfc_ = true;
  }
  return result;
}

Result<std::string> Normalizer::apply(std::string_view text) const {
  const bool ascii = std::all_of(text.begin(), text.end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 128; });
  if (!nfc_ || ascii) return std::string(text);
  utf8proc_uint8_t* composed = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &composed,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(composed, &std::free);
  if (length == UTF8PROC_ERROR_NOMEM) {
    return Status(StatusCode::kOutOfMemory, "text: found no memory to normalise it");
  }
  if (length < 0) {
    return found_expected(StatusCode::kInvalidArgument, "text", utf8proc_errmsg(length),
                          "text that NFC can normalise");
  }
  return std::string(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(length));
}

Status PreTokenizer::add_stage(const JsonObject& component, bool last) {
  KVC_ASSIGN_OR_RETURN(const std::string type, component.text("type"));
  Stage stage;
  if (type == "Split") {
    KVC_RETURN_IF_ERROR(refuse_unknown_keys(component, {"type", "pattern", "behavior", "invert"}));
    KVC_ASSIGN_OR_RETURN(const std::string behavior, component.text("behavior"));
    if (behavior != "Isolated") {
      return component.error(StatusCode::kUnsupported, "behavior", "Isolated");
    }
    KVC_ASSIGN_OR_RETURN(const bool invert, component.boolean("invert", false));
    if (invert) return component.error(StatusCode::kUnsupported, "invert", "false");
    KVC_ASSIGN_OR_RETURN(const JsonObject pattern, component.object("pattern"));
    if (!pattern.has("Regex") || pattern.node().size() != 1) {
      return component.error(StatusCode::kUnsupported, "pattern", "an object with the key Regex");
    }
    KVC_ASSIGN_OR_RETURN(const std::string regex, pattern.text("Regex"));
    KVC_ASSIGN_OR_RETURN(stage.pattern, SplitPattern::compile(regex, pattern.where() + ": Regex"));
  } else if (type == "ByteLevel") {
    KVC_RETURN_IF_ERROR(
        refuse_unknown_keys(component, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    if (!last) {
      return component.error(StatusCode::kUnsupported, "type", "ByteLevel as the last stage");
    }
    KVC_ASSIGN_OR_RETURN(stage.add_prefix_space, component.boolean("add_prefix_space"));
    KVC_ASSIGN_OR_RETURN(const bool use_regex, component.boolean("use_regex", true));
    if (use_regex) {
      KVC_ASSIGN_OR_RETURN(stage.pattern,
                           SplitPattern::compile(kByteLevelPattern, component.where()));
    }
  } else {
    return component.error(StatusCode::kUnsupported, "type", "Split or ByteLevel");
  }
  if (last && type != "ByteLevel") {
    return component.error(StatusCode::kUnsupported, "type", "ByteLevel as the last stage");
  }
  stages_.push_back(std::move(stage));
  return Status();
}

Result<PreTokenizer> PreTokenizer::create(const JsonObject& root) {
  KVC_ASSIGN_OR_RETURN(const JsonObject component, root.object("pre_tokenizer"));
  KVC_ASSIGN_OR_RETURN(const auto parts, flatten_sequence(component, "pretokenizers"));
  if (parts.empty()) {
    return component.error(StatusCode::kUnsupported, "pretokenizers", "a list with a ByteLevel");
  }
  PreTokenizer result;
  for (const JsonObject& part : parts) {
    KVC_RETURN_IF_ERROR(result.add_stage(part, &part == &parts.back()));
  }
  return result;
}

Status PreTokenizer::split(std::string_view text, std::deque<std::string>* storage,
                           std::vector<std::string_view>* words) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const Stage& stage : stages_) {
    std::vector<std::string_view> finer;
    for (std::string_view piece : pieces) {
      if (stage.add_prefix_space && piece.front() != ' ') {
        piece = storage->emplace_back(" " + std::string(piece));
      }
      if (!stage.pattern) {
        finer.push_back(piece);
        continue;
      }
      KVC_RETURN_IF_ERROR(stage.pattern->split(piece, &finer));
    }
    pieces = std::move(finer);
  }
  words->insert(words->end(), pieces.begin(), pieces.end());
  return Status();
}

}  // namespace kvcache::runner
