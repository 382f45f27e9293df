// The alphabet of byte-level vocabularies: every byte has a printable character (GPT-2,
// bytes_to_unicode in openai/gpt-2 src/encoder.py).
#ifndef KVCACHE_RUNNER_TOKENIZER_BYTE_ALPHABET_H_
#define KVCACHE_RUNNER_TOKENIZER_BYTE_ALPHABET_H_

#include <optional>
#include <string>
#include <string_view>

namespace kvcache::runner {

// The bytes a token spells; nothing when a character of it is not in the alphabet.
std::optional<std::string> bytes_of_token(std::string_view token);

// Appends the characters that stand for `bytes`, in UTF-8.
void append_byte_characters(std::string_view bytes, std::string* out);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_BYTE_ALPHABET_H_
