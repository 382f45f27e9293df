#include "runner/tokenizer/tokenizer.h"

#include <utility>

#include "runner/tokenizer/stream_decoder.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text,
                                                    bool add_special_tokens) const {
  if (const std::optional<std::size_t> at = find_invalid_utf8(text)) {
    static constexpr char kHex[] = "0123456789abcdef";
    const auto byte = static_cast<unsigned char>(text[*at]);
    const std::string found = {'b', 'y', 't', 'e', ' ', '0', 'x', kHex[byte >> 4], kHex[byte & 15]};
    return found_expected(StatusCode::kInvalidArgument, "text: at byte " + std::to_string(*at),
                          found, "UTF-8");
  }
  return without_exceptions("text", [&]() -> Result<std::vector<std::int32_t>> {
    std::vector<std::int32_t> ids;
    if (add_special_tokens) ids = post_processor_.prefix;
    std::vector<TextPart> raw_parts;
    std::vector<TextPart> parts;
    Words words;
    added_.split_raw(text, &raw_parts);
    for (const TextPart& raw : raw_parts) {
      if (raw.id >= 0) {
        ids.push_back(raw.id);
        continue;
      }
      KVC_ASSIGN_OR_RETURN(const std::string normalized, normalizer_.apply(raw.text));
      parts.clear();
      added_.split_normalized(normalized, &parts);
      for (const TextPart& part : parts) {
        if (part.id >= 0) {
          ids.push_back(part.id);
          continue;
        }
        const bool starts_text =
            raw.text.data() == text.data() && part.text.data() == normalized.data();
        words.list.clear();
        words.storage.clear();
        KVC_RETURN_IF_ERROR(pre_tokenizer_.split(part.text, starts_text, &words));
        for (const std::string_view word : words.list) {
          KVC_RETURN_IF_ERROR(bpe_.encode(word, &ids));
        }
      }
    }
    if (add_special_tokens)
      ids.insert(ids.end(), post_processor_.suffix.begin(), post_processor_.suffix.end());
    return ids;
  });
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  StreamDecoder decoder(*this, skip_special);
  std::string text;
  for (const std::int32_t id : ids) text += decoder.push(id);
  text += decoder.flush();
  return text;
}

std::string_view Tokenizer::token_text(std::int32_t id) const {
  return contains(id) ? std::string_view(texts_[static_cast<std::size_t>(id)]) : std::string_view();
}

std::optional<std::int32_t> Tokenizer::find_token(std::string_view content) const {
  for (const AddedToken& token : added_.tokens()) {
    if (token.content == content) return token.id;
  }
  const auto it = bpe_.vocabulary().find(content);
  if (it == bpe_.vocabulary().end()) return std::nullopt;
  return it->second;
}

std::vector<std::int32_t> Tokenizer::special_ids() const {
  std::vector<std::int32_t> ids;
  for (std::size_t id = 0; id < kinds_.size(); ++id) {
    if (kinds_[id] == Kind::kSpecial) ids.push_back(static_cast<std::int32_t>(id));
  }
  return ids;
}

Tokenizer::Kind Tokenizer::kind_of(std::int32_t id) const {
  if (id < 0 || static_cast<std::size_t>(id) >= kinds_.size()) return Kind::kNone;
  return kinds_[static_cast<std::size_t>(id)];
}

}  // namespace kvcache::runner
