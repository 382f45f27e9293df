#include "runner/tokenizer/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "runner/tokenizer/component.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

constexpr std::int64_t kMaxTokenBytes = 4096;

// \w of Rust's regex crate, which tokenizers uses here: letters, marks, digits, connectors.
bool is_word_character(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
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
  if (token.content.empty() || token.content.size() > kMaxTokenBytes) {
    return object.error(StatusCode::kCorrupt, "content",
                        "1 .. " + std::to_string(kMaxTokenBytes) + " bytes");
  }
  KVC_ASSIGN_OR_RETURN(token.single_word, object.boolean("single_word", false));
  KVC_ASSIGN_OR_RETURN(token.lstrip, object.boolean("lstrip", false));
  KVC_ASSIGN_OR_RETURN(token.rstrip, object.boolean("rstrip", false));
  KVC_ASSIGN_OR_RETURN(token.special, object.boolean("special", false));
  KVC_ASSIGN_OR_RETURN(token.normalized, object.boolean("normalized", !token.special));
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

Result<AddedTokens> AddedTokens::create(const JsonObject& root, const TokenMap& vocabulary,
                                        const Normalizer& normalizer) {
  AddedTokens result;
  const Json* list = root.find("added_tokens");
  if (list == nullptr) return result;
  if (!list->is_array()) return root.error(StatusCode::kCorrupt, "added_tokens", "a list");
  std::unordered_map<std::int32_t, std::string_view> content_of;
  for (const auto& [content, id] : vocabulary) content_of.emplace(id, content);
  TokenMap seen;
  for (const Json& item : *list) {
    const std::string where =
        root.where() + ": added_tokens[" + std::to_string(result.tokens_.size()) + "]";
    KVC_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::create(item, where));
    KVC_ASSIGN_OR_RETURN(AddedToken token, read_token(object));
    const auto known = vocabulary.find(token.content);
    if (known != vocabulary.end() && known->second != token.id) {
      return object.error(StatusCode::kCorrupt, "id",
                          std::to_string(known->second) + ", its id in the vocabulary");
    }
    const auto taken = content_of.find(token.id);
    if (taken != content_of.end() && taken->second != token.content) {
      return object.error(StatusCode::kCorrupt, "id",
                          "one that is not the id of " + describe(taken->second));
    }
    if (!seen.emplace(token.content, token.id).second) {
      return object.error(StatusCode::kCorrupt, "content", "one that is not listed already");
    }
    result.tokens_.push_back(std::move(token));
    // The map's own key: it stays where it is when the list grows.
    content_of[result.tokens_.back().id] = seen.find(result.tokens_.back().content)->first;
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
