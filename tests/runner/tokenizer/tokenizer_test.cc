#include "runner/tokenizer/tokenizer.h"

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runner/tokenizer/byte_alphabet.h"
#include "runner/tokenizer/stream_decoder.h"
#include "support/mutate.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

using Ids = std::vector<std::int32_t>;

// Bytes are tokens 0 .. 255, then "ab" (256), "abc" (257), "bc" (258) and added tokens from 259.
Json small() {
  Json file = Json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
    "added_tokens": [
      {"id": 259, "content": "<s>", "special": true, "normalized": false},
      {"id": 260, "content": "<s>!", "special": false, "normalized": false}],
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\s+|\\S+"}, "behavior": "Isolated",
       "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
       "use_regex": false}]},
    "post_processor": null, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"ab": 256, "abc": 257, "bc": 258},
              "merges": [["b", "c"], ["a", "b"], "ab c"]}})");
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    std::string character;
    append_byte_characters(std::string_view(&c, 1), &character);
    file["model"]["vocab"][character] = byte;
  }
  return file;
}

Tokenizer good(const Json& file) {
  Result<Tokenizer> result = Tokenizer::parse(file.dump(), "t");
  EXPECT_TRUE(result.ok()) << result.status().to_string();
  return std::move(result).value();
}

Ids ids_of(const Json& file, const std::string& text, bool special = false) {
  return *good(file).encode(text, special);
}

Status error(const Json& file) {
  const Status status = Tokenizer::parse(file.dump(), "t").status();
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.message().rfind("t: ", 0), 0u) << status.message();
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  return status;
}

// The refusal of `file` with the value at `pointer` replaced.
std::string refused(const char* pointer, const Json& value) {
  Json file = small();
  file[Json::json_pointer(pointer)] = value;
  const Status status = error(file);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported) << status.to_string();
  return status.message();
}
std::string corrupt(const char* pointer, const Json& value) {
  Json file = small();
  file[Json::json_pointer(pointer)] = value;
  const Status status = error(file);
  EXPECT_EQ(status.code(), StatusCode::kCorrupt) << status.to_string();
  return status.message();
}

TEST(Tokenizer, MergesByRankThenFromTheLeft) {
  EXPECT_EQ(ids_of(small(), "abc"), (Ids{'a', 258}));  // "b c" ranks before "a b"
  EXPECT_EQ(ids_of(small(), "abab"), (Ids{256, 256}));
  Json file = small();
  file["model"]["merges"] = {"a b", "b c", "ab c"};
  EXPECT_EQ(ids_of(file, "abc"), Ids{257});
  file["model"]["vocab"]["aa"] = 259;
  file["model"]["merges"] = Json::array({"a a"});
  EXPECT_EQ(ids_of(file, "aaa"), (Ids{259, 'a'}));
}

TEST(Tokenizer, AWordThatIsATokenIsThatTokenOnlyWithIgnoreMerges) {
  Json file = small();
  file["model"]["merges"] = Json::array();
  EXPECT_EQ(ids_of(file, "abc"), (Ids{'a', 'b', 'c'}));
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(ids_of(file, "abc"), Ids{257});
  EXPECT_EQ(ids_of(file, "abcabc"), (Ids{'a', 'b', 'c', 'a', 'b', 'c'}));
}

TEST(Tokenizer, MergesDoNotCrossTheCutsOfThePattern) {
  EXPECT_EQ(ids_of(small(), "a b"), (Ids{'a', ' ', 'b'}));
  Json file = small();
  file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "b";  // gaps are words too
  EXPECT_EQ(ids_of(file, "abca"), (Ids{'a', 'b', 'c', 'a'}));
}

TEST(Tokenizer, AddedTokensAreFoundLeftmostAndLongest) {
  EXPECT_EQ(ids_of(small(), "a<s>b<s>!<<s>"), (Ids{'a', 259, 'b', 260, '<', 259}));
  EXPECT_EQ(ids_of(small(), "<s"), (Ids{'<', 's'}));
}

