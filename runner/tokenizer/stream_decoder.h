// Text of tokens that come one at a time.
#ifndef KVCACHE_RUNNER_TOKENIZER_STREAM_DECODER_H_
#define KVCACHE_RUNNER_TOKENIZER_STREAM_DECODER_H_

#include <cstdint>
#include <string>

#include "runner/tokenizer/tokenizer.h"

namespace kvcache::runner {

// What push() and flush() return, joined, is what Tokenizer::decode() gives for all the ids; each
// piece is UTF-8 by itself. The tokenizer must outlive the decoder.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The text that is certain with this token: an unfinished character waits for its end.
  std::string push(std::int32_t id);

  // The end of the text: U+FFFD for an unfinished character, else nothing. The decoder then starts
  // anew.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // the start of one character, at most 3 bytes
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_STREAM_DECODER_H_
