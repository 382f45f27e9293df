// UTF-8 (Unicode 15, section 3.9), byte by byte.
#ifndef KVCACHE_RUNNER_TOKENIZER_UTF8_H_
#define KVCACHE_RUNNER_TOKENIZER_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvcache::runner {

// What stands at the start of some bytes.
struct Utf8Step {
  enum Kind : std::uint8_t {
    kCharacter,   // `length` bytes encode `code_point`
    kInvalid,     // `length` bytes (a maximal subpart) can never begin a character
    kIncomplete,  // all bytes there are begin a character, whose end is missing
  };
  Kind kind = kInvalid;
  std::size_t length = 1;
  char32_t code_point = 0;
};

// REQUIRES: !bytes.empty()
Utf8Step next_utf8(std::string_view bytes) noexcept;

// Offset of the first byte that is not part of a character.
std::optional<std::size_t> find_invalid_utf8(std::string_view bytes) noexcept;

void append_utf8(char32_t code_point, std::string* out);

// Appends `bytes` to `out`, with U+FFFD for every maximal subpart that is not UTF-8, up to an
// incomplete character at the end. Returns the number of bytes taken; the rest is that character.
std::size_t append_complete_utf8(std::string_view bytes, std::string* out);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// The Unicode property White_Space.
bool is_white_space(char32_t code_point) noexcept;

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_UTF8_H_
