#include "runner/tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

TEST(ChatTemplate, IsFoundInEachOfItsPlaces) {
  for (const char* name : {"chat_template.jinja", "chat_template.json"}) {
    const test::TempDir directory;
    EXPECT_EQ(find_chat_template(directory.path()), "");
    const std::string path = directory.write(name, "{{ messages }}");
    EXPECT_EQ(find_chat_template(directory.path()), path);
  }
  const test::TempDir directory;
  const std::string path =
      directory.write("tokenizer_config.json", R"({"chat_template": "{{ messages }}"})");
  EXPECT_EQ(find_chat_template(directory.path()), path);
}

TEST(ChatTemplate, AConfigWithoutOneOrThatIsBrokenCountsAsNone) {
  const test::TempDir directory;
  for (const char* text : {"{}", R"({"chat_template": null})", "[]", "{", ""}) {
    directory.write("tokenizer_config.json", text);
    EXPECT_EQ(find_chat_template(directory.path()), "") << text;
  }
  EXPECT_EQ(find_chat_template(directory.path() + "/nowhere"), "");
}

}  // namespace
}  // namespace kvcache::runner
