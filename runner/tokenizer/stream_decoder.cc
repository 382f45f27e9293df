#include "runner/tokenizer/stream_decoder.h"

#include <utility>

#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {

std::string StreamDecoder::push(std::int32_t id) {
  std::string text;
  if (skip_special_ && tokenizer_->is_special(id)) return text;
  pending_ += tokenizer_->token_bytes(id);
  pending_.erase(0, append_complete_utf8(pending_, &text));
  return text;
}

std::string StreamDecoder::flush() {
  return std::exchange(pending_, {}).empty() ? std::string() : std::string(kReplacementCharacter);
}

}  // namespace kvcache::runner
