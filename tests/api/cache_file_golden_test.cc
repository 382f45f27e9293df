// Files of the format as it was written once (tests/golden/formats): they stay readable, to the
// last byte.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/cache_file.h"
#include "kvcache/dynamic_cache.h"
#include "support/paged.h"
#include "support/paths.h"
#include "support/prefix_world.h"
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

std::string path_of(const std::string& name) {
  return source_dir() + "/tests/golden/formats/" + name + ".kvc";
}
std::string path_of(const Golden& golden) { return path_of(std::string(golden.name)); }

// Once, for a new one: KVCACHE_WRITE_GOLDEN=1.
bool writes_golden() { return std::getenv("KVCACHE_WRITE_GOLDEN") != nullptr; }

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(CacheFileGolden, FilesOfTheFormatStayReadable) {
  for (const Golden& golden : goldens()) {
    SCOPED_TRACE(golden.name);
    StoredCache made(golden.config);
    const SequenceId seq = made.sequence(100, golden.length);
    if (writes_golden()) {
      ASSERT_OK(CacheFile::save(made.cache, seq, path_of(golden), golden.space));
    }
    for (const std::int64_t page_size : {4, 16}) {
      CacheConfig config = golden.config;
      config.page_size = page_size;
      StoredCache cache(config);
      const auto loaded = CacheFile::load(cache.cache, path_of(golden), golden.space);
      ASSERT_OK(loaded.status());
      EXPECT_EQ(difference(made, seq, cache, *loaded), "");
      EXPECT_TRUE(test::read_file(path_of(golden)) == text_of(cache.bytes(*loaded, golden.space)));
    }
  }
}

TEST(CacheFileGolden, TextsOfTheFormatStayReadable) {
  Life window;
  window.window = 9;
  window.sink_tokens = 2;
  const CacheConfig config = PrefixWorld::config_of({Life(), window}, 60, 4);
  const std::vector<std::pair<PrefixNamespace, Text>> texts = {
      {named(1), counted(1, 23)},
      {named(2, 5), counted(300, 6)},
      {named(1), joined(counted(1, 10), counted(90, 5))}};
  const std::string path = path_of("texts");
  if (writes_golden()) {
    PrefixWorld made(config);
    for (const auto& [name, text] : texts) made.ask(text, name);
    ASSERT_OK(made.prefixes->save(path).status());
  }
  PrefixWorld world(config);
  const auto loaded = world.prefixes->load(path);
  ASSERT_OK(loaded.status());
  EXPECT_EQ(*loaded, 10);
  for (const auto& [name, text] : texts) {
    Text longer = text;
    longer.push_back(-1);
    EXPECT_EQ(world.prefixes->explain(longer, name)->length,
              static_cast<std::int64_t>(text.size()));
  }
  const test::TempDir folder;
  ASSERT_OK(world.prefixes->save(folder.path() + "/again").status());
  EXPECT_TRUE(test::read_file(folder.path() + "/again") == test::read_file(path));
  for (const auto& [name, text] : texts) {
    Text more = text;
    more.push_back(7777);
    world.ask(more, name);  // which looks at every row
  }
  world.check();
}

TEST(CacheFileGolden, LayersOfTheFormatStayReadable) {
  DynamicCache made = DynamicCache::create().value();
  for (const std::int64_t layer : {0, 2}) {
    HostTensor key(DType::kF16, {2, 1 + layer, 21, 8}), value(DType::kF32, {2, 1 + layer, 21, 4});
    for (std::int64_t i = 0; i < 2 * (1 + layer) * 21 * 8; ++i) {
      key.set(i, static_cast<float>(i % 97) / 8.0f - 4.0f);
      if (i % 2 == 0) value.set(i / 2, static_cast<float>(i % 89) / 16.0f);
    }
    ASSERT_OK(made.update(key, value, layer).status());
  }
  ASSERT_OK(made.crop(18));
  if (writes_golden()) ASSERT_OK(CacheFile::save(made, path_of("layers")));
  DynamicCache cache = DynamicCache::create().value();
  ASSERT_OK(CacheFile::load(cache, path_of("layers")));
  EXPECT_EQ(cache.next_position(2).value(), 21);
  EXPECT_TRUE(CacheFile::to_bytes(cache).value() == CacheFile::to_bytes(made).value());
  EXPECT_TRUE(test::read_file(path_of("layers")) == text_of(CacheFile::to_bytes(cache).value()));
}

}  // namespace
}  // namespace kvcache::testing