// Checked against tokenizers 0.23.
TEST(Tokenizer, AddedTokensTakeSpaceAndRespectWords) {
  Json file = small();
  Json& token = file["added_tokens"][0];
  token["lstrip"] = true;
  EXPECT_EQ(ids_of(file, "a \n <s> b"), (Ids{'a', 259, ' ', 'b'}));
  token["rstrip"] = true;
  EXPECT_EQ(ids_of(file, "a <s> \t b"), (Ids{'a', 259, 'b'}));
  EXPECT_EQ(ids_of(file, "<s> <s>"), (Ids{259, 259}));
  // A token within the space another takes, and the text after it; one that takes space is lost.
  token["lstrip"] = false;
  file["added_tokens"][1]["content"] = "\n";
  EXPECT_EQ(ids_of(file, "<s>\n b"), (Ids{259, 260, ' ', 'b'}));
  file["added_tokens"][1]["lstrip"] = true;
  EXPECT_EQ(ids_of(file, "<s>\nb"), (Ids{259, 'b'}));
  token["lstrip"] = token["rstrip"] = false;
  token["content"] = "ab";
  token["id"] = 256;
  token["single_word"] = true;
  EXPECT_EQ(ids_of(file, "ab cab abé é́ab ab."), (Ids{256, ' ', 'c', 256, ' ', 256, 0xC3, 0xA9, ' ',
                                                     0xC3, 0xA9, 0xCC, 0x81, 256, ' ', 256, '.'}));
  file["model"]["merges"] = Json::array();
  EXPECT_EQ(ids_of(file, "ab cab _ab ab_ (ab)"), (Ids{256, ' ', 'c', 'a', 'b', ' ', '_', 'a', 'b',
                                                      ' ', 'a', 'b', '_', ' ', '(', 256, ')'}));
}

TEST(Tokenizer, NormalizedAddedTokensAreSearchedAfterNfc) {
  Json file = small();
  file["normalizer"] = {{"type", "NFC"}};
  file["added_tokens"][0]["content"] = "e\u0301";  // NFC: é
  EXPECT_EQ(ids_of(file, "\u00e9"), (Ids{0xC3, 0xA9}));
  EXPECT_EQ(ids_of(file, "e\u0301"), Ids{259});
  file["added_tokens"][0]["normalized"] = true;
  EXPECT_EQ(ids_of(file, "\u00e9e\u0301"), (Ids{259, 259}));
  // Its text is the normalised one, whose character is a byte of the alphabet: as in tokenizers.
  EXPECT_EQ(good(file).token_text(259), "\u00e9");
  EXPECT_EQ(good(file).decode(Ids{0xC3, 259}), "\ufffd\ufffd");
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  EXPECT_EQ(ids_of(file, "\u00e9"), Ids{259});
}

TEST(Tokenizer, TemplatesPutTokensAround) {
  Json file = small();
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const Json mark = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const Json around = {{"type", "TemplateProcessing"},
                       {"single", {mark, text, mark, mark}},
                       {"pair", Json::array()},
                       {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {259}}}}}}};
  file["post_processor"] = around;
  EXPECT_EQ(ids_of(file, "a", true), (Ids{259, 'a', 259, 259}));
  EXPECT_EQ(ids_of(file, "", true), (Ids{259, 259, 259}));
  EXPECT_EQ(ids_of(file, "a", false), Ids{'a'});
  file["post_processor"] = {{"type", "Sequence"},
                            {"processors", {{{"type", "ByteLevel"}}, around}}};
  EXPECT_EQ(ids_of(file, "a", true), (Ids{259, 'a', 259, 259}));

  file["post_processor"]["processors"][1]["single"] = Json::array({mark});
  EXPECT_EQ(error(file).message(),
            "t: post_processor: processors[1]: single: found a list of 1, expected the text A in "
            "it");
  file["post_processor"] = around;
  file["post_processor"]["special_tokens"]["<s>"]["ids"] = {299};
  EXPECT_EQ(error(file).message(),
            "t: post_processor: special_tokens: <s>: ids: found 299, expected the id of a token");
}

