// Text to token ids and back, as the tokenizer.json of a model directory says.
#ifndef KVCACHE_RUNNER_TOKENIZER_TOKENIZER_H_
#define KVCACHE_RUNNER_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"
#include "runner/tokenizer/added_tokens.h"
#include "runner/tokenizer/bpe.h"
#include "runner/tokenizer/decoder.h"
#include "runner/tokenizer/normalizer.h"
#include "runner/tokenizer/post_processor.h"
#include "runner/tokenizer/pre_tokenizer.h"

namespace kvcache::runner {

// An interpreter of tokenizer.json: a BPE model with the normalizers, pre-tokenizers, added tokens,
// post-processors and decoders of GPT-2, Qwen2, Llama 2 and 3 and their kin (each class says what
// it knows). A part it does not know is refused by name. Ids and text are those of Hugging Face
// tokenizers; decode(encode(x)) is what x is normalised to. Truncation and padding in the file are
// ignored, as transformers does for a single text. Thread safety: const.
class Tokenizer {
 public:
  // `path` is the file. Errors: kNotFound, kIo; kCorrupt: malformed, or contradicts itself;
  // kUnsupported: a part it does not know; kOutOfMemory. Each names file, field, found, expected.
  static Result<Tokenizer> load(const std::string& path);

  // tokenizer.json of a model directory, with the tokens that transformers adds from the files
  // beside it (runner/tokenizer/more_tokens.h). Errors: as load().
  static Result<Tokenizer> load_directory(const std::string& directory);

  // The same from the text of the file; `name` is what errors call it.
  static Result<Tokenizer> parse(std::string_view json, const std::string& name,
                                 const std::string& directory = {});

  // Where files disagree: a line each, which says what was taken.
  const std::vector<std::string>& notes() const { return added_.notes(); }

  // Ids of `text`. Added tokens written in the text become their ids; `add_special_tokens` adds
  // what the post-processor puts around a single text (Llama 3: <|begin_of_text|>). Errors:
  // kInvalidArgument: not UTF-8, naming the byte; kUnsupported: a pattern gives up on it, or it
  // needs an unknown token that the file does not have; kOutOfMemory.
  Result<std::vector<std::int32_t>> encode(std::string_view text,
                                           bool add_special_tokens = true) const;

  // The text of `ids`: always UTF-8, with U+FFFD where their bytes are not. Ids that do not exist
  // are left out, and special tokens too with `skip_special`.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const;

  // A token as the file writes it (an added token that is `normalized` as its normalised text),
  // before the decoder. Empty for an id that does not exist. Valid until the tokenizer is
  // destroyed.
  std::string_view token_text(std::int32_t id) const;

  const Decoder& decoder() const { return decoder_; }

  bool contains(std::int32_t id) const { return kind_of(id) != Kind::kNone; }
  bool is_special(std::int32_t id) const { return kind_of(id) == Kind::kSpecial; }

  // The id of a token by its content: an added token as written ("<|im_end|>"), any other as the
  // vocabulary writes it.
  std::optional<std::int32_t> find_token(std::string_view content) const;

  // One more than the highest id. Ids below it may be missing.
  std::int64_t vocab_size() const { return static_cast<std::int64_t>(kinds_.size()); }

  // Ids of the special tokens, ascending.
  std::vector<std::int32_t> special_ids() const;

 private:
  enum class Kind : std::uint8_t { kNone, kOrdinary, kSpecial };

  Tokenizer() = default;

  static Result<Tokenizer> parse_document(const JsonObject& root, const std::string& directory);
  void name_token(std::int32_t id, std::string_view content, Kind kind);
  Kind kind_of(std::int32_t id) const;

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  AddedTokens added_;
  PostProcessor post_processor_;
  Decoder decoder_;
  std::vector<Kind> kinds_;         // [vocab_size]
  std::vector<std::string> texts_;  // [vocab_size]
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_TOKENIZER_H_
