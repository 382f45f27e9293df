// One vocabulary of errors: "name: found X, expected Y".
//
// Messages are built where a check fails and nowhere else; building one may throw bad_alloc: call
// these inside at_door.
#ifndef KVCACHE_SRC_BASE_EXPECT_H_
#define KVCACHE_SRC_BASE_EXPECT_H_

#include <concepts>
#include <cstdint>
#include <string>
#include <utility>

#include "kvcache/status.h"

namespace kvcache::internal {

// What a message is made of: text, or a number in digits.
class Word {
 public:
  Word(const char* text) : text_(text) {}                      // NOLINT: implicit
  Word(std::string text) noexcept : text_(std::move(text)) {}  // NOLINT: implicit
  template <std::integral Number>
  Word(Number number) : text_(std::to_string(number)) {}  // NOLINT: implicit

  const std::string& text() const noexcept { return text_; }

 private:
  std::string text_;
};

inline Status refusal(StatusCode code, const Word& name, const Word& found, const Word& expected) {
  return Status(code, name.text() + ": found " + found.text() + ", expected " + expected.text());
}
inline Status refusal(const Word& name, const Word& found, const Word& expected) {
  return refusal(StatusCode::kInvalidArgument, name, found, expected);
}

// `name` is taken as it is, so that a check that passes builds no text.
inline Status expect_at_least(const char* name, std::int64_t value, std::int64_t least,
                              StatusCode code = StatusCode::kInvalidArgument) {
  if (value >= least) return {};
  return refusal(code, name, value, "at least " + std::to_string(least));
}

// least <= value <= most.
inline Status expect_between(const char* name, std::int64_t value, std::int64_t least,
                             std::int64_t most, StatusCode code = StatusCode::kInvalidArgument) {
  if (value >= least && value <= most) return {};
  return refusal(code, name, value, std::to_string(least) + " .. " + std::to_string(most));
}

// 0 <= value < count. Errors: kOutOfRange.
inline Status expect_index(const char* name, std::int64_t value, std::int64_t count) {
  if (value >= 0 && value < count) return {};
  return refusal(StatusCode::kOutOfRange, name, value,
                 count > 0 ? "0 .. " + std::to_string(count - 1) : "none: there are none");
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_EXPECT_H_
