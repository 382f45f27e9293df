// Files of the format as it was written once (tests/golden/formats): they stay readable, to the
// last byte.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/cache_file.h"
#include "support/paged.h"
#include "support/paths.h"
#include "support/stored.h"
#include "support/temp_dir.h"

namespace kvcache::testing {
namespace {

struct Golden {
  const char* name;
  CacheConfig config;
  std::int64_t length;
  PrefixNamespace space;
};

std::vector<Golden> goldens() {
  constexpr RowFormat kF16 = plain(DType::kF16);
  Life window, chunk;
  window.window = 9;
  window.sink_tokens = 2;
  chunk.chunk = 8;
  const auto kv = [](const RowFormat& k, const RowFormat& v) {
    return LayerSpec::kv(2, 32, 64, k, v);
  };
  const auto small = [kF16](const RowFormat& v) { return LayerSpec::kv(1, 16, 8, kF16, v); };
  std::vector<LayerSpec> every_form;
  for (const auto kind : {RowFormat::kInt8, RowFormat::kFp8E4M3, RowFormat::kInt4, RowFormat::kLm4,
                          RowFormat::kQ8_0, RowFormat::kQ4_0}) {
    every_form.push_back(LayerSpec::kv(1, 32, 32, coded(kind), coded(kind)));
  }
  return {
      {"plain", stored_config({kv(kF16, plain(DType::kF32)), kv(plain(DType::kBF16), kF16)}, 4), 6,
       namespace_of({"a model", "a tokenizer"}, 3)},
      {"forms", stored_config(every_form, 4), 21, {}},
      {"windows",
       stored_config(
           {small(kF16), small(coded(RowFormat::kInt8)).living(window), small(kF16).living(chunk)},
           4),
       260,
       {}},
      {"tails", stored_config({kv(coded(RowFormat::kInt4), kF16)}, 4, Layout::kHND, 6), 23, {}}};
}

std::string path_of(const Golden& golden) {
  return source_dir() + "/tests/golden/formats/" + golden.name + ".kvc";
}

TEST(CacheFileGolden, FilesOfTheFormatStayReadable) {
  for (const Golden& golden : goldens()) {
    SCOPED_TRACE(golden.name);
    StoredCache made(golden.config);
    const SequenceId seq = made.sequence(100, golden.length);
    // Once, for a new one: KVCACHE_WRITE_GOLDEN=1.
    if (std::getenv("KVCACHE_WRITE_GOLDEN") != nullptr) {
      ASSERT_OK(CacheFile::save(made.cache, seq, path_of(golden), golden.space));
    }
    for (const std::int64_t page_size : {4, 16}) {
      CacheConfig config = golden.config;
      config.page_size = page_size;
      StoredCache cache(config);
      const auto loaded = CacheFile::load(cache.cache, path_of(golden), golden.space);
      ASSERT_OK(loaded.status());
      EXPECT_EQ(difference(made, seq, cache, *loaded), "");
      const std::vector<std::byte> bytes = cache.bytes(*loaded, golden.space);
      EXPECT_TRUE(test::read_file(path_of(golden)) ==
                  std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    }
  }
}

}  // namespace
}  // namespace kvcache::testing