TEST(Tokenizer, ByteLevelAddsASpaceAndCutsByItsOwnPattern) {
  Json file = small();
  file["pre_tokenizer"] = {{"type", "ByteLevel"},
                           {"add_prefix_space", true},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  EXPECT_EQ(ids_of(file, "ab"), (Ids{' ', 256}));
  EXPECT_EQ(ids_of(file, " ab"), (Ids{' ', 256}));
  EXPECT_EQ(ids_of(file, ""), Ids{});
  EXPECT_EQ(ids_of(file, "ab<s>b"), (Ids{' ', 256, 259, ' ', 'b'}));
}

TEST(Tokenizer, TextThatIsNotUtf8IsRefusedWithItsByte) {
  const Tokenizer tokenizer = good(small());
  const auto message = [&](const std::string& text) {
    const Status status = tokenizer.encode(text).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  EXPECT_EQ(message("ab\xff"), "text: at byte 2: found byte 0xff, expected UTF-8");
  EXPECT_EQ(message("\xc3"), "text: at byte 0: found byte 0xc3, expected UTF-8");
  message("a\xed\xa0\x80");     // a surrogate
  message("\xc0\x80");          // overlong
  message("\xf4\x90\x80\x80");  // beyond U+10FFFF
  EXPECT_TRUE(tokenizer.encode(std::string("a\0b", 3)).ok());
}

TEST(Tokenizer, DecodingReplacesWhatIsNotUtf8AndSkipsWhatDoesNotExist) {
  const Tokenizer tokenizer = good(small());
  const auto text = [&](const Ids& ids) { return tokenizer.decode(ids); };
  EXPECT_EQ(text({0xE2, 0x82, 0xAC}), "\u20ac");
  EXPECT_EQ(text({0xE2, 0x82}), "\ufffd");
  EXPECT_EQ(text({0xE2, 'a', 0x82, 0xFF}), "\ufffda\ufffd\ufffd");
  EXPECT_EQ(text({0xE2, 259, 0x82}), "\ufffd<s>\ufffd");
  EXPECT_EQ(text({'a', -1, 299, 100000, 'b'}), "ab");
  EXPECT_EQ(tokenizer.decode(Ids{'a', 259, 260, 'b'}, true), "a<s>!b");
  EXPECT_EQ(tokenizer.token_text(257), "abc");
  EXPECT_EQ(tokenizer.token_text(299), "");
  EXPECT_EQ(tokenizer.vocab_size(), 261);
  EXPECT_EQ(tokenizer.special_ids(), Ids{259});
  EXPECT_EQ(tokenizer.find_token("<s>!"), 260);
  EXPECT_EQ(tokenizer.find_token("abc"), 257);
  EXPECT_EQ(tokenizer.find_token("<t>"), std::nullopt);
}

TEST(StreamDecoder, HoldsBackAnUnfinishedCharacterAndStartsAnewAfterFlush) {
  const Tokenizer tokenizer = good(small());
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.push(0x9F), "");
  EXPECT_EQ(decoder.push(0x98), "");
  EXPECT_EQ(decoder.push(0x80), "\U0001F600");
  EXPECT_EQ(decoder.push(0xE2), "");
  EXPECT_EQ(decoder.push('a'), "\ufffda");
  EXPECT_EQ(decoder.push(0xE2), "");
  EXPECT_EQ(decoder.flush(), "\ufffd");
  EXPECT_EQ(decoder.flush(), "");
  EXPECT_EQ(decoder.push('b'), "b");
}

TEST(StreamDecoder, HoldsBackOnlyWhatALaterTokenMayChange) {
  Json file = small();
  for (int byte = 0; byte < 256; ++byte) {
    char token[8];
    std::snprintf(token, sizeof token, "<0x%02X>", byte);
    file["model"]["vocab"][token] = 400 + byte;
  }
  const Json strip = {{"type", "Strip"}, {"content", "a"}, {"start", 1}, {"stop", 1}};
  file["decoder"] = {{"type", "Sequence"},
                     {"decoders", {{{"type", "ByteFallback"}}, {{"type", "Fuse"}}, strip}}};
  const Tokenizer tokenizer = good(file);
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push('a'), "");  // the first a goes
  EXPECT_EQ(decoder.push('a'), "");  // may be the last
  EXPECT_EQ(decoder.push('b'), "ab");
  for (const int byte : {0xE2, 0x82, 0xAC}) EXPECT_EQ(decoder.push(400 + byte), "");
  EXPECT_EQ(decoder.push('c'), "\u20acc");
  for (const int byte : {0xE2, 0x82, 0xAC, 0xFF}) EXPECT_EQ(decoder.push(400 + byte), "");
  EXPECT_EQ(decoder.push('a'), "\ufffd\ufffd\ufffd\ufffd");
  EXPECT_EQ(decoder.push(400 + 0xC3), "");
  EXPECT_EQ(decoder.flush(), "a\ufffd");
  EXPECT_EQ(decoder.push('a'), "");  // anew
  EXPECT_EQ(decoder.push('b'), "b");

  file["decoder"] = {{"type", "Sequence"},
                     {"decoders",
                      {{{"type", "Fuse"}},
                       {{"type", "Replace"}, {"pattern", {{"String", "abc"}}}, {"content", "-"}}}}};
  const Tokenizer replacing = good(file);
  StreamDecoder across(replacing);
  EXPECT_EQ(across.push('x'), "x");
  EXPECT_EQ(across.push('a'), "");
  EXPECT_EQ(across.push('b'), "");
  EXPECT_EQ(across.push('c'), "-");
  EXPECT_EQ(across.push('a'), "");
  EXPECT_EQ(across.push('a'), "a");
  EXPECT_EQ(across.flush(), "a");
}

