#include "runner/tokenizer/stream_decoder.h"

namespace kvcache::runner {

std::string StreamDecoder::push(std::int32_t id) {
  if (!tokenizer_->contains(id) || (skip_special_ && tokenizer_->is_special(id))) return {};
  decoding_.push(tokenizer_->token_text(id));
  return decoding_.take();
}

std::string StreamDecoder::flush() {
  decoding_.finish();
  std::string text = decoding_.take();
  decoding_ = Decoding(tokenizer_->decoder());
  return text;
}

}  // namespace kvcache::runner
