// A sequence whose layers lie in several caches, and one that keeps its id.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kvcache/cache_file.h"
#include "support/paged.h"
#include "support/stored.h"
#include "support/temp_dir.h"

namespace kvcache::testing {
namespace {

using test::TempDir;

std::vector<LayerSpec> any_layers() {
  Life window;
  window.window = 9;
  return {LayerSpec::kv(2, 32, 32, coded(RowFormat::kInt8), plain(DType::kF16)),
          LayerSpec::kv(1, 16, 8, plain(DType::kBF16), plain(DType::kF32)).living(window),
          LayerSpec::kv(2, 32, 32, coded(RowFormat::kInt4), coded(RowFormat::kInt4))};
}

// A cache for each layer, filled alike.
struct Parts {
  std::vector<StoredCache> caches;
  std::vector<SequenceId> seqs;

  explicit Parts(std::int64_t page_size = 4) {
    for (const LayerSpec& spec : any_layers()) {
      caches.emplace_back(stored_config({spec}, page_size));
    }
  }
  void fill(std::int64_t length) {
    seqs.clear();
    for (StoredCache& cache : caches) seqs.push_back(cache.sequence(1, length));
  }
  std::vector<CacheFile::Part> parts() const {
    std::vector<CacheFile::Part> all;
    for (std::size_t i = 0; i < caches.size(); ++i) all.push_back({&caches[i].cache, seqs[i]});
    return all;
  }
  std::vector<PagedCache*> targets() {
    std::vector<PagedCache*> all;
    for (StoredCache& cache : caches) all.push_back(&cache.cache);
    return all;
  }
};

TEST(CacheFileParts, LayersOfSeveralCachesAreOneSequence) {
  const TempDir folder;
  const std::string path = folder.path() + "/parts.kvc";
  Parts from;
  from.fill(45);
  const std::vector<std::int32_t> ids = {7, 8, 9};
  ASSERT_OK(CacheFile::save(from.parts(), path, namespace_of({"a"}), ids));
  const CacheFile file = CacheFile::open(path).value();
  EXPECT_EQ(file.info().layers, any_layers());
  EXPECT_EQ(file.info().tokens, ids);
  EXPECT_EQ(file.info().length, 45);
  for (const std::int64_t page_size : {1, 16}) {
    Parts into(page_size);
    const auto loaded = file.load(into.targets(), namespace_of({"a"}));
    ASSERT_OK(loaded.status());
    for (std::size_t i = 0; i < into.caches.size(); ++i) {
      EXPECT_EQ(difference(from.caches[i], from.seqs[i], into.caches[i], (*loaded)[i]), "");
      ASSERT_OK(into.caches[i].cache.check_invariants());
    }
  }
  // A file of one cache of all layers is the same.
  StoredCache whole(stored_config(any_layers(), 16));
  const auto loaded = file.load(whole.cache, namespace_of({"a"}));
  ASSERT_OK(loaded.status());
  EXPECT_EQ(whole.cache.seq_length(*loaded).value(), 45);
}

TEST(CacheFileParts, WhatDoesNotFitIsRefusedByName) {
  const TempDir folder;
  const std::string path = folder.path() + "/parts.kvc";
  EXPECT_EQ(CacheFile::save(std::span<const CacheFile::Part>(), path).message(),
            "parts: found none, expected at least one");
  Parts from;
  from.fill(20);
  auto parts = from.parts();
  parts[2].seq = from.caches[2].sequence(5, 21);
  EXPECT_EQ(CacheFile::save(parts, path).message(), "layers[2].length: found 21, expected 20");
  const std::vector<std::int32_t> ids(21);
  EXPECT_EQ(CacheFile::save(from.parts(), path, {}, ids).message(),
            "tokens: found 21, expected at most the length, 20");
  ASSERT_OK(CacheFile::save(from.parts(), path));
  Parts into;
  auto targets = into.targets();
  targets.pop_back();
  const CacheFile file = CacheFile::open(path).value();
  EXPECT_EQ(file.load(targets).status().message(), "layers: found 3, expected 2");
  targets.push_back(targets.front());
  EXPECT_EQ(file.load(targets).status().message().find("layers[2].buffers[0].form"), 0u);
}

// A part whose newest rows are plain beside one whose rows are all coded, in either order.
TEST(CacheFileParts, PartsOfWhichOtherRowsAreCodedAreRefused) {
  const TempDir folder;
  const std::string path = folder.path() + "/parts.kvc";
  const LayerSpec spec = LayerSpec::kv(8, 64, 64, coded(RowFormat::kInt8), coded(RowFormat::kInt8));
  const LayerSpec plain_rows = LayerSpec::kv(1, 8, 8, plain(DType::kF16), plain(DType::kF16));
  for (const std::int64_t residual : {20, 300}) {
    StoredCache all_coded(stored_config({spec}, 16));
    StoredCache tail(stored_config({spec}, 16, Layout::kHND, residual));
    StoredCache none(stored_config({plain_rows}, 16));
    const CacheFile::Part parts[] = {{&all_coded.cache, all_coded.sequence(1, 256)},
                                     {&tail.cache, tail.sequence(1, 256)},
                                     {&none.cache, none.sequence(1, 256)}};
    const std::string some = std::to_string(residual == 20 ? 224 : 0);
    const CacheFile::Part one_way[] = {parts[2], parts[0], parts[1]};
    EXPECT_EQ(CacheFile::save(one_way, path).message(),
              "layers[2]: found " + some + " coded rows, expected 256, as layers before");
    const CacheFile::Part other_way[] = {parts[1], parts[2], parts[0]};
    EXPECT_EQ(CacheFile::save(other_way, path).message(),
              "layers[2]: found 256 coded rows, expected " + some + ", as layers before");
    for (const CacheFile::Part& alone : {parts[0], parts[1]}) {
      const CacheFile::Part with_plain[] = {parts[2], alone};
      ASSERT_OK(CacheFile::save(with_plain, path));
      ASSERT_OK(CacheFile::open(path)->verify());
    }
  }
}

TEST(CacheFileParts, WhereOneCacheHasNoRoomNoneIsChanged) {
  const TempDir folder;
  const std::string path = folder.path() + "/parts.kvc";
  Parts from;
  from.fill(60);
  ASSERT_OK(CacheFile::save(from.parts(), path));
  Parts into;
  CacheConfig config = into.caches[2].config;
  config.num_pages = 14;
  into.caches[2] = StoredCache(config);
  const auto loaded = CacheFile::open(path)->load(into.targets());
  EXPECT_EQ(loaded.status().code(), StatusCode::kNeverFits);
  for (const StoredCache& cache : into.caches) {
    EXPECT_EQ(cache.cache.stats().sequences, 0);
    EXPECT_EQ(cache.cache.stats().pages_held, 0);
    ASSERT_OK(cache.cache.check_invariants());
  }
}

TEST(CacheFileParts, ASequenceKeepsTheIdThatItHad) {
  StoredCache from(stored_config(any_layers(), 4));
  const SequenceId seq = from.sequence(1, 10), other = from.sequence(2, 3);
  EXPECT_EQ(from.cache.sequences().value(), (std::vector<SequenceId>{seq, other}));
  const std::vector<std::byte> bytes = from.bytes(seq);
  const CacheFile file = CacheFile::over(bytes).value();
  StoredCache into(stored_config(any_layers(), 8));
  EXPECT_EQ(file.load_as(seq, into.cache).value(), seq);
  EXPECT_EQ(difference(from, seq, into, seq), "");
  EXPECT_EQ(file.load_as(seq, into.cache).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(file.load_as(SequenceId{}, into.cache).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(file.load_as(SequenceId{-1}, into.cache).status().code(), StatusCode::kInvalidArgument);
  // One of another process may be far ahead; later ids are none that is open.
  const auto ahead = SequenceId{static_cast<std::int64_t>(other) + 1000};
  ASSERT_OK(file.load_as(ahead, into.cache).status());
  EXPECT_GT(into.cache.open().value(), ahead);
  // One so far that ids would run out behind it is refused, and those after it are as they were.
  const auto far = SequenceId{std::int64_t{1} << 61};
  const Status refused = file.load_as(far, into.cache).status();
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused.message().find("id: found 2305843009213693952, expected 1 .. "), 0u);
  EXPECT_LT(into.cache.open().value(), SequenceId{static_cast<std::int64_t>(ahead) + 1000});
  ASSERT_OK(into.cache.check_invariants());
}

}  // namespace
}  // namespace kvcache::testing
