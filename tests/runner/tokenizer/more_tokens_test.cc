// Tokens that stand only in the files beside tokenizer.json. What is expected is what transformers
// 5.24 makes of the same files; python/tests/hf/test_hf_tokens.py asks it.
#include "runner/tokenizer/more_tokens.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runner/tokenizer/tokenizer.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

using Ids = std::vector<std::int32_t>;

// Bytes are tokens 0 .. 255, "<s>" is 256.
class MoreTokensTest : public ::testing::Test {
 protected:
  MoreTokensTest() {
    static constexpr char kHex[] = "0123456789ABCDEF";
    Json file = Json::parse(R"({"added_tokens": [{"id": 256, "content": "<s>", "special": true}],
                                "decoder": {"type": "ByteFallback"},
                                "model": {"type": "BPE", "byte_fallback": true, "merges": []}})");
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::string token = {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
      file["model"]["vocab"][token] = byte;
    }
    directory_.write("tokenizer.json", file.dump());
  }

  Tokenizer load() {
    Result<Tokenizer> tokenizer = Tokenizer::load_directory(directory_.path());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
    return std::move(tokenizer).value();
  }
  Ids ids(const std::string& text) { return *load().encode(text); }

  void config(const char* text) { directory_.write("tokenizer_config.json", text); }
  void map(const char* text) { directory_.write("special_tokens_map.json", text); }
  void added(const char* text) { directory_.write("added_tokens.json", text); }

  test::TempDir directory_;
};

TEST_F(MoreTokensTest, WithoutFilesBesideItATokenizerIsItsFile) {
  EXPECT_EQ(ids("<s>"), Ids{256});
  EXPECT_EQ(ids("<x>"), (Ids{'<', 'x', '>'}));
  EXPECT_TRUE(load().notes().empty());
}

TEST_F(MoreTokensTest, NamedTokensComeInTheOrderOfTheirNamesAndThenTheOthers) {
  config(R"({"pad_token": "<p>", "bos_token": "<b>", "additional_special_tokens": ["<a>", "<s>"],
             "eos_token": {"content": "<e>", "lstrip": true}, "unk_token": null})");
  EXPECT_EQ(ids("<b><e><p><a>"), (Ids{257, 258, 259, 260}));
  EXPECT_EQ(ids("x <e>"), (Ids{'x', 258}));
  EXPECT_EQ(load().special_ids(), (Ids{256, 257, 258, 259, 260}));
  EXPECT_EQ(load().notes(),
            (std::vector<std::string>{
                directory_.path() + "/tokenizer.json: added, as transformers adds them, are tokens "
                                    "that stand in files beside it alone: \"<b>\" \"<e>\" \"<p>\" "
                                    "\"<a>\""}));
}

TEST_F(MoreTokensTest, TheDecoderOfTheConfigGivesTokensInItsOrderAndFlagsToThoseThatAreThere) {
  config(R"({"added_tokens_decoder": {"9999": {"content": "<x>", "special": true},
                                      "1000": {"content": "<y>"},
                                      "256": {"content": "<s>", "special": true, "lstrip": true}},
             "eos_token": "<x>"})");
  map(R"({"pad_token": "<p>"})");  // not read beside such a decoder
  EXPECT_EQ(ids("<y><x>"), (Ids{257, 258}));
  EXPECT_EQ(ids("x <s>"), (Ids{'x', 256}));
  EXPECT_EQ(ids("<p>"), (Ids{'<', 'p', '>'}));
  EXPECT_EQ(load().special_ids(), (Ids{256, 258}));
}

TEST_F(MoreTokensTest, OlderFilesCountWhereTheConfigHasNoDecoder) {
  config(R"({"eos_token": "<not>"})");
  map(R"({"eos_token": {"content": "<e>"}, "additional_special_tokens": ["<a>"]})");
  added(R"({"<x>": 5000, "<y>": 4000, "<other>": 256})");
  EXPECT_EQ(ids("<y><x><e><a>"), (Ids{257, 258, 259, 260}));
  EXPECT_EQ(ids("<not>").size(), 5u);
  EXPECT_EQ(ids("<other>").size(), 7u);  // tokenizer.json has another token there
  EXPECT_EQ(load().special_ids(), (Ids{256, 259, 260}));
}

TEST_F(MoreTokensTest, FilesThatAreNoTokensAreRefusedByName) {
  const auto error = [&] {
    return Tokenizer::load_directory(directory_.path()).status().message();
  };
  config(R"({"eos_token": 5})");
  EXPECT_EQ(error(),
            directory_.path() + "/tokenizer_config.json: eos_token: found 5, expected a token");
  config(R"({"added_tokens_decoder": {"x": {"content": "y"}}})");
  EXPECT_EQ(error(), directory_.path() +
                         "/tokenizer_config.json: added_tokens_decoder: found \"x\", "
                         "expected the id of a token");
  config("{");
  EXPECT_EQ(error(), directory_.path() +
                         "/tokenizer_config.json: found bad syntax at byte 1, "
                         "expected JSON");
  config("{\"model_max_length\": 1e999, \"a\": NaN}");
  EXPECT_EQ(error(), "");
  added(R"({"<x>": "7"})");
  EXPECT_NE(error(), "");
}

}  // namespace
}  // namespace kvcache::runner
