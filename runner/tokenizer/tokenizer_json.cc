// Reading tokenizer.json: the members of Tokenizer that build it.
#include <algorithm>
#include <utility>

#include "runner/tokenizer/byte_alphabet.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kMaxFileBytes = std::int64_t{128} << 20;

Status check_decoder(const JsonObject& root) {
  KVC_ASSIGN_OR_RETURN(const JsonObject component, root.object("decoder"));
  KVC_ASSIGN_OR_RETURN(const auto parts, flatten_sequence(component, "decoders"));
  for (const JsonObject& part : parts) {
    KVC_ASSIGN_OR_RETURN(const std::string type, part.text("type"));
    if (type != "ByteLevel") return part.error(StatusCode::kUnsupported, "type", "ByteLevel");
    // None of its options changes what it decodes.
    KVC_RETURN_IF_ERROR(
        refuse_unknown_keys(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  }
  if (parts.size() != 1) {
    return component.error(StatusCode::kUnsupported, "decoders", "one ByteLevel");
  }
  return Status();
}

}  // namespace

Result<Tokenizer> Tokenizer::load(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, kMaxFileBytes));
  return parse(text, path);
}

Result<Tokenizer> Tokenizer::parse(std::string_view json, const std::string& name) {
  return without_exceptions(name, [&]() -> Result<Tokenizer> {
    KVC_ASSIGN_OR_RETURN(const Json document, parse_json(json, name));
    KVC_ASSIGN_OR_RETURN(const JsonObject root, JsonObject::create(document, name));
    return parse_document(root);
  });
}

Result<Tokenizer> Tokenizer::parse_document(const JsonObject& root) {
  KVC_RETURN_IF_ERROR(
      refuse_unknown_keys(root, {"version", "truncation", "padding", "added_tokens", "normalizer",
                                 "pre_tokenizer", "post_processor", "decoder", "model"}));
  KVC_ASSIGN_OR_RETURN(const std::string version, root.text("version", "1.0"));
  if (version != "1.0") return root.error(StatusCode::kUnsupported, "version", "1.0");
  Tokenizer result;
  KVC_ASSIGN_OR_RETURN(const JsonObject model, root.object("model"));
  KVC_ASSIGN_OR_RETURN(result.bpe_, Bpe::create(model));
  KVC_ASSIGN_OR_RETURN(result.normalizer_, Normalizer::create(root));
  KVC_ASSIGN_OR_RETURN(result.pre_tokenizer_, PreTokenizer::create(root));
  KVC_ASSIGN_OR_RETURN(result.added_,
                       AddedTokens::create(root, result.bpe_.vocabulary(), result.normalizer_));
  KVC_RETURN_IF_ERROR(check_decoder(root));

  std::int32_t highest = -1;
  for (const auto& [content, id] : result.bpe_.vocabulary()) highest = std::max(highest, id);
  for (const AddedToken& token : result.added_.tokens()) highest = std::max(highest, token.id);
  result.kinds_.resize(static_cast<std::size_t>(highest) + 1, Kind::kNone);
  result.bytes_.resize(static_cast<std::size_t>(highest) + 1);
  for (const auto& [content, id] : result.bpe_.vocabulary()) {
    result.name_token(id, content, Kind::kOrdinary);
  }
  for (const AddedToken& token : result.added_.tokens()) {
    const Kind kind = token.special ? Kind::kSpecial : Kind::kOrdinary;
    if (token.normalized) {
      KVC_ASSIGN_OR_RETURN(const std::string content, result.normalizer_.apply(token.content));
      result.name_token(token.id, content, kind);
    } else {
      result.name_token(token.id, token.content, kind);
    }
  }
  KVC_RETURN_IF_ERROR(result.read_post_processor(root));
  return result;
}

void Tokenizer::name_token(std::int32_t id, std::string_view content, Kind kind) {
  const auto index = static_cast<std::size_t>(id);
  kinds_[index] = kind;
  // The ByteLevel decoder reads added tokens in its alphabet too, where it can.
  std::optional<std::string> bytes = bytes_of_token(content);
  bytes_[index] = bytes ? *std::move(bytes) : std::string(content);
}

Status Tokenizer::read_post_processor(const JsonObject& root) {
  if (!root.has("post_processor")) return Status();
  KVC_ASSIGN_OR_RETURN(const JsonObject component, root.object("post_processor"));
  KVC_ASSIGN_OR_RETURN(const auto parts, flatten_sequence(component, "processors"));
  for (const JsonObject& part : parts) {
    KVC_ASSIGN_OR_RETURN(const std::string type, part.text("type"));
    if (type == "TemplateProcessing") {
      KVC_RETURN_IF_ERROR(read_template(part));
    } else if (type == "ByteLevel") {  // moves offsets, which nobody asks for here
      KVC_RETURN_IF_ERROR(
          refuse_unknown_keys(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    } else {
      return part.error(StatusCode::kUnsupported, "type", "TemplateProcessing or ByteLevel");
    }
  }
  return Status();
}

Status Tokenizer::read_template(const JsonObject& component) {
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
      if (id == nullptr || *id >= kinds_.size() || !contains(static_cast<std::int32_t>(*id))) {
        return found_expected(StatusCode::kCorrupt, entry.where() + ": ids", describe(value),
                              "the id of a token");
      }
      (seen_text ? after : before).push_back(static_cast<std::int32_t>(*id));
    }
  }
  if (!seen_text) return component.error(StatusCode::kUnsupported, "single", "the text A in it");
  // A later template goes around what an earlier one made.
  prefix_.insert(prefix_.begin(), before.begin(), before.end());
  suffix_.insert(suffix_.end(), after.begin(), after.end());
  return Status();
}

}  // namespace kvcache::runner
