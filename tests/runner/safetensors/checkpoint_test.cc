#include "runner/safetensors/checkpoint.h"

#include <string>
#include <utility>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "support/paths.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

using Json = nlohmann::json;

// A file with one f32 tensor of `count` elements, all `value`.
std::string shard(const std::string& name, std::int64_t count, float value) {
  const std::string header =
      Json{{name, {{"dtype", "F32"}, {"shape", {count}}, {"data_offsets", {0, 4 * count}}}}}.dump();
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(header.size() >> (8 * i)));
  bytes += header;
  for (std::int64_t i = 0; i < count; ++i) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return bytes;
}

class CheckpointTest : public ::testing::Test {
 protected:
  void index(const Json& weight_map) {
    dir_.write("model.safetensors.index.json", Json{{"weight_map", weight_map}}.dump());
  }
  Status open_error() {
    const Result<Checkpoint> checkpoint = Checkpoint::open(dir_.path());
    EXPECT_FALSE(checkpoint.ok());
    return checkpoint.status();
  }

  test::TempDir dir_;
};

TEST_F(CheckpointTest, ShardsReadAsOne) {
  dir_.write("model-1.safetensors", shard("a", 3, 1.0F));
  dir_.write("model-2.safetensors", shard("b", 5, 2.0F));
  index({{"a", "model-1.safetensors"}, {"b", "model-2.safetensors"}});
  Result<Checkpoint> opened = Checkpoint::open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status().to_string();
  EXPECT_EQ(opened->num_files(), 2);
  EXPECT_EQ(opened->num_parameters(), 8);
  EXPECT_EQ(opened->names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(opened->contains("a"));
  EXPECT_FALSE(opened->contains("c"));
  const TensorView b = *opened->find("b");
  const Checkpoint moved = std::move(opened).value();
  EXPECT_EQ(static_cast<const float*>(b.data)[4], 2.0F);  // views outlive a move
  EXPECT_EQ(moved.find("c").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(moved.find("c").status().message(),
            dir_.path() + ": tensor \"c\": found nothing, expected a tensor of this name");
}

TEST_F(CheckpointTest, OneFileIsPreferredToAnIndex) {
  dir_.write("model.safetensors", shard("whole", 2, 1.0F));
  index({{"a", "absent.safetensors"}});
  const Result<Checkpoint> opened = Checkpoint::open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status().to_string();
  EXPECT_EQ(opened->names(), std::vector<std::string>{"whole"});
}

TEST_F(CheckpointTest, WhatIsMissingIsNamed) {
  EXPECT_EQ(open_error().message(), dir_.path() +
                                        ": found no weights, expected model.safetensors or "
                                        "model.safetensors.index.json");
  dir_.write("model-1.safetensors", shard("a", 3, 1.0F));
  index({{"a", "model-1.safetensors"}, {"b", "model-2.safetensors"}});
  EXPECT_EQ(open_error().code(), StatusCode::kNotFound);
  EXPECT_EQ(open_error().message(),
            dir_.path() +
                "/model-2.safetensors: found no such file, expected the shard with tensor \"b\" "
                "that model.safetensors.index.json names");
  index({{"a", "model-1.safetensors"}, {"b", "model-1.safetensors"}});
  const Result<Checkpoint> opened = Checkpoint::open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.status().to_string();
  EXPECT_TRUE(opened->find("a").ok());
  EXPECT_EQ(opened->find("b").status().message(),
            dir_.path() + ": tensor \"b\": found nothing, expected a tensor of this name");
}

TEST_F(CheckpointTest, ShardsStayInsideTheDirectory) {
  for (const std::string& name : {std::string("../model.safetensors"), std::string("/etc/passwd"),
                                  std::string("a/b.safetensors"), std::string(), std::string("."),
                                  std::string(".."), std::string("a\\b"), std::string("a\0b", 3)}) {
    index({{"a", name}});
    const Status status = open_error();
    EXPECT_EQ(status.code(), StatusCode::kCorrupt) << name;
    EXPECT_NE(status.message().find("expected the name of a file in the directory"),
              std::string::npos);
  }
}

TEST_F(CheckpointTest, ABrokenIndexIsRefused) {
  for (const char* text : {"", "[]", "{}", "{\"weight_map\": []}", "{\"weight_map\": {\"a\": 1}}",
                           "{\"weight_map\": {\"a\": null}}", "{\"weight_map\":"}) {
    dir_.write("model.safetensors.index.json", text);
    const Status status = open_error();
    EXPECT_EQ(status.code(), StatusCode::kCorrupt) << text;
    EXPECT_EQ(status.message().rfind(dir_.path() + "/model.safetensors.index.json: ", 0), 0u)
        << status.message();
  }
}

TEST_F(CheckpointTest, ABrokenFileIsNotPassedOverForAnIndex) {
  dir_.write("model.safetensors", "short");
  dir_.write("model-1.safetensors", shard("a", 3, 1.0F));
  index({{"a", "model-1.safetensors"}});
  EXPECT_EQ(open_error().code(), StatusCode::kCorrupt);
}

TEST(Checkpoint, EveryGoldenOpensAndIsWhole) {
  for (const char* name : {"llama2_plain", "llama3_grouped", "llama3_tied", "llama_bias",
                           "qwen2_tied", "qwen2_untied", "qwen3_explicit", "qwen3_tied"}) {
    const Result<Checkpoint> opened =
        Checkpoint::open(testing::source_dir() + "/tests/golden/" + name);
    ASSERT_TRUE(opened.ok()) << opened.status().to_string();
    EXPECT_GT(opened->num_parameters(), 0);
    EXPECT_TRUE(opened->contains("model.embed_tokens.weight"));
    for (const std::string& tensor : opened->names()) {
      const Result<TensorView> view = opened->find(tensor);
      ASSERT_TRUE(view.ok()) << view.status().to_string();
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view->data) %
                    static_cast<std::uintptr_t>(size_of(view->dtype)),
                0u);
    }
  }
}

}  // namespace
}  // namespace kvcache::runner
