#include "runner/tokenizer/unicode.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runner/tokenizer/normalizer.h"
#include "runner/tokenizer/regex.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

std::string text_of(const std::vector<char32_t>& code_points) {
  std::string text;
  for (const char32_t c : code_points) append_utf8(c, &text);
  return text;
}

bool matches(const std::string& pattern, char32_t code_point) {
  const Result<Regex> regex = Regex::compile(pattern, "p");
  EXPECT_TRUE(regex.ok()) << regex.status().to_string();
  std::vector<Span> spans;
  EXPECT_TRUE(regex->find(text_of({code_point}), &spans).ok());
  return spans.size() == 1 && spans[0].matches;
}

std::string nfc(const std::vector<char32_t>& code_points) {
  const Result<std::string> composed = Nfc{}.apply(text_of(code_points));
  EXPECT_TRUE(composed.ok()) << composed.status().to_string();
  return composed.ok() ? *composed : "";
}

TEST(Unicode, ClassesAreOfVersion16WhateverTheHostKnows) {
  EXPECT_EQ(category_of(0x31350), Category::kLo);  // 15.0
  EXPECT_EQ(category_of(0x10D40), Category::kNd);  // 16.0
  EXPECT_EQ(category_of(0x323B0), Category::kCn);  // a letter from 17.0 on
  EXPECT_EQ(category_of(0x110000), Category::kCn);
  for (const char* letter : {R"(\p{L})", R"([\p{L}])", R"(\p{Lo})", R"(\w)", R"([^\P{L}])"}) {
    EXPECT_TRUE(matches(letter, 0x31350)) << letter;
    EXPECT_FALSE(matches(letter, 0x323B0)) << letter;
  }
  for (const char* digit : {R"(\d)", R"(\p{N})", R"([\p{Nd}])", R"(\P{L})", R"(\w)"}) {
    EXPECT_TRUE(matches(digit, 0x10D40)) << digit;
  }
  EXPECT_FALSE(matches(R"([^\s\p{L}\p{N}]+)", 0x10D40));
  EXPECT_FALSE(matches(R"(\D)", 0x10D40));
}

TEST(Unicode, AClassInAPatternIsThatOfTheTable) {
  std::string text;
  for (char32_t c = 0; c < 0x32400; ++c) {
    if (c < 0xD800 || c > 0xDFFF) append_utf8(c, &text);
  }
  for (const char* name : {"L", "M", "N", "P", "S", "Z", "C", "Lu", "Ll", "Sc", "Han", "Latin"}) {
    const std::vector<CodeRange> ranges = ranges_of(name);
    ASSERT_FALSE(ranges.empty()) << name;
    const Result<Regex> regex = Regex::compile("\\p{" + std::string(name) + "}+", name);
    ASSERT_TRUE(regex.ok()) << regex.status().to_string();
    std::vector<Span> spans;
    ASSERT_TRUE(regex->find(text, &spans).ok());
    std::string found;
    std::string expected;
    for (const Span& span : spans) {
      if (span.matches) found += text.substr(span.begin, span.end - span.begin);
    }
    for (const CodeRange& range : ranges) {
      for (char32_t c = range.first; c <= range.last && c < 0x32400; ++c) append_utf8(c, &expected);
    }
    EXPECT_TRUE(found == expected) << name;
  }
}

// A script is the property Script: U+3001, which Han shares with others, is of none.
TEST(Unicode, AScriptHoldsNoCharactersThatItShares) {
  EXPECT_TRUE(matches(R"(\p{Han})", 0x4E00));
  EXPECT_FALSE(matches(R"(\p{Han})", 0x3001));
}

TEST(Unicode, LatinSuperscriptsAreWordCharactersOutsideOfSetsAlone) {
  for (const char32_t c : {0xB2, 0xB3, 0xB9, 0xBC, 0xBD, 0xBE}) {
    EXPECT_TRUE(matches(R"(\w)", c));
    EXPECT_FALSE(matches(R"([\w])", c));
    EXPECT_FALSE(matches(R"(\W)", c));
  }
}

TEST(Unicode, AHyphenBesideAClassIsItself) {
  for (const char* set : {R"([\d-z]+)", R"([-\dz]+)", R"([\dz-]+)", R"([z\-\d]+)"}) {
    for (const char32_t c : {U'-', U'7', U'z'}) EXPECT_TRUE(matches(set, c)) << set;
    for (const char32_t c : {U'a', U'y', char32_t{0xE9}}) EXPECT_FALSE(matches(set, c)) << set;
  }
  EXPECT_FALSE(Regex::compile(R"([+-\d])", "p").ok());
}

TEST(Unicode, CaseIsIgnoredBySetsAndNotByClasses) {
  EXPECT_FALSE(matches(R"((?i:\p{Lu}))", U'a'));
  EXPECT_FALSE(matches(R"((?i)\p{Lu})", U'a'));
  EXPECT_TRUE(matches(R"((?i:[\p{Lu}]))", U'a'));
  EXPECT_TRUE(matches(R"((?i:x)|\p{Lu})", U'A'));
  EXPECT_FALSE(matches(R"((?i:x)|\p{Lu})", U'a'));
}

TEST(Unicode, NfcLeavesWhatVersion9DidNotKnow) {
  // Marks of 10.0 .. 14.0 stay behind U+0301, with which they would change places.
  for (const char32_t mark : {0x1DF6, 0x08D3, 0x0898}) {
    EXPECT_EQ(nfc({U'x', 0x0301, mark, 0x0323}), text_of({U'x', 0x0301, mark, 0x0323}))
        << std::uint32_t{mark};
  }
  EXPECT_EQ(nfc({0x11935, 0x11930}), text_of({0x11935, 0x11930}));  // U+11938 of 13.0
  EXPECT_EQ(nfc({0x105D2, 0x0307}), text_of({0x105D2, 0x0307}));    // U+105C9 of 16.0
}

TEST(Unicode, NfcGoesOnBesideWhatItDoesNotKnow) {
  EXPECT_EQ(nfc({U'a', 0x0301, 0x08D3, U'e', 0x0301}), text_of({0xE1, 0x08D3, 0xE9}));
  EXPECT_EQ(nfc({U'a', 0x0301, 0x0323}), text_of({0x1EA1, 0x0301}));
  EXPECT_EQ(nfc({0x0301, 0x0323, 0x323B0, 0x0301, 0x0323}),
            text_of({0x0323, 0x0301, 0x323B0, 0x0323, 0x0301}));
  EXPECT_EQ(nfc({}), "");
}

TEST(Unicode, NamesThatAreNoClassHaveNoRanges) {
  for (const char* name : {"", "Q", "lu", "Cs", "Greek_Extended", "LL"}) {
    EXPECT_TRUE(ranges_of(name).empty()) << name;
  }
}

}  // namespace
}  // namespace kvcache::runner
