#include "runner/tokenizer/unicode.h"

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "runner/tokenizer/unicode_tables.h"

namespace kvcache::runner {
namespace {

constexpr char32_t kEnd = 0x110000;

// In the order of Category.
constexpr std::string_view kCategoryNames[] = {
    "Cc", "Cf", "Cn", "Co", "Cs", "Ll", "Lm", "Lo", "Lt", "Lu", "Mc", "Me", "Mn", "Nd", "Nl",
    "No", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sc", "Sk", "Sm", "So", "Zl", "Zp", "Zs"};

// Those that are written today. From 1 on as in the table.
constexpr std::string_view kScriptNames[] = {
    "",         "Arabic",   "Armenian",  "Bengali",   "Cyrillic", "Devanagari",
    "Ethiopic", "Georgian", "Greek",     "Gujarati",  "Gurmukhi", "Han",
    "Hangul",   "Hebrew",   "Hiragana",  "Kannada",   "Katakana", "Khmer",
    "Lao",      "Latin",    "Malayalam", "Mongolian", "Myanmar",  "Sinhala",
    "Tamil",    "Telugu",   "Thaana",    "Thai",      "Tibetan"};

char32_t first_of(std::uint32_t run) { return run >> 5; }
std::size_t value_of(std::uint32_t run) { return run & 31; }

// The ranges of the runs whose value is `wanted`.
template <typename Wanted>
std::vector<CodeRange> collect(const std::uint32_t* runs, std::size_t size, const Wanted& wanted) {
  std::vector<CodeRange> ranges;
  for (std::size_t i = 0; i < size; ++i) {
    if (!wanted(value_of(runs[i]))) continue;
    const char32_t first = first_of(runs[i]);
    const char32_t last = (i + 1 < size ? first_of(runs[i + 1]) : kEnd) - 1;
    if (!ranges.empty() && ranges.back().last + 1 == first) {
      ranges.back().last = last;
    } else {
      ranges.push_back({first, last});
    }
  }
  return ranges;
}

}  // namespace

Category category_of(char32_t code_point) noexcept {
  if (code_point >= kEnd) return Category::kCn;
  const std::uint32_t* end = kCategoryRuns + kCategoryRunsSize;
  const std::uint32_t* after =
      std::upper_bound(kCategoryRuns, end, code_point,
                       [](char32_t value, std::uint32_t run) { return value < first_of(run); });
  return static_cast<Category>(value_of(*(after - 1)));
}

std::vector<CodeRange> ranges_of(std::string_view class_name) {
  if (class_name.empty()) return {};
  const auto* script = std::find(std::begin(kScriptNames), std::end(kScriptNames), class_name);
  if (script != std::end(kScriptNames)) {
    const auto index = static_cast<std::size_t>(script - std::begin(kScriptNames));
    return collect(kScriptRuns, kScriptRunsSize, [&](std::size_t value) { return value == index; });
  }
  return collect(kCategoryRuns, kCategoryRunsSize, [&](std::size_t value) {
    if (value == static_cast<std::size_t>(Category::kCs)) return false;
    const std::string_view name = kCategoryNames[value];
    return class_name == name || class_name == name.substr(0, 1);
  });
}

bool normalization_ignores(char32_t code_point) noexcept {
  return category_of(code_point) == Category::kCn ||
         std::binary_search(kStrangers, kStrangers + kStrangersSize, code_point);
}

}  // namespace kvcache::runner
