#include "runner/tokenizer/more_tokens.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "runner/config/json_file.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kMaxTokenFileBytes = std::int64_t{16} << 20;
constexpr const char* kNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                  "pad_token", "cls_token", "mask_token"};
constexpr const char* kExtra[] = {"extra_special_tokens", "additional_special_tokens"};

using Tokens = std::vector<AddedToken>;

bool holds(const Tokens& tokens, std::string_view content) {
  return std::any_of(tokens.begin(), tokens.end(),
                     [&](const AddedToken& token) { return token.content == content; });
}

// An object, or an empty one where there is no such file.
Result<Json> read_object(const std::string& path) {
  Result<Json> document = load_json(path, kMaxTokenFileBytes);
  if (!document.ok() && document.status().code() == StatusCode::kNotFound) return Json::object();
  if (document.ok()) KVC_RETURN_IF_ERROR(JsonObject::create(*document, path).status());
  return document;
}

Result<AddedToken> token_of(const JsonObject& object) {
  AddedToken token;
  KVC_ASSIGN_OR_RETURN(token.content, object.text("content"));
  KVC_RETURN_IF_ERROR(read_token_flags(object, &token));
  return token;
}

// A token that another field names: a text, or an object.
Result<AddedToken> special_token(const Json& value, const std::string& where) {
  AddedToken token;
  if (const auto* content = value.get_ptr<const Json::string_t*>()) {
    token.content = *content;
  } else {
    if (!value.is_object()) {
      return found_expected(StatusCode::kCorrupt, where, describe(value), "a token");
    }
    KVC_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::create(value, where));
    KVC_ASSIGN_OR_RETURN(token, token_of(object));
  }
  token.special = true;
  return token;
}

// "added_tokens_decoder": {"9": {"content": ..}, ..}, by ascending number.
Result<Tokens> read_decoder(const JsonObject& decoder) {
  std::map<std::int64_t, AddedToken> by_id;
  for (const auto& [key, value] : decoder.node().items()) {
    std::int64_t id = 0;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size()) {
      return found_expected(StatusCode::kCorrupt, decoder.where(), describe(std::string_view(key)),
                            "the id of a token");
    }
    KVC_ASSIGN_OR_RETURN(const JsonObject object, decoder.object(key));
    KVC_ASSIGN_OR_RETURN(by_id[id], token_of(object));
  }
  Tokens tokens;
  for (auto& [id, token] : by_id) tokens.push_back(std::move(token));
  return tokens;
}

// added_tokens.json: {"<token>": 9, ..}, by ascending number, those left out that tokenizer.json
// lists at the same.
Result<Tokens> read_encoder(const JsonObject& encoder, const Tokens& listed, const Tokens& named) {
  std::map<std::int64_t, AddedToken> by_id;
  for (const auto& [content, unused] : encoder.node().items()) {
    KVC_ASSIGN_OR_RETURN(const std::int64_t id, encoder.integer(content, 0, INT64_MAX));
    AddedToken token;
    token.content = content;
    token.special = holds(named, content);
    token.normalized = !token.special;
    by_id[id] = std::move(token);
  }
  for (const AddedToken& token : listed) by_id.erase(token.id);
  Tokens tokens;
  for (auto& [id, token] : by_id) tokens.push_back(std::move(token));
  return tokens;
}

// The tokens that fields name, those of `map` before those of `config`.
Result<Tokens> read_named(const JsonObject& config, const JsonObject& map) {
  Tokens tokens;
  const auto add = [&tokens](const Json& value, const std::string& where) -> Status {
    KVC_ASSIGN_OR_RETURN(AddedToken token, special_token(value, where));
    if (!holds(tokens, token.content)) tokens.push_back(std::move(token));
    return Status();
  };
  for (const char* name : kNames) {
    const JsonObject& object = map.has(name) ? map : config;
    if (!object.has(name)) continue;
    KVC_RETURN_IF_ERROR(add(*object.find(name), object.where() + ": " + name));
  }
  for (const JsonObject* object : {&map, &config}) {
    for (const char* name : kExtra) {
      const Json* extra = object->find(name);
      if (extra == nullptr || extra->empty()) continue;
      if (!extra->is_array() && !extra->is_object()) {
        return object->error(StatusCode::kCorrupt, name, "a list of tokens");
      }
      for (const Json& value : *extra) {
        KVC_RETURN_IF_ERROR(add(value, object->where() + ": " + name));
      }
      break;  // the older name counts where the newer one says nothing
    }
  }
  return tokens;
}

}  // namespace

Result<Tokens> read_more_tokens(const std::string& directory, const Tokens& listed) {
  const std::string config_path = directory + "/tokenizer_config.json";
  KVC_ASSIGN_OR_RETURN(const Json config_document, read_object(config_path));
  KVC_ASSIGN_OR_RETURN(const JsonObject config, JsonObject::create(config_document, config_path));
  Tokens tokens;
  Tokens named;
  if (config.has("added_tokens_decoder")) {
    KVC_ASSIGN_OR_RETURN(const JsonObject decoder, config.object("added_tokens_decoder"));
    KVC_ASSIGN_OR_RETURN(tokens, read_decoder(decoder));
    const Json nothing = Json::object();
    KVC_ASSIGN_OR_RETURN(const JsonObject no_map, JsonObject::create(nothing, config_path));
    KVC_ASSIGN_OR_RETURN(named, read_named(config, no_map));
  } else {
    const std::string map_path = directory + "/special_tokens_map.json";
    KVC_ASSIGN_OR_RETURN(const Json map_document, read_object(map_path));
    KVC_ASSIGN_OR_RETURN(const JsonObject map, JsonObject::create(map_document, map_path));
    KVC_ASSIGN_OR_RETURN(named, read_named(config, map));
    const std::string encoder_path = directory + "/added_tokens.json";
    KVC_ASSIGN_OR_RETURN(const Json encoder_document, read_object(encoder_path));
    KVC_ASSIGN_OR_RETURN(const JsonObject encoder,
                         JsonObject::create(encoder_document, encoder_path));
    KVC_ASSIGN_OR_RETURN(tokens, read_encoder(encoder, listed, named));
  }
  for (AddedToken& token : tokens) token.special |= holds(named, token.content);
  for (AddedToken& token : named) {
    if (!holds(tokens, token.content) && !holds(listed, token.content)) {
      tokens.push_back(std::move(token));
    }
  }
  return tokens;
}

}  // namespace kvcache::runner
