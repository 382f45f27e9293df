// Byte-pair encoding by merge ranks, on characters.
#ifndef KVCACHE_RUNNER_TOKENIZER_BPE_H_
#define KVCACHE_RUNNER_TOKENIZER_BPE_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"

namespace kvcache::runner {

// Ids of a tokenizer.json stay below this; a file cannot make a table larger than it is.
inline constexpr std::int64_t kMaxTokenId = (std::int64_t{1} << 21) - 1;

struct TransparentHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept {
    return std::hash<std::string_view>{}(text);
  }
};
using TokenMap = std::unordered_map<std::string, std::int32_t, TransparentHash, std::equal_to<>>;

// "model" of tokenizer.json.
class Bpe {
 public:
  // Errors: kUnsupported: another model, dropout, affixes, by name; kCorrupt: a merge of tokens
  // that are not in the vocabulary, an id twice, ...
  static Result<Bpe> create(const JsonObject& model);

  // Appends the ids of one word. The pair of neighbours with the lowest rank merges first, the
  // leftmost of equals; with ignore_merges a word that is a token is that token. A character
  // without a token becomes tokens of its bytes (byte_fallback), else the unknown token, else
  // nothing. O(n log n).
  // REQUIRES: `word` is UTF-8. Errors: kUnsupported: it needs the unknown token, and the vocabulary
  // has no such token. Thread safety: const.
  Status encode(std::string_view word, std::vector<std::int32_t>* ids) const;

  // Tokens as they are written -> id.
  const TokenMap& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    std::int32_t rank = 0;
    std::int32_t id = 0;
  };

  Status read_vocabulary(const JsonObject& model);
  Status read_merges(const JsonObject& model);
  Status add_merge(std::string_view left, std::string_view right, std::int32_t rank,
                   const std::string& where);
  const Merge* find_merge(std::int32_t left, std::int32_t right) const;
  std::int32_t find(std::string_view token) const;  // -1: none
  Status append_characters(std::string_view word, std::vector<std::int32_t>* ids) const;
  bool append_bytes(std::string_view character, std::vector<std::int32_t>* ids) const;

  TokenMap vocabulary_;
  // Of the characters that come first, which are those of the byte alphabet too. -1: none
  std::array<std::int32_t, 512> id_of_character_ = {};
  std::array<std::int32_t, 256> id_of_byte_ = {};  // <0x00> .. <0xFF>; -1: none
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::string where_;          // what errors call it
  std::string unknown_token_;  // empty: none
  std::int32_t unknown_id_ = -1;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_BPE_H_