TEST(Tokenizer, AWordOfAHundredThousandCharactersIsNoTrouble) {
  Json file = small();
  std::string token = "a";
  int id = 260;
  file["model"]["merges"] = Json::array();
  while (token.size() < 1024) {  // "aa", "aaaa", ...: every merge makes new candidates
    file["model"]["merges"].push_back({token, token});
    token += token;
    file["model"]["vocab"][token] = id++;
  }
  file["added_tokens"] = Json::array();
  const Tokenizer tokenizer = good(file);
  const Ids ids = *tokenizer.encode(std::string(200 * 1024 + 1, 'a'));
  ASSERT_EQ(ids.size(), 201u);
  EXPECT_EQ(ids[0], 269);
  EXPECT_EQ(ids[200], 'a');
  for (const char* unit : {" ", "\n", "<", "b", "1", "\u00e9", "a b", "\U0001F600"}) {
    std::string text;
    while (text.size() < 100000) text += unit;
    const Result<Ids> long_ids = tokenizer.encode(text);
    ASSERT_TRUE(long_ids.ok());
    EXPECT_EQ(tokenizer.decode(*long_ids), text);
  }
}

TEST(Tokenizer, PartsItDoesNotKnowAreRefusedByName) {
  EXPECT_EQ(refused("/model/type", "Unigram"), "t: model: type: found \"Unigram\", expected BPE");
  EXPECT_EQ(refused("/model/dropout", 0.1), "t: model: dropout: found 0.1, expected none");
  EXPECT_EQ(refused("/model/end_of_word_suffix", "</w>"),
            "t: model: end_of_word_suffix: found \"</w>\", expected none");
  EXPECT_EQ(refused("/model/new_option", 1),
            "t: model: found the unknown key \"new_option\", expected only keys it knows");
  EXPECT_EQ(refused("/extra", 1),
            "t: found the unknown key \"extra\", expected only keys it knows");
  EXPECT_EQ(refused("/version", "2.0"), "t: version: found \"2.0\", expected 1.0");
  EXPECT_EQ(refused("/normalizer", {{"type", "NFKC"}}),
            "t: normalizer: type: found \"NFKC\", expected NFC, Prepend or Replace");
  EXPECT_EQ(refused("/pre_tokenizer", {{"type", "BertPreTokenizer"}}),
            "t: pre_tokenizer: type: found \"BertPreTokenizer\", expected Split, Digits, "
            "ByteLevel or Metaspace");
  EXPECT_EQ(refused("/pre_tokenizer/pretokenizers/0", {{"type", "Punctuation"}}),
            "t: pre_tokenizer: pretokenizers[0]: type: found \"Punctuation\", expected Split, "
            "Digits, ByteLevel or Metaspace");
  EXPECT_EQ(
      corrupt("/pre_tokenizer/pretokenizers/0", {{"type", "Digits"}}),
      "t: pre_tokenizer: pretokenizers[0]: individual_digits: found nothing, expected true or "
      "false");
  EXPECT_EQ(refused("/pre_tokenizer/pretokenizers/0/behavior", "Dropped"),
            "t: pre_tokenizer: pretokenizers[0]: behavior: found \"Dropped\", expected Removed, "
            "Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
  EXPECT_EQ(refused("/pre_tokenizer/pretokenizers/0/pattern", {{"Glob", "*"}}),
            "t: pre_tokenizer: pretokenizers[0]: pattern: found the unknown key \"Glob\", expected "
            "only keys it knows");
  EXPECT_EQ(refused("/post_processor", {{"type", "RobertaProcessing"}}),
            "t: post_processor: type: found \"RobertaProcessing\", expected TemplateProcessing or "
            "ByteLevel");
  EXPECT_EQ(
      refused("/decoder", {{"type", "WordPiece"}}),
      "t: decoder: type: found \"WordPiece\", expected ByteLevel, Replace, ByteFallback, Fuse "
      "or Strip");
  refused("/added_tokens/0/new_option", true);
}

// What tokenizers makes of these hangs on which original character a piece began with, or on
// more text than a small file should be able to ask for.
TEST(Tokenizer, WhatItCouldOnlyGuessAtIsRefusedByName) {
  const Json metaspace = {
      {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "first"}};
  const Json steps = {{{"type", "ByteLevel"}, {"add_prefix_space", false}}, metaspace};
  EXPECT_EQ(refused("/pre_tokenizer/pretokenizers", steps),
            "t: pre_tokenizer: pretokenizers[1]: prepend_scheme: found \"first\", expected always "
            "or never after another pre-tokenizer");
  Json file = small();
  file["pre_tokenizer"] = metaspace;
  file["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "x"}}}, {"content", "y"}};
  EXPECT_TRUE(Tokenizer::parse(file.dump(), "t").ok());
  for (const char* content : {"", "yz"}) {
    file["normalizer"]["content"] = content;
    EXPECT_EQ(error(file).code(), StatusCode::kUnsupported);
  }
  Json old = metaspace;
  old["add_prefix_space"] = false;
  EXPECT_EQ(refused("/pre_tokenizer", old),
            "t: pre_tokenizer: add_prefix_space: found false, expected true, or a prepend_scheme "
            "\"never\" beside it");

  const Json grow = {
      {"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(100, 'a')}};
  for (const char* stage : {"normalizer", "decoder"}) {
    file = small();
    file[stage] = {{"type", "Sequence"}, {std::string(stage) + "s", {grow, grow}}};
    EXPECT_EQ(error(file).code(), StatusCode::kUnsupported);
  }
  refused("/decoder", {{"type", "Replace"}, {"pattern", {{"Regex", "a"}}}, {"content", "b"}});
  refused("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "b"}});
  refused("/normalizer", {{"type", "Prepend"}, {"prepend", std::string(5000, 'a')}});
  EXPECT_EQ(corrupt("/decoder", {{"type", "Strip"}, {"content", "ab"}, {"start", 1}, {"stop", 0}}),
            "t: decoder: content: found \"ab\", expected one character");
  corrupt("/decoder", {{"type", "Strip"}, {"content", ""}, {"start", 1}, {"stop", 0}});
  corrupt("/decoder", {{"type", "Strip"}, {"content", "a"}, {"start", -1}, {"stop", 0}});
  const Json around = {{"type", "TemplateProcessing"},
                       {"single", Json::array({{{"Sequence", {{"id", "A"}}}}})},
                       {"special_tokens", Json::object()}};
  EXPECT_EQ(refused("/post_processor", {{"type", "Sequence"}, {"processors", {around, around}}}),
            "t: post_processor: processors[1]: type: found \"TemplateProcessing\", expected "
            "TemplateProcessing once");
}

TEST(Tokenizer, AnUnknownTokenThatTheVocabularyLacksIsAnErrorWhereItIsNeeded) {
  Json file = small();
  file["model"]["unk_token"] = "<u>";
  const Tokenizer whole = good(file);
  EXPECT_TRUE(whole.encode("abx \u00e9").ok());
  file["model"]["vocab"].erase("x");
  const Status status = good(file).encode("abx").status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_EQ(status.message(),
            "t: model: unk_token: found \"<u>\", expected a token of the vocabulary, for \"x\"");
}

TEST(Tokenizer, TheOldestFilesNameNoModel) {
  Json file = small();
  file["model"].erase("type");
  EXPECT_EQ(ids_of(file, "abab"), (Ids{256, 256}));
}

// tokenizers 0.23 asks whether the text it would decode is that of a special token.
TEST(Tokenizer, ASpecialTokenThatNormalisationChangesIsNotSkipped) {
  Json file = small();
  file["normalizer"] = {{"type", "Prepend"}, {"prepend", "_"}};
  file["added_tokens"][0]["normalized"] = true;
  EXPECT_EQ(good(file).decode(Ids{259, 'a'}, true), "_<s>a");
  file["normalizer"] = nullptr;
  EXPECT_EQ(good(file).decode(Ids{259, 'a'}, true), "a");
}

TEST(Tokenizer, AByteWithoutATokenIsLeftOutAsInTokenizers) {
  Json file = small();
  file["model"]["vocab"].erase("x");
  EXPECT_EQ(ids_of(file, "axb"), Ids{256});
}

// As in tokenizers 0.23, which reads the ids of added tokens and goes by the vocabulary.
TEST(Tokenizer, AddedTokensHaveTheirIdOfTheVocabularyOrTheNextWhateverIsWritten) {
  Json file = small();
  file["added_tokens"][0]["id"] = 9000;
  file["added_tokens"][1]["content"] = "ab";
  const Tokenizer tokenizer = good(file);
  EXPECT_EQ(*tokenizer.encode("<s>ab"), (Ids{259, 256}));
  EXPECT_EQ(tokenizer.notes(),
            (std::vector<std::string>{"t: added_tokens[0]: id: found 9000, expected 259, which is "
                                      "taken, as tokenizers takes it",
                                      "t: added_tokens[1]: id: found 260, expected 256, which is "
                                      "taken, as tokenizers takes it"}));
  EXPECT_TRUE(good(small()).notes().empty());
}

TEST(Tokenizer, AnAddedTokenMayHaveTheIdOfAnotherWhereTheVocabularyHasAGap) {
  Json file = small();
  file["model"]["vocab"].erase("x");
  const Tokenizer tokenizer = good(file);
  EXPECT_EQ(*tokenizer.encode("<s>bc"), (Ids{258, 258}));
  EXPECT_EQ(tokenizer.decode(Ids{258}), "<s>");
  EXPECT_EQ(tokenizer.notes().back(),
            "t: added_tokens: \"<s>\" has the id of \"bc\" too, as in tokenizers");
}

TEST(Tokenizer, OfAnAddedTokenListedTwiceTheLaterHoldsAndOneWithoutTextIsNone) {
  Json file = small();
  file["added_tokens"][1] = file["added_tokens"][0];
  EXPECT_EQ(ids_of(file, "a <s>"), (Ids{'a', ' ', 259}));
  file["added_tokens"][1]["lstrip"] = true;
  EXPECT_EQ(ids_of(file, "a <s>"), (Ids{'a', 259}));
  file["added_tokens"][0]["content"] = "";
  file["added_tokens"][1]["content"] = "<s>!";
  EXPECT_EQ(ids_of(file, "<s> <s>!"), (Ids{'<', 's', '>', 259}));
}

TEST(Tokenizer, FilesThatContradictThemselvesAreRefused) {
  EXPECT_EQ(corrupt("/model/merges/0", {"b", "zz"}),
            "t: model: merges[0]: found \"zz\", expected a token of the vocabulary");
  EXPECT_EQ(corrupt("/model/merges/0", {"c", "c"}),
            "t: model: merges[0]: found \"cc\", expected a token of the vocabulary");
  for (const Json& merge : {Json("a"), Json("a b c"), Json(1), Json{"a"}, Json{"a", 1},
                            Json{"a", "b", "c"}, Json(nullptr)}) {
    corrupt("/model/merges/0", merge);
  }
  corrupt("/model/merges", {{"a", "b"}});
  corrupt("/model/vocab", Json::array());
  EXPECT_EQ(corrupt("/model/vocab/ab", 257),
            "t: model: vocab: abc: found 257, expected an id no "
            "other token has");
  for (const Json& id : {Json(-1), Json(1.5), Json("1"), Json(nullptr), Json(1LL << 31),
                         Json(2097152), Json(UINT64_MAX)}) {
    corrupt("/model/vocab/ab", id);
    corrupt("/added_tokens/0/id", id);
  }
  corrupt("/added_tokens", {{"a", 1}});
  for (const char* key : {"model", "decoder"}) {
    Json file = small();
    file.erase(key);
    EXPECT_EQ(error(file).message(),
              std::string("t: ") + key + ": found nothing, expected an object");
  }
  for (const char* text : {"", "[]", "1", "{\"model\":", "\xff"}) {
    EXPECT_EQ(Tokenizer::parse(text, "t").status().code(), StatusCode::kCorrupt);
  }
  EXPECT_EQ(Tokenizer::load("/nonexistent/tokenizer.json").status().code(), StatusCode::kNotFound);
}

TEST(Tokenizer, DamagedFilesNeverCrash) {
  std::mt19937_64 random(20260104);
  Json file = small();
  file["normalizer"] = {{"type", "NFC"}};
  const std::string text = file.dump();
  // Damage to the 256 byte tokens alone would teach little; half the edits fall elsewhere.
  const std::size_t vocab = text.find("\"vocab\"");
  int accepted = 0;
  for (int i = 0; i < 3000; ++i) {
    const std::string damaged =
        i % 2 == 0 ? test::mutate(text, random)
                   : test::mutate(text.substr(0, vocab), random) + text.substr(vocab);
    const Result<Tokenizer> tokenizer = Tokenizer::parse(damaged, "t");
    if (!tokenizer.ok()) {
      EXPECT_EQ(tokenizer.status().message().rfind("t: ", 0), 0u);
      continue;
    }
    ++accepted;
    const Result<Ids> ids = tokenizer->encode("abc <s>! e\u0301 \U0001F600 1234\r\n  x<s>");
    if (ids.ok()) tokenizer->decode(*ids);
  }
  EXPECT_GT(accepted, 20);
}

}  // namespace
}  // namespace kvcache::runner
