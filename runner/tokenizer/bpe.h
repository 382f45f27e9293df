// Byte-pair encoding by merge ranks, on bytes.
#ifndef KVCACHE_RUNNER_TOKENIZER_BPE_H_
#define KVCACHE_RUNNER_TOKENIZER_BPE_H_

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
  // Errors: kUnsupported: another model, dropout, affixes, byte fallback, by name; kCorrupt: a
  // merge of tokens that are not in the vocabulary, an id twice, ...
  static Result<Bpe> create(const JsonObject& model);

  // Appends the ids of one word. The pair of neighbours with the lowest rank merges first, the
  // leftmost of equals; with ignore_merges a word that is a token is that token. A byte without a
  // token is left out, as tokenizers does. O(n log n). Thread safety: const.
  void encode(std::string_view word, std::vector<std::int32_t>* ids) const;

  // The vocabulary as it is written (byte-level characters) -> id.
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

  TokenMap vocabulary_;
  TokenMap id_of_bytes_;
  std::int32_t id_of_byte_[256] = {};  // -1: none
  std::unordered_map<std::uint64_t, Merge> merges_;
  bool ignore_merges_ = false;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_BPE_H_
