// Tokens found in text as they are written, before any cutting and merging: <|im_start|>, ...
#ifndef KVCACHE_RUNNER_TOKENIZER_ADDED_TOKENS_H_
#define KVCACHE_RUNNER_TOKENIZER_ADDED_TOKENS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kvcache/status.h"
#include "runner/config/json_file.h"
#include "runner/tokenizer/bpe.h"
#include "runner/tokenizer/normalizer.h"

namespace kvcache::runner {

// A token of "added_tokens", or of the files beside tokenizer.json.
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool normalized = false;   // searched in the normalised text
  bool special = false;      // left out of decoded text on request
};

// Reads single_word, lstrip, rstrip, normalized and special. Errors: kCorrupt.
Status read_token_flags(const JsonObject& object, AddedToken* token);

// One added token, or the text between two.
struct TextPart {
  std::string_view text;  // never empty, unused for a token
  std::int32_t id = -1;   // -1: ordinary text
};

// Finds many tokens at once: the leftmost, and of several there the longest.
class TokenFinder {
 public:
  // A pattern added twice keeps its first index.
  void add(std::string_view pattern, std::int32_t index);

  // The match at `at`, or length 0.
  struct Match {
    std::size_t length = 0;
    std::int32_t index = -1;
  };
  Match match_at(std::string_view text, std::size_t at) const;

 private:
  bool starts_[256] = {};
  std::vector<std::int32_t> index_of_node_ = {-1};
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;  // node << 8 | byte -> node
};

class AddedTokens {
 public:
  // Reads "added_tokens", and what transformers adds from the files of `directory` (none where it
  // is empty). As in tokenizers a token has its id of the vocabulary, else the next free one,
  // whatever the file says, and of two with one content the later holds. Errors: kCorrupt, kIo.
  static Result<AddedTokens> create(const JsonObject& root, const TokenMap& vocabulary,
                                    const Normalizer& normalizer,
                                    const std::string& directory = {});

  // Appends the parts of `text`, in order. The first looks for tokens that are not
  // `normalized` in text as it came, the second for the others in normalised text.
  // REQUIRES: `text` is UTF-8.
  void split_raw(std::string_view text, std::vector<TextPart>* parts) const;
  void split_normalized(std::string_view text, std::vector<TextPart>* parts) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }

  // Where files disagree, a line each.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  void split(std::string_view text, const TokenFinder& finder, std::vector<TextPart>* parts) const;

  // Returns the token's index.
  Result<std::size_t> add(AddedToken token, const TokenMap& vocabulary, const std::string& where);

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, std::size_t> index_of_;  // by content
  std::int32_t next_id_ = 0;                               // of a token the vocabulary lacks
  std::vector<std::string> notes_;
  TokenFinder raw_;
  TokenFinder normalized_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_ADDED_TOKENS_H_
