#include "runner/tokenizer/regex.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace kvcache::runner {
namespace {

using Pieces = std::vector<std::string>;

constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

Pieces cut(const std::string& pattern, const std::string& text) {
  const Result<Regex> compiled = Regex::compile(pattern, "p");
  EXPECT_TRUE(compiled.ok()) << compiled.status().to_string();
  std::vector<Span> spans;
  EXPECT_TRUE(compiled->find(text, &spans).ok());
  Pieces pieces;
  for (const Span& span : spans) pieces.push_back(text.substr(span.begin, span.end - span.begin));
  return pieces;
}

std::string refused(const std::string& pattern) {
  const Status status = Regex::compile(pattern, "p").status();
  EXPECT_FALSE(status.ok()) << pattern;
  return status.message();
}

TEST(Regex, MatchesAndGapsCoverTheText) {
  EXPECT_EQ(cut("b+", "abbcb"), (Pieces{"a", "bb", "c", "b"}));
  EXPECT_EQ(cut("x", "abc"), Pieces{"abc"});
  EXPECT_EQ(cut("x", ""), Pieces{});
}

TEST(Regex, ThePatternOfQwenCutsWordsDigitsAndSpace) {
  EXPECT_EQ(cut(kQwen2, "Hello, WORLD'S  12\n\n x"),
            (Pieces{"Hello", ",", " WORLD", "'S", " ", " ", "1", "2", "\n\n", " x"}));
  EXPECT_EQ(cut(kQwen2, "a   "), (Pieces{"a", "   "}));
  EXPECT_EQ(cut(kQwen2, "a \n b"), (Pieces{"a", " \n", " b"}));
}

// White_Space holds U+0085 but not U+180E, which PCRE2's own \s does.
TEST(Regex, SpaceIsThePropertyWhiteSpace) {
  EXPECT_EQ(cut(R"(\s+)", "a\u0085b\u180ec\u3000d"),
            (Pieces{"a", "\u0085", "b\u180ec", "\u3000", "d"}));
  EXPECT_EQ(cut(R"([^\s]+)", "\u180e x"), (Pieces{"\u180e", " ", "x"}));
}

TEST(Regex, WordCharactersIncludeMarks) {
  EXPECT_EQ(cut(R"(\w+)", "e\u0301_1-"), (Pieces{"e\u0301_1", "-"}));
  EXPECT_EQ(cut(R"(\W)", "e\u0301-"), (Pieces{"e\u0301", "-"}));
}

TEST(Regex, WhatReadsDifferentlyElsewhereIsRefusedByName) {
  EXPECT_EQ(refused(R"(a\h)").substr(0, 16), "p: found \"\\h\", e");
  for (const char* pattern :
       {"^a",      "a$",      "[a[b]]",   "[a&&b]",  "[]a]",    "(?m:a)", "(?s:a)",
        "(?x) a",  "(?<n>a)", "(?P<n>a)", "(*UCP)a", R"(\ba)",  R"(\Ga)", R"(\Aa)",
        R"(a\z)",  R"(\Ka)",  R"(\X)",    R"(\R)",   R"(\x41)", R"(\pL)", R"(\1a)",
        R"([\W])", "a{1,2}+", "a{,2}",    "a\\"}) {
    EXPECT_EQ(refused(pattern).rfind("p: found ", 0), 0u) << pattern;
  }
}

TEST(Regex, PatternsThatDoNotCompileOrMatchNothingAreRefused) {
  for (const char* pattern : {"a(", "[a", "a**", R"(\p{Nonsense})", "a*", "", "(?=a)", "a|"}) {
    refused(pattern);
  }
  refused(std::string(100000, 'a'));
  refused(std::string(5000, '(') + "a" + std::string(5000, ')'));
}

TEST(Regex, APatternThatExplodesGivesUpWithAnError) {
  const Result<Regex> pattern = Regex::compile("(?:a+)+(?:a+)+b", "p");
  ASSERT_TRUE(pattern.ok());
  std::vector<Span> spans;
  const std::string text(2000, 'a');
  const Status status = pattern->find(text + "c", &spans);
  EXPECT_TRUE(status.ok() || status.code() == StatusCode::kUnsupported);
  const std::string with_b = "b" + text + "cb";
  const Status second = pattern->find(with_b, &spans);
  EXPECT_EQ(second.code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace kvcache::runner
