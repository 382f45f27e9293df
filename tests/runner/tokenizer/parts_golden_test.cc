// Every part of a tokenizer.json that the interpreter knows, in small files, against Hugging Face
// tokenizers (tests/golden/README.md).
#include <string>
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

Json parts() {
  return Json::parse(
      test::read_file(testing::source_dir() + "/tests/golden/tokenizer_parts/parts.json"));
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
  StreamDecoder decoder(tokenizer, skip_special);
  std::string text;
  for (const std::int32_t id : ids) {
    const std::string piece = decoder.push(id);
    EXPECT_FALSE(find_invalid_utf8(piece).has_value());
    text += piece;
  }
  return text + decoder.flush();
}

TEST(TokenizerParts, EncodeAndDecodeAsTokenizersDoes) {
  for (const Json& part : parts()) {
    SCOPED_TRACE(part["about"].get<std::string>());
    const Result<Tokenizer> tokenizer = Tokenizer::parse(part["file"].dump(), "t");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
    for (const Json& item : part["encode"]) {
      const std::string text = item["text"];
      const Result<Ids> ids = tokenizer->encode(text, false);
      ASSERT_TRUE(ids.ok()) << ids.status().to_string();
      EXPECT_EQ(*ids, item["ids"].get<Ids>()) << item["text"];
      EXPECT_EQ(*tokenizer->encode(text), item["ids_with_special"].get<Ids>()) << item["text"];
    }
    for (const Json& item : part["decode"]) {
      const Ids ids = item["ids"].get<Ids>();
      const std::string text = item["decoded"];
      const std::string text_skip = item["decoded_skip_special"];
      EXPECT_EQ(tokenizer->decode(ids), text) << item["ids"];
      EXPECT_EQ(tokenizer->decode(ids, true), text_skip) << item["ids"];
      EXPECT_EQ(streamed(*tokenizer, ids, false), text) << item["ids"];
      EXPECT_EQ(streamed(*tokenizer, ids, true), text_skip) << item["ids"];
    }
  }
}

}  // namespace
}  // namespace kvcache::runner
