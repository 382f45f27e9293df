#include "runner/tokenizer/chat_template.h"

#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runner/config/json_file.h"
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

// As SmolLM2 ships it.
constexpr const char* kSmolLm2 =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}";

TEST(ChatTemplate, AQuestionIsWrittenAsTheTemplateOfSmolLm2Does) {
  for (const bool in_config : {false, true}) {
    const test::TempDir directory;
    if (in_config) {
      directory.write("tokenizer_config.json", Json({{"chat_template", kSmolLm2}}).dump());
    } else {
      directory.write("chat_template.jinja", kSmolLm2);
    }
    const auto found = ChatTemplate::load(directory.path());
    ASSERT_TRUE(found.ok()) << found.status().to_string();
    EXPECT_EQ(found->ask(" Hi \n"),
              "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
              "Face<|im_end|>\n<|im_start|>user\n Hi \n<|im_end|>\n<|im_start|>assistant\n");
    EXPECT_EQ(found->ask("Hi", " S "),
              "<|im_start|>system\n S <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
              "<|im_start|>assistant\n");
  }
}

// What transformers' Jinja makes of the same turns.
TEST(ChatTemplate, TheOtherFamiliesAreWrittenAsTheirTemplatesDo) {
  const auto qwen25 =
      ChatTemplate::known("cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f");
  ASSERT_TRUE(qwen25.has_value());
  EXPECT_EQ(qwen25->ask(" Hi \n"),
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            "assistant.<|im_end|>\n<|im_start|>user\n Hi \n<|im_end|>\n<|im_start|>assistant\n");
  const auto qwen3 =
      ChatTemplate::known("87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5");
  ASSERT_TRUE(qwen3.has_value());
  EXPECT_EQ(qwen3->ask("Hi"), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(qwen3->ask("Hi", "S"),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
  const std::string before =
      "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
      "December 2023\nToday Date: ";
  const std::string after =
      "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n";
  const auto llama31 =
      ChatTemplate::known("e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65");
  ASSERT_TRUE(llama31.has_value());
  EXPECT_EQ(llama31->ask(" Hi \n"), before + "26 Jul 2024\n\n" + after);
  EXPECT_EQ(llama31->ask("\u3000Hi\x1f", " S "), before + "26 Jul 2024\n\nS" + after);
  const auto llama32 =
      ChatTemplate::known("5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4");
  ASSERT_TRUE(llama32.has_value());
  const std::string text = llama32->ask("Hi", "S");
  EXPECT_TRUE(text.starts_with(before)) << text;
  EXPECT_TRUE(text.ends_with("\n\nS" + after)) << text;
  EXPECT_EQ(text.size(), llama31->ask("Hi", "S").size());  // a date in the same form
}

TEST(ChatTemplate, AnotherTemplateIsRefusedByItsFileAndDigest) {
  const test::TempDir directory;
  EXPECT_EQ(ChatTemplate::load(directory.path()).status().code(), StatusCode::kNotFound);
  const std::string path = directory.write("chat_template.jinja", std::string(kSmolLm2) + " ");
  const Status status = ChatTemplate::load(directory.path()).status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_EQ(status.message().find(path + ": found a chat template of SHA-256 "), 0u)
      << status.message();
  directory.write("chat_template.jinja", "");
  EXPECT_EQ(ChatTemplate::load(directory.path()).status().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace kvcache::runner
