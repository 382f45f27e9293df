#include "runner/tokenizer/byte_alphabet.h"

#include <array>

#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

// Bytes that are printable in Latin-1 stand for themselves, the others for U+0100 onwards.
constexpr bool stands_for_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, 256> make_characters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    characters[static_cast<std::size_t>(byte)] =
        stands_for_itself(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return characters;
}

constexpr std::array<char32_t, 256> kCharacters = make_characters();
constexpr std::size_t kNumCharacters = 256 + 68;  // one past the last character of the alphabet

constexpr std::array<short, kNumCharacters> make_bytes() {
  std::array<short, kNumCharacters> bytes{};
  for (short& byte : bytes) byte = -1;
  for (std::size_t byte = 0; byte < 256; ++byte)
    bytes[kCharacters[byte]] = static_cast<short>(byte);
  return bytes;
}

constexpr std::array<short, kNumCharacters> kBytes = make_bytes();

}  // namespace

std::optional<std::string> bytes_of_token(std::string_view token) {
  std::string bytes;
  while (!token.empty()) {
    const Utf8Step step = next_utf8(token);
    if (step.kind != Utf8Step::kCharacter || step.code_point >= kNumCharacters) return std::nullopt;
    const short byte = kBytes[step.code_point];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    token.remove_prefix(step.length);
  }
  return bytes;
}

void append_byte_characters(std::string_view bytes, std::string* out) {
  for (const char byte : bytes) append_utf8(kCharacters[static_cast<unsigned char>(byte)], out);
}

}  // namespace kvcache::runner
