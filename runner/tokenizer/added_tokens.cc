#include "runner/tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "runner/tokenizer/component.h"
#include "runner/tokenizer/more_tokens.h"
#include "runner/tokenizer/unicode.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kMaxTokenBytes = 4096;

// \w of Rust's regex crate, which tokenizers uses here: letters, marks, digits, connectors.
bool is_word_character(char32_t c) {
  switch (category_of(c)) {
    case Category::kLu:
    case Category::kLl:
    case Category::kLt:
    case Category::kLm:
    case Category::kLo:
    case Category::kNl:
    case Category::kMn:
    case Category::kMc:
    case Category::kMe:
    case Category::kNd:
    case Category::kPc:
      return true;
    default:
      // Other_Alphabetic beyond the categories above (circled letters), and Join_Control.
      return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
             (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189) || c == 0x200C ||
             c == 0x200D;
  }
}

// Start of the last character of `text`. REQUIRES: UTF-8, not empty.
std::size_t last_character(std::string_view text) {
  std::size_t at = text.size() - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool touches_word(std::string_view before, std::string_view after) {
  return (!before.empty() &&
          is_word_character(next_utf8(before.substr(last_character(before))).code_point)) ||
         (!after.empty() && is_word_character(next_utf8(after).code_point));
}

// `text` without the white space at its end; `end` is where that starts.
std::size_t end_without_space(std::string_view text) {
  std::size_t end = text.size();
  while (end > 0) {
    const std::size_t at = last_character(text.substr(0, end));
    if (!is_white_space(next_utf8(text.substr(at)).code_point)) break;
    end = at;
  }
  return end;
}

std::size_t space_at_start(std::string_view text) {
  std::size_t length = 0;
  while (length < text.size()) {
    const Utf8Step step = next_utf8(text.substr(length));
    if (!is_white_space(step.code_point)) break;
    length += step.length;
  }
  return length;
}

Result<AddedToken> read_token(const JsonObject& object) {
  AddedToken token;
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(
      object, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
  KVC_ASSIGN_OR_RETURN(const std::int64_t id, object.integer("id", 0, kMaxTokenId));
  token.id = static_cast<std::int32_t>(id);
  KVC_ASSIGN_OR_RETURN(token.content, object.text("content"));
  KVC_RETURN_IF_ERROR(read_token_flags(object, &token));
  return token;
}

}  // namespace

void TokenFinder::add(std::string_view pattern, std::int32_t index) {
  if (pattern.empty()) return;
  starts_[static_cast<unsigned char>(pattern[0])] = true;
  std::uint32_t node = 0;
  for (const char c : pattern) {
    const std::uint64_t edge = std::uint64_t{node} << 8 | static_cast<unsigned char>(c);
    const auto [it, inserted] =
        edges_.emplace(edge, static_cast<std::uint32_t>(index_of_node_.size()));
    if (inserted) index_of_node_.push_back(-1);
    node = it->second;
  }
  if (index_of_node_[node] < 0) index_of_node_[node] = index;
}

TokenFinder::Match TokenFinder::match_at(std::string_view text, std::size_t at) const {
  Match best;
  if (!starts_[static_cast<unsigned char>(text[at])]) return best;
  std::uint32_t node = 0;
  for (std::size_t i = at; i < text.size(); ++i) {
    const auto it = edges_.find(std::uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    if (it == edges_.end()) break;
    node = it->second;
    if (index_of_node_[node] >= 0) best = {i + 1 - at, index_of_node_[node]};
  }
  return best;
}

Status read_token_flags(const JsonObject& object, AddedToken* token) {
  KVC_ASSIGN_OR_RETURN(token->single_word, object.boolean("single_word", false));
  KVC_ASSIGN_OR_RETURN(token->lstrip, object.boolean("lstrip", false));
  KVC_ASSIGN_OR_RETURN(token->rstrip, object.boolean("rstrip", false));
  KVC_ASSIGN_OR_RETURN(token->special, object.boolean("special", false));
  KVC_ASSIGN_OR_RETURN(token->normalized, object.boolean("normalized", !token->special));
  return Status();
}

Result<std::size_t> AddedTokens::add(AddedToken token, const TokenMap& vocabulary,
                                     const std::string& where) {
  if (token.content.size() > kMaxTokenBytes) {
    return found_expected(StatusCode::kUnsupported, where + ": content",
                          std::to_string(token.content.size()) + " bytes",
                          "at most " + std::to_string(kMaxTokenBytes));
  }
  const auto [it, inserted] = index_of_.emplace(token.content, tokens_.size());
  if (!inserted) {
    AddedToken& before = tokens_[it->second];
    token.id = before.id;
    token.special |= before.special;
    before = std::move(token);
    return it->second;
  }
  const auto known = vocabulary.find(token.content);
  token.id = known != vocabulary.end() ? known->second : next_id_;
  next_id_ = std::max(next_id_, token.id + 1);
  tokens_.push_back(std::move(token));
  return tokens_.size() - 1;
}

Result<AddedTokens> AddedTokens::create(const JsonObject& root, const TokenMap& vocabulary,
                                        const Normalizer& normalizer,
                                        const std::string& directory) {
  AddedTokens result;
  result.next_id_ = static_cast<std::int32_t>(vocabulary.size());
  const Json none = Json::array();
  const Json* list = root.has("added_tokens") ? root.find("added_tokens") : &none;
  if (!list->is_array()) return root.error(StatusCode::kCorrupt, "added_tokens", "a list");
  std::size_t place = 0;
  for (const Json& item : *list) {
    const std::string where = root.where() + ": added_tokens[" + std::to_string(place++) + "]";
    KVC_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::create(item, where));
    KVC_ASSIGN_OR_RETURN(AddedToken token, read_token(object));
    if (token.content.empty()) continue;
    const std::int32_t written = token.id;
    KVC_ASSIGN_OR_RETURN(const std::size_t index, result.add(std::move(token), vocabulary, where));
    if (const std::int32_t id = result.tokens_[index].id; id != written) {
      result.notes_.push_back(where + ": id: found " + std::to_string(written) + ", expected " +
                              std::to_string(id) + ", which is taken, as tokenizers takes it");
    }
  }
  if (!directory.empty()) {
    KVC_ASSIGN_OR_RETURN(const std::vector<AddedToken> more,
                         read_more_tokens(directory, result.tokens_));
    std::string added;
    for (const AddedToken& token : more) {
      if (token.content.empty()) continue;
      if (!result.index_of_.contains(token.content))
        added += " " + describe(std::string_view(token.content));
      KVC_RETURN_IF_ERROR(result.add(token, vocabulary, directory).status());
    }
    if (!added.empty()) {
      result.notes_.push_back(root.where() +
                              ": added, as transformers adds them, are tokens that " +
                              "stand in files beside it alone:" + added);
    }
  }
  // Where the ids of a vocabulary have gaps, its size may be one of them.
  std::unordered_map<std::int32_t, std::string_view> content_of;
  for (const auto& [content, id] : vocabulary) content_of.emplace(id, content);
  for (const AddedToken& token : result.tokens_) {
    const auto taken = content_of.find(token.id);
    if (taken == content_of.end() || taken->second == token.content) continue;
    result.notes_.push_back(root.where() +
                            ": added_tokens: " + describe(std::string_view(token.content)) +
                            " has the id of " + describe(taken->second) + " too, as in tokenizers");
  }
  for (std::size_t i = 0; i < result.tokens_.size(); ++i) {
    const AddedToken& token = result.tokens_[i];
    if (token.normalized) {
      KVC_ASSIGN_OR_RETURN(const std::string pattern, normalizer.apply(token.content));
      result.normalized_.add(pattern, static_cast<std::int32_t>(i));
    } else {
      result.raw_.add(token.content, static_cast<std::int32_t>(i));
    }
  }
  return result;
}

void AddedTokens::split_raw(std::string_view text, std::vector<TextPart>* parts) const {
  split(text, raw_, parts);
}

void AddedTokens::split_normalized(std::string_view text, std::vector<TextPart>* parts) const {
  split(text, normalized_, parts);
}

// As tokenizers' AddedVocabulary::find_matches: matches do not overlap, whether kept or not, but
// the space a token takes may hold further tokens, except those that take space before them.
void AddedTokens::split(std::string_view text, const TokenFinder& finder,
                        std::vector<TextPart>* parts) const {
  std::size_t done = 0;  // where the next part of text begins
  std::size_t at = 0;
  while (at < text.size()) {
    const TokenFinder::Match match = finder.match_at(text, at);
    if (match.length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<std::size_t>(match.index)];
    std::size_t begin = at;
    std::size_t end = at + match.length;
    at = end;
    if (token.single_word && touches_word(text.substr(0, begin), text.substr(end))) continue;
    if (token.lstrip) begin = std::max(end_without_space(text.substr(0, begin)), done);
    if (token.rstrip) end += space_at_start(text.substr(end));
    if (done < begin) parts->push_back({text.substr(done, begin - done), -1});
    if (begin < end) parts->push_back({{}, token.id});
    done = end;
  }
  if (done < text.size()) parts->push_back({text.substr(done), -1});
}

}  // namespace kvcache::runner
