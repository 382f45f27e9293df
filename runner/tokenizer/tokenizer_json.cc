// Reading tokenizer.json: the members of Tokenizer that build it.
#include <algorithm>
#include <unordered_set>
#include <utility>

#include <nlohmann/json.hpp>

#include "runner/config/likely_cause.h"
#include "runner/tokenizer/component.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kMaxFileBytes = std::int64_t{128} << 20;

}  // namespace

Result<Tokenizer> Tokenizer::load(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, kMaxFileBytes));
  return parse(text, path);
}

Result<Tokenizer> Tokenizer::load_directory(const std::string& directory) {
  const std::string path = directory + "/tokenizer.json";
  const Result<std::string> text = read_text_file(path, kMaxFileBytes);
  if (text.status().code() == StatusCode::kNotFound) {
    const std::string kind = kind_of_directory(directory, "tokenizer.json");
    return found_expected(StatusCode::kNotFound, directory, kind.empty() ? "no tokenizer" : kind,
                          "tokenizer.json");
  }
  if (!text.ok()) return text.status();
  return parse(*text, path, directory);
}

Result<Tokenizer> Tokenizer::parse(std::string_view json, const std::string& name,
                                   const std::string& directory) {
  return without_exceptions(name, [&]() -> Result<Tokenizer> {
    KVC_ASSIGN_OR_RETURN(const Json document, parse_json(json, name));
    KVC_ASSIGN_OR_RETURN(const JsonObject root, JsonObject::create(document, name));
    return parse_document(root, directory);
  });
}

Result<Tokenizer> Tokenizer::parse_document(const JsonObject& root, const std::string& directory) {
  KVC_RETURN_IF_ERROR(
      refuse_unknown_keys(root, {"version", "truncation", "padding", "added_tokens", "normalizer",
                                 "pre_tokenizer", "post_processor", "decoder", "model"}));
  KVC_ASSIGN_OR_RETURN(const std::string version, root.text("version", "1.0"));
  if (version != "1.0") return root.error(StatusCode::kUnsupported, "version", "1.0");
  Tokenizer result;
  KVC_ASSIGN_OR_RETURN(const JsonObject model, root.object("model"));
  KVC_ASSIGN_OR_RETURN(result.bpe_, Bpe::create(model));
  KVC_ASSIGN_OR_RETURN(result.normalizer_, Normalizer::create(root));
  KVC_ASSIGN_OR_RETURN(result.pre_tokenizer_, PreTokenizer::create(root, result.normalizer_));
  KVC_ASSIGN_OR_RETURN(result.added_, AddedTokens::create(root, result.bpe_.vocabulary(),
                                                          result.normalizer_, directory));
  KVC_ASSIGN_OR_RETURN(result.decoder_, Decoder::create(root));

  std::int32_t highest = -1;
  for (const auto& [content, id] : result.bpe_.vocabulary()) highest = std::max(highest, id);
  for (const AddedToken& token : result.added_.tokens()) highest = std::max(highest, token.id);
  result.kinds_.resize(static_cast<std::size_t>(highest) + 1, Kind::kNone);
  result.texts_.resize(static_cast<std::size_t>(highest) + 1);
  for (const auto& [content, id] : result.bpe_.vocabulary()) {
    result.name_token(id, content, Kind::kOrdinary);
  }
  std::unordered_set<std::string_view> special;
  for (const AddedToken& token : result.added_.tokens()) {
    if (token.special) special.insert(token.content);
  }
  for (const AddedToken& token : result.added_.tokens()) {
    std::string text = token.content;
    if (token.normalized) {
      KVC_ASSIGN_OR_RETURN(text, result.normalizer_.apply(token.content));
    }
    // tokenizers asks for the text it decodes, which normalisation may have changed.
    result.name_token(token.id, text, special.contains(text) ? Kind::kSpecial : Kind::kOrdinary);
  }
  KVC_ASSIGN_OR_RETURN(result.post_processor_,
                       PostProcessor::create(root, [&result](std::uint64_t id) {
                         return id <= static_cast<std::uint64_t>(kMaxTokenId) &&
                                result.contains(static_cast<std::int32_t>(id));
                       }));
  return result;
}

void Tokenizer::name_token(std::int32_t id, std::string_view content, Kind kind) {
  const auto index = static_cast<std::size_t>(id);
  kinds_[index] = kind;
  texts_[index] = content;
}

}  // namespace kvcache::runner
