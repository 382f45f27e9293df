// Text of tokens that come one at a time.
#ifndef KVCACHE_RUNNER_TOKENIZER_STREAM_DECODER_H_
#define KVCACHE_RUNNER_TOKENIZER_STREAM_DECODER_H_

#include <cstdint>
#include <string>

#include "runner/tokenizer/decoder.h"
#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

// What push() and flush() return, joined, is what Tokenizer::decode() gives for all the ids; each
// piece is UTF-8 by itself. The tokenizer must outlive the decoder.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special), decoding_(tokenizer.decoder()) {}

  // The text that is certain with this token: what a later one may change waits for it.
  std::string push(std::int32_t id);

  // The end of the text: what waited, with U+FFFD for bytes that are no character. The decoder then
  // starts anew.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  Decoding decoding_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_STREAM_DECODER_H_
