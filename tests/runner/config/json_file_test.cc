#include "runner/config/json_file.h"

#include <algorithm>
#include <random>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "support/mutate.h"

namespace kvcache::runner {
namespace {

Json parsed(const std::string& text) {
  const Result<Json> document = parse_json(text, "f");
  EXPECT_TRUE(document.ok()) << text << ": " << document.status().to_string();
  return document.ok() ? *document : Json();
}

bool has_unreadable(const Json& value) {
  if (value.is_binary()) return true;
  return value.is_structured() && std::any_of(value.begin(), value.end(), &has_unreadable);
}

// Python writes and reads all of these.
TEST(JsonFile, ValuesThatNoFieldCanHaveAreRefusedByWhoAsksForThem) {
  const struct {
    const char* text;
    const char* found;
  } cases[] = {{"NaN", "NaN"},
               {"Infinity", "Infinity"},
               {"-Infinity", "-Infinity"},
               {"1e999", "1e999"},
               {"-1e999", "-1e999"},
               {R"("\ud800")", "text with half a surrogate pair"},
               {R"("a\udc00b")", "text with half a surrogate pair"},
               {R"("\ud800A")", "text with half a surrogate pair"},
               {R"(1, "a": 1)", "two values of one key"},
               {R"([1], "a": {"b": [2]})", "two values of one key"}};
  for (const auto& each : cases) {
    const Json document = parsed(std::string(R"({"a": )") + each.text + R"(, "b": 7, "c": "x"})");
    const JsonObject object = *JsonObject::create(document, "f");
    EXPECT_EQ(*object.integer("b", 0, 9), 7) << each.text;
    EXPECT_EQ(*object.text("c"), "x") << each.text;
    EXPECT_TRUE(object.has("a"));
    const std::string start = std::string("f: a: found ") + each.found + ", expected ";
    for (const Status& status :
         {object.integer("a", 0, 9).status(), object.number_above("a", 0.0).status(),
          object.boolean("a").status(), object.text("a").status(), object.object("a").status()}) {
      EXPECT_EQ(status.code(), StatusCode::kCorrupt) << each.text;
      EXPECT_EQ(status.message().rfind(start, 0), 0u) << status.message();
    }
  }
}

TEST(JsonFile, HalfASurrogatePairInAKeyIsAnotherKey) {
  const Json document = parsed(R"({"\ud800": 1, "b": 2})");
  EXPECT_EQ(*JsonObject::create(document, "f")->integer("b", 0, 9), 2);
  EXPECT_EQ(parsed(R"("\ud83d\ude00")"), Json("\U0001F600"));
}

TEST(JsonFile, WhatLiesTooDeepIsNotKeptAndWhatStandsBesideItIs) {
  for (const auto& [opening, closing] :
       {std::pair<std::string, std::string>{"[", "]"}, {R"({"k":)", "}"}}) {
    std::string deep;
    for (int i = 0; i < 100000; ++i) deep += opening;
    deep += opening == "[" ? "" : "0";
    for (int i = 0; i < 100000; ++i) deep += closing;
    const Json document = parsed(R"({"deep": )" + deep + R"(, "b": 7})");
    EXPECT_EQ(*JsonObject::create(document, "f")->integer("b", 0, 9), 7);
    const Json* level = &document["deep"];
    for (int i = 0; i < 63; ++i) level = opening == "[" ? &level->front() : &(*level)["k"];
    EXPECT_EQ(describe(*level), "nesting deeper than 64");
  }
  EXPECT_EQ(parse_json(std::string(100000, '['), "f").status().message(),
            "f: found bad syntax at byte 100000, expected JSON");
}

TEST(JsonFile, TextThatIsNotJsonIsRefusedWithItsPlace) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[1,]",
                           "{\"a\":1,}",
                           "{\"a\"}",
                           "{a:1}",
                           "01",
                           "+1",
                           ".5",
                           "1.",
                           "1e",
                           "-",
                           "nan",
                           "inf",
                           "tru",
                           "'a'",
                           "\"a",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\u12g4\"",
                           "\"\t\"",
                           "\"\xff\"",
                           "1 2",
                           "[1 2]",
                           "[1}",
                           "{\"a\":1]",
                           "]",
                           "\xEF\xBB\xBF{}",
                           "{\"a\" 1}",
                           ","}) {
    const Status status = parse_json(text, "f").status();
    EXPECT_EQ(status.code(), StatusCode::kCorrupt) << text;
    EXPECT_EQ(status.message().rfind("f: found bad syntax at byte ", 0), 0u) << status.message();
  }
}

// Another reader says the same of every text that holds nothing unreadable.
TEST(JsonFile, DamagedTextReadsAsElsewhere) {
  const std::string text =
      R"( {"a": [1, -2, 3.5e-7, 18446744073709551615, -9223372036854775808, 1e300, 0.1, -0.0],
           "b\n": {"": "\u00e9\ud83d\ude00", "z": null, "t": true, "f": false, "n": {"x": [], "y": [{"z": [[{}, 1]]}, {}]}},
           "é": "\"\\\/\b\f\n\r\t", "big": 123456789012345678901234567890} )";
  EXPECT_EQ(parsed(text), Json::parse(text));
  std::mt19937_64 random(20261101);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::string damaged = test::mutate(text, random);
    const Result<Json> ours = parse_json(damaged, "f");
    const Json theirs = Json::parse(damaged, nullptr, false);
    if (ours.ok() && has_unreadable(*ours)) continue;
    // Another reader passes over a byte-order mark.
    if (damaged.starts_with("\xEF\xBB\xBF")) continue;
    ASSERT_EQ(ours.ok(), !theirs.is_discarded()) << damaged;
    if (!ours.ok()) continue;
    ++accepted;
    EXPECT_EQ(*ours, theirs) << damaged;
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace kvcache::runner
