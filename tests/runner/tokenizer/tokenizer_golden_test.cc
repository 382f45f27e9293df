// Ids and text of Hugging Face tokenizers (tests/golden/README.md), for both spellings of a file.
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runner/tokenizer/stream_decoder.h"
#include "runner/tokenizer/tokenizer.h"
#include "runner/tokenizer/utf8.h"
#include "support/paths.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<std::int32_t>;

std::string folder(const std::string& name) {
  return testing::source_dir() + "/tests/golden/" + name + "/";
}

class TokenizerGolden : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  void SetUp() override {
    Result<Tokenizer> loaded =
        Tokenizer::load(folder(std::get<0>(GetParam())) + std::get<1>(GetParam()));
    ASSERT_TRUE(loaded.ok()) << loaded.status().to_string();
    tokenizer_.emplace(std::move(loaded).value());
  }
  Json read(const char* file) const {
    return Json::parse(test::read_file(folder(std::get<0>(GetParam())) + file));
  }

  std::optional<Tokenizer> tokenizer_;
};

TEST_P(TokenizerGolden, TextBecomesTheSameIds) {
  const Json cases = read("cases.json");
  ASSERT_GT(cases.size(), 50u);
  int failures = 0;
  for (const Json& item : cases) {
    const std::string text = item["text"];
    const Result<Ids> plain = tokenizer_->encode(text, false);
    ASSERT_TRUE(plain.ok()) << plain.status().to_string();
    EXPECT_EQ(*plain, item["ids"].get<Ids>()) << item["text"];
    EXPECT_EQ(*tokenizer_->encode(text), item["ids_with_special"].get<Ids>()) << item["text"];
    ASSERT_LT(failures += HasFailure() ? 1 : 0, 5) << "and so on";
  }
}

TEST_P(TokenizerGolden, IdsBecomeTheSameText) {
  for (const char* file : {"cases.json", "decode.json"}) {
    for (const Json& item : read(file)) {
      const Ids ids = item["ids"].get<Ids>();
      EXPECT_EQ(tokenizer_->decode(ids), item["decoded"].get<std::string>()) << item["ids"];
      EXPECT_EQ(tokenizer_->decode(ids, true), item["decoded_skip_special"].get<std::string>());
    }
  }
}

TEST_P(TokenizerGolden, StreamedTextIsTheSameAndNeverHalfACharacter) {
  for (const char* file : {"cases.json", "decode.json"}) {
    for (const Json& item : read(file)) {
      for (const bool skip : {false, true}) {
        StreamDecoder decoder(*tokenizer_, skip);
        std::string text;
        for (const std::int32_t id : item["ids"].get<Ids>()) {
          const std::string piece = decoder.push(id);
          EXPECT_FALSE(find_invalid_utf8(piece).has_value());
          text += piece;
        }
        text += decoder.flush();
        EXPECT_EQ(text, item[skip ? "decoded_skip_special" : "decoded"].get<std::string>());
      }
    }
  }
}

TEST_P(TokenizerGolden, TextIsCutIntoTheSameWords) {
  const Json file = read(std::get<1>(GetParam()));
  const Result<JsonObject> root = JsonObject::create(file, "f");
  const Result<Normalizer> normalizer = Normalizer::create(*root);
  ASSERT_TRUE(normalizer.ok()) << normalizer.status().to_string();
  const Result<PreTokenizer> pre_tokenizer = PreTokenizer::create(*root, *normalizer);
  ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status().to_string();
  for (const Json& item : read("pieces.json")) {
    const Result<std::string> normalized = normalizer->apply(item["text"].get<std::string>());
    Words words;
    ASSERT_TRUE(pre_tokenizer->split(*normalized, true, &words).ok());
    EXPECT_EQ(std::vector<std::string>(words.list.begin(), words.list.end()),
              item["pieces"].get<std::vector<std::string>>());
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, TokenizerGolden,
    ::testing::Combine(::testing::Values("tokenizer_gpt2", "tokenizer_qwen2", "tokenizer_llama3",
                                         "tokenizer_llama2", "tokenizer_llama2_legacy"),
                       ::testing::Values("tokenizer.json", "tokenizer.hub.json")));

TEST(TokenizerGolden, PromptsOfTheCheckpointsEncodeAndDecode) {
  for (const char* name : {"llama3_tied", "qwen2_tied"}) {
    for (const char* file : {"tokenizer.json", "tokenizer.hub.json"}) {
      const Result<Tokenizer> tokenizer = Tokenizer::load(folder(name) + file);
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
      const Json golden = Json::parse(test::read_file(folder(name) + "golden.json"));
      for (const Json& prompt : golden["prompts"]) {
        EXPECT_EQ(*tokenizer->encode(prompt["text"].get<std::string>()),
                  prompt["tokens"].get<Ids>());
        EXPECT_EQ(tokenizer->decode(prompt["greedy"].get<Ids>()),
                  prompt["greedy_text"].get<std::string>());
      }
    }
  }
}

}  // namespace
}  // namespace kvcache::runner
