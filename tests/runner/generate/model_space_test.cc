// Rows that a model computed are found by no other: every byte of its files decides.
#include "runner/generate/model_space.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <string>

#include "support/golden_checkpoint.h"
#include "support/temp_dir.h"

namespace kvcache::runner {
namespace {

PrefixNamespace space_in(const std::string& folder, std::string_view how = {}) {
  const auto loaded = LoadedModel::load(folder, WeightMode::kAuto);
  EXPECT_TRUE(loaded.ok()) << loaded.status().to_string();
  return space_of(*loaded, how).value();
}

TEST(ModelSpace, IsAnotherWhereAnyByteOfWeightsOrTokenizerIs) {
  const test::TempDir folder;
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) {
    std::filesystem::copy_file(testing::golden_directory("qwen2_tied") + "/" + name,
                               folder.path() + "/" + name);
  }
  const PrefixNamespace space = space_in(folder.path());
  EXPECT_EQ(space_in(folder.path()), space);
  EXPECT_NE(space_in(folder.path(), "otherwise"), space);
  std::set<PrefixNamespace> seen = {space};
  const std::string weights = test::read_file(folder.path() + "/model.safetensors");
  for (const std::size_t part : {3, 4, 5, 7}) {  // eighths of the file, behind its header
    std::string changed = weights;
    changed[weights.size() / 8 * part] ^= 1;
    folder.write("model.safetensors", changed);
    EXPECT_TRUE(seen.insert(space_in(folder.path())).second) << part;
  }
  folder.write("model.safetensors", weights);
  folder.write("tokenizer.json", test::read_file(folder.path() + "/tokenizer.json") + " ");
  EXPECT_TRUE(seen.insert(space_in(folder.path())).second);
}

TEST(ModelSpace, NamesTheFileThatIsMissing) {
  const test::TempDir folder;
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) {
    std::filesystem::copy_file(testing::golden_directory("qwen2_tied") + "/" + name,
                               folder.path() + "/" + name);
  }
  const auto loaded = LoadedModel::load(folder.path(), WeightMode::kAuto);
  std::filesystem::remove(folder.path() + "/tokenizer.json");
  const Status status = space_of(*loaded).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find("tokenizer.json"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace kvcache::runner
