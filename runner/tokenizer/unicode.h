// What Unicode says of characters, as Hugging Face's package `tokenizers` knows it: neither the
// newest Unicode nor that of the host's libraries, which would give other ids from host to host.
#ifndef KVCACHE_RUNNER_TOKENIZER_UNICODE_H_
#define KVCACHE_RUNNER_TOKENIZER_UNICODE_H_

#include <cstdint>
#include <string_view>
#include <vector>

namespace kvcache::runner {

inline constexpr const char* kUnicodeClasses = "16.0";       // of \p{..} in patterns
inline constexpr const char* kUnicodeNormalization = "9.0";  // of NFC

// The general category.
enum class Category : std::uint8_t {
  kCc,
  kCf,
  kCn,
  kCo,
  kCs,
  kLl,
  kLm,
  kLo,
  kLt,
  kLu,
  kMc,
  kMe,
  kMn,
  kNd,
  kNl,  //
  kNo,
  kPc,
  kPd,
  kPe,
  kPf,
  kPi,
  kPo,
  kPs,
  kSc,
  kSk,
  kSm,
  kSo,
  kZl,
  kZp,
  kZs,
};

// kCn past U+10FFFF.
Category category_of(char32_t code_point) noexcept;

// Inclusive.
struct CodeRange {
  char32_t first = 0;
  char32_t last = 0;
};

// The code points of a category ("Lu"), of a group of them ("L"), or of a script ("Han"),
// ascending, with a gap between any two ranges. Empty for a name that is none of these, and for
// surrogates, which no text holds.
std::vector<CodeRange> ranges_of(std::string_view class_name);

// Whether NFC of kUnicodeNormalization knows nothing of the code point: it stays where and what it
// is, and nothing moves past it or joins with it.
bool normalization_ignores(char32_t code_point) noexcept;

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_TOKENIZER_UNICODE_H_
