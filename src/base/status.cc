#include "kvcache/status.h"

namespace kvcache {
inline namespace v1 {

const char* name_of(StatusCode code) noexcept {
  switch (code) {
    case StatusCode::kOk:
      return "ok";
    case StatusCode::kInvalidArgument:
      return "invalid argument";
    case StatusCode::kOutOfRange:
      return "out of range";
    case StatusCode::kNotFound:
      return "not found";
    case StatusCode::kRetryLater:
      return "retry later";
    case StatusCode::kNeverFits:
      return "never fits";
    case StatusCode::kUnsupported:
      return "unsupported";
    case StatusCode::kOutOfMemory:
      return "out of memory";
    case StatusCode::kCorrupt:
      return "corrupt";
    case StatusCode::kIo:
      return "i/o error";
    case StatusCode::kUnavailable:
      return "unavailable";
    case StatusCode::kInternal:
      return "internal error";
  }
  return "unknown error";
}

std::string Status::to_string() const {
  std::string text = name_of(code_);
  // An error that is named by its code alone says it once.
  if (!message_.empty() && message_ != text) text += ": " + message_;
  return text;
}

}  // namespace v1
}  // namespace kvcache
