// Random damage to a file, for parsers that must refuse and never crash.
#ifndef KVCACHE_TESTS_SUPPORT_MUTATE_H_
#define KVCACHE_TESTS_SUPPORT_MUTATE_H_

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <random>
#include <string>
#include <string_view>

namespace kvcache::test {

// `text` with one to four edits: a byte changed, a stretch removed, doubled, or replaced by
// something that tends to hurt. Only raw draws of the engine are used: the same on every platform.
inline std::string mutate(std::string text, std::mt19937_64& random) {
  static constexpr std::string_view kHurtful[] = {
      "-1",
      "0",
      "99999999999999999999",
      "9223372036854775807",
      "4294967296",
      "1e999",
      "0.5",
      "null",
      "true",
      "\"\"",
      "[]",
      "{}",
      "[[",
      "\xff",
      "\"a\":",
      ",",
      "\\u0000",
      "\\ud800",
      "}",
  };
  const auto below = [&random](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const std::size_t edits = 1 + below(4);
  for (std::size_t i = 0; i < edits && !text.empty(); ++i) {
    const std::size_t at = below(text.size());
    const std::size_t length = std::min(1 + below(24), text.size() - at);
    switch (below(4)) {
      case 0:
        text[at] = static_cast<char>(random());
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(at, text.substr(at, length));
        break;
      default:
        text.replace(at, std::min<std::size_t>(length, 4), kHurtful[below(std::size(kHurtful))]);
    }
  }
  return text;
}

}  // namespace kvcache::test

#endif  // KVCACHE_TESTS_SUPPORT_MUTATE_H_
