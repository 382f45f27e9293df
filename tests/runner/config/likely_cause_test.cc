// Files of the wrong kind, through the doors that meet them.
#include "runner/config/likely_cause.h"

#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "runner/config/model_config.h"
#include "runner/safetensors/checkpoint.h"
#include "runner/tokenizer/tokenizer.h"
#include "support/golden_checkpoint.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

namespace fs = std::filesystem;

const std::string kPointer =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n";

std::string config_error(const std::string& directory) {
  return load_model_config(directory).status().message();
}
std::string weights_error(const std::string& directory) {
  return Checkpoint::open(directory).status().message();
}
std::string tokenizer_error(const std::string& directory) {
  return Tokenizer::load_directory(directory).status().message();
}

TEST(LikelyCause, AFileOfAnotherKindIsNamed) {
  const struct {
    std::string content;
    const char* found;
  } cases[] = {{kPointer, "a git-LFS pointer (git lfs pull fetches the file)"},
               {"\n<!DOCTYPE html><html>", "an HTML page, as a failed download leaves it"},
               {"<HTML><body>Sign in</body>", "an HTML page, as a failed download leaves it"},
               {"<?xml version=\"1.0\"?><Error>", "an XML page, as a failed download leaves it"},
               {std::string("GGUF\x03\0\0\0\0\0\0\0", 12), "a GGUF file, which llama.cpp reads"},
               {std::string("PK\x03\x04\x14\x08\x08\x08\x08\x08", 10),
                "a zip file or a PyTorch checkpoint"}};
  for (const auto& each : cases) {
    const test::TempDir dir;
    const std::string found = std::string(": found ") + each.found;
    for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
      dir.write(name, each.content);
    }
    EXPECT_EQ(config_error(dir.path()), dir.path() + "/config.json" + found + ", expected JSON");
    EXPECT_EQ(weights_error(dir.path()),
              dir.path() + "/model.safetensors" + found + ", expected a safetensors file");
    EXPECT_EQ(tokenizer_error(dir.path()),
              dir.path() + "/tokenizer.json" + found + ", expected JSON");
    fs::remove(dir.path() + "/model.safetensors");
    const std::string index = dir.write("model.safetensors.index.json", each.content);
    EXPECT_EQ(weights_error(dir.path()), index + found + ", expected JSON");
  }
}

TEST(LikelyCause, WeightsOfAnotherFormatAreNamed) {
  for (const auto& [file, what] : {std::pair<const char*, const char*>{
                                       "pytorch_model.bin",
                                       "a PyTorch checkpoint, which transformers' save_pretrained "
                                       "writes as safetensors"},
                                   {"model-Q4_K.gguf", "a GGUF file, which llama.cpp reads"},
                                   {"other.safetensors", "weights of another name"}}) {
    const test::TempDir dir;
    dir.write(file, "x");
    EXPECT_EQ(weights_error(dir.path()), dir.path() + ": found " + file + ", " + what +
                                             ", expected model.safetensors or "
                                             "model.safetensors.index.json");
  }
  const test::TempDir dir;
  dir.write("model.gguf", "GGUF");
  EXPECT_EQ(config_error(dir.path()),
            dir.path() +
                ": found model.gguf, a GGUF file, which llama.cpp reads, expected a model "
                "directory with a config.json");
  dir.write("tokenizer.model", "x");
  EXPECT_EQ(tokenizer_error(dir.path()),
            dir.path() +
                ": found tokenizer.model, a SentencePiece or tiktoken model, which "
                "transformers' save_pretrained writes as tokenizer.json, expected "
                "tokenizer.json");
}

TEST(LikelyCause, ADirectoryThatIsOneLevelTooHighOrNoneIsNamed) {
  const test::TempDir dir;
  const std::string expected = ", expected a model directory with a config.json";
  EXPECT_EQ(config_error(dir.path() + "/nowhere"),
            dir.path() + "/nowhere: found no such directory" + expected);
  const std::string below = dir.path() + "/models--a--b/snapshots/0123";
  fs::create_directories(below);
  EXPECT_NE(config_error(dir.path()).find("config.json: cannot be opened"), std::string::npos);
  std::ofstream(below + "/config.json") << "{}";
  for (const char* level : {"", "/models--a--b", "/models--a--b/snapshots"}) {
    EXPECT_EQ(config_error(dir.path() + level),
              dir.path() + level + ": found a model in " + below + expected);
  }
  const std::string file = dir.write("model.gguf", "GGUF....");
  EXPECT_EQ(config_error(file), file + ": found a GGUF file, which llama.cpp reads" + expected);
  const std::string other = dir.write("weights", "0");
  EXPECT_EQ(config_error(other), other + ": found a file" + expected);
}

// Lengths of headers whose bytes look like the beginnings of other formats.
TEST(LikelyCause, ASafetensorsFileIsReadWhateverItsLengthLooksLike) {
  for (const std::size_t length : {0x280u, 0x480u, 0x8b1fu}) {
    std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
    header.resize(length, ' ');
    std::string bytes(8, '\0');
    for (int i = 0; i < 8; ++i)
      bytes[static_cast<std::size_t>(i)] = static_cast<char>(length >> (8 * i) & 255);
    const test::TempDir dir;
    dir.write("model.safetensors", bytes + header + std::string(4, '\0'));
    EXPECT_EQ(weights_error(dir.path()), "");
  }
}

}  // namespace
}  // namespace kvcache::runner
