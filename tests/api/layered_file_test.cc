// Layered caches in files: rows, lengths and positions come back bit for bit, and what does not fit
// is refused by name and changes nothing.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kvcache/cache_file.h"
#include "kvcache/full_cache.h"
#include "support/damage.h"
#include "support/failing_files.h"
#include "support/layered.h"
#include "support/temp_dir.h"

namespace kvcache::testing {
namespace {

using test::read_file;
using test::TempDir;

HostTensor random_rows(DType dtype, Layout layout, std::int64_t batch, std::int64_t heads,
                       std::int64_t tokens, std::int64_t dim, int seed) {
  const bool head_first = layout == Layout::kHND;
  HostTensor rows(dtype, {batch, head_first ? heads : tokens, head_first ? tokens : heads, dim});
  std::minstd_rand random(static_cast<unsigned>(seed) + 1);
  for (std::int64_t i = 0; i < batch * heads * tokens * dim; ++i) {
    rows.set(i, static_cast<float>(random() % 2001) / 500.0f - 2.0f);
  }
  return rows;
}

void put(Cache& cache, std::int64_t layer, std::int64_t batch, std::int64_t tokens, int seed,
         DType dtype = DType::kF32) {
  const HostTensor key = random_rows(dtype, cache.layout(), batch, 2, tokens, 8, seed);
  const HostTensor value = random_rows(dtype, cache.layout(), batch, 2, tokens, 4, seed + 1);
  ASSERT_OK(cache.update(key, value, layer).status());
}

// Layers that differ: of 300 tokens, never used, of one token, cropped.
void fill(Cache& cache) {
  put(cache, 0, 3, 300, 1);
  put(cache, 2, 1, 1, 2);
  put(cache, 3, 2, 40, 3);
  ASSERT_OK(cache.crop(290));
}

std::vector<LayerState> layers_of(const Cache& cache) { return state_of(cache).layers; }

std::vector<std::byte> bytes_of(const Cache& cache, const PrefixNamespace& space = {}) {
  return CacheFile::to_bytes(cache, space).value();
}

TEST(LayeredFile, EveryLayerComesBackInAnyKindAndLayout) {
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    CacheOptions options;
    options.layout = layout;
    const auto from = make_layered(LayeredKind::kDynamic, options);
    fill(*from);
    const std::vector<std::byte> bytes = bytes_of(*from);
    for (const LayeredKind kind : {LayeredKind::kDynamic, LayeredKind::kStatic}) {
      for (const Layout other : {Layout::kHND, Layout::kNHD}) {
        options.layout = other;
        const auto into = make_layered(kind, options, 512);
        put(*into, 1, 5, 7, 9);  // which goes
        ASSERT_OK(CacheFile::over(bytes)->load(*into));
        EXPECT_EQ(bytes_of(*into), bytes);
        if (other == layout) {
          EXPECT_EQ(layers_of(*into), layers_of(*from));
        }
        EXPECT_EQ(into->next_position(0).value(), 300);
        EXPECT_EQ(into->seq_length(1).value(), 0);
        put(*into, 0, 3, 2, 11);  // goes on
        EXPECT_EQ(into->seq_length(0).value(), 292);
      }
    }
  }
}

TEST(LayeredFile, TypesAreKept) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const auto from = make_layered(LayeredKind::kDynamic);
    put(*from, 0, 2, 20, 1, dtype);
    const std::vector<std::byte> bytes = bytes_of(*from);
    const auto into = make_layered(LayeredKind::kDynamic);
    ASSERT_OK(CacheFile::over(bytes)->load(*into));
    EXPECT_EQ(into->get(0)->key.dtype, dtype);
    EXPECT_EQ(bytes_of(*into), bytes);
  }
}

TEST(LayeredFile, CodesMoveAsTheyAre) {
  for (const RowFormat::Kind keys : {RowFormat::kInt8, RowFormat::kLm4, RowFormat::kStrided}) {
    for (const RowFormat::Kind values :
         {RowFormat::kFp8E4M3, RowFormat::kInt4, RowFormat::kQ4_0, RowFormat::kStrided}) {
      CacheOptions options;
      if (keys != RowFormat::kStrided) options.keys = coded(keys);
      if (values != RowFormat::kStrided) options.values = coded(values);
      options.dtype = DType::kBF16;
      options.layout = Layout::kNHD;
      const auto from = make_layered(LayeredKind::kDynamic, options);
      const auto rows = [&](Layout layout, std::int64_t tokens, int seed) {
        return random_rows(DType::kF32, layout, 3, 2, tokens, 64, seed);
      };
      ASSERT_OK(from->append(rows(Layout::kNHD, 300, 1), rows(Layout::kNHD, 300, 2), 3));
      ASSERT_OK(from->crop(277));
      const std::vector<std::byte> bytes = bytes_of(*from);
      options.layout = Layout::kHND;
      const auto into = make_layered(LayeredKind::kStatic, options, 512);
      ASSERT_OK(CacheFile::over(bytes)->load(*into));
      EXPECT_EQ(into->rows_encoded(), 0);
      EXPECT_EQ(bytes_of(*into), bytes);
      const auto again = make_layered(LayeredKind::kDynamic, options);
      ASSERT_OK(CacheFile::over(bytes_of(*into))->load(*again));
      EXPECT_EQ(layers_of(*again), layers_of(*into));
      if (keys == RowFormat::kStrided) continue;
      options.keys = coded(RowFormat::kQ8_0);
      const Status other =
          CacheFile::over(bytes)->load(*make_layered(LayeredKind::kDynamic, options));
      EXPECT_EQ(other.message().find("layers[3].buffers[0].form: found "), 0u) << other.message();
    }
  }
}

TEST(LayeredFile, ACacheWithoutRowsComesBack) {
  for (const LayeredKind kind : {LayeredKind::kDynamic, LayeredKind::kStatic}) {
    const auto from = make_layered(kind);
    const std::vector<std::byte> bytes = bytes_of(*from);
    const auto into = make_layered(LayeredKind::kDynamic);
    put(*into, 0, 1, 3, 1);
    ASSERT_OK(CacheFile::over(bytes)->load(*into));
    EXPECT_EQ(into->seq_length(0).value(), 0);
    // One that is empty again keeps its shape.
    const auto emptied = make_layered(kind);
    put(*emptied, 0, 2, 3, 1);
    ASSERT_OK(emptied->rewind(3));
    ASSERT_OK(CacheFile::over(bytes_of(*emptied))->load(*into));
    EXPECT_EQ(layers_of(*into)[0], layers_of(*emptied)[0]);
  }
}

TEST(LayeredFile, AFileIsWrittenAndReadByItsName) {
  const TempDir folder;
  const std::string path = folder.path() + "/layers.kvc";
  const auto from = make_layered(LayeredKind::kDynamic);
  fill(*from);
  const PrefixNamespace space = namespace_of({"a model"});
  ASSERT_OK(CacheFile::save(*from, path, space));
  FullCache full = FullCache::create().value();
  put(full, 0, 1, 2, 5);
  const CacheState before = state_of(full);
  // It has one layer.
  const Status status = CacheFile::load(full, path, space);
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_EQ(status.message(), "layers: found 4, expected at most 1");
  EXPECT_EQ(state_of(full), before);
  const auto into = make_layered(LayeredKind::kDynamic);
  ASSERT_OK(CacheFile::load(*into, path, space));
  EXPECT_EQ(layers_of(*into), layers_of(*from));
  const CacheFile file = CacheFile::open(path).value();
  EXPECT_EQ(file.info().kind, CacheFileInfo::Kind::kLayers);
  EXPECT_EQ(file.info().batches, (std::vector<std::int64_t>{3, 0, 1, 2}));
  EXPECT_EQ(file.info().lengths, (std::vector<std::int64_t>{290, 0, 1, 40}));
  EXPECT_EQ(file.info().first_positions, (std::vector<std::int64_t>{10, 0, 0, 0}));
  EXPECT_EQ(file.info().length, 290);
}

TEST(LayeredFile, WhatDoesNotFitIsRefusedByNameAndChangesNothing) {
  const auto from = make_layered(LayeredKind::kDynamic);
  fill(*from);
  const std::vector<std::byte> bytes = bytes_of(*from, namespace_of({"a"}));
  const CacheFile file = CacheFile::over(bytes).value();
  const auto expect = [&](Cache& cache, const PrefixNamespace& space, StatusCode code,
                          const std::string& words) {
    put(cache, 0, 1, 3, 4, DType::kF16);
    const CacheState before = state_of(cache);
    const Status status = file.load(cache, space);
    EXPECT_EQ(status.code(), code) << status.to_string();
    EXPECT_EQ(status.message().find(words), 0u) << status.message();
    EXPECT_EQ(state_of(cache), before);
  };
  CacheOptions half;
  half.dtype = DType::kF16;
  expect(*make_layered(LayeredKind::kDynamic), {}, StatusCode::kInvalidArgument, "namespace: ");
  expect(*make_layered(LayeredKind::kDynamic, half), namespace_of({"a"}),
         StatusCode::kInvalidArgument, "layers[0].buffers[0].dtype: found f32, expected f16");
  expect(*make_layered(LayeredKind::kStatic, {}, 289), namespace_of({"a"}), StatusCode::kOutOfRange,
         "layers[0].length: found 290, expected at most the capacity");
  expect(*make_layered(LayeredKind::kStatic, {}, 500, 3), namespace_of({"a"}),
         StatusCode::kOutOfRange, "layers: found 4, expected at most 3");
  CacheConfig config = CacheConfig::uniform(1, 2, 8);
  config.num_pages = 4;
  PagedCache paged = PagedCache::create(config).value();
  EXPECT_EQ(file.load(paged, namespace_of({"a"})).status().message(),
            "kind: found 3, expected 1, a sequence");
}

TEST(LayeredFile, DamageIsRefusedOrGivesTheSameRows) {
  const auto from = make_layered(LayeredKind::kDynamic);
  fill(*from);
  const std::vector<std::byte> bytes = bytes_of(*from);
  std::mt19937_64 random(5);
  const auto into = make_layered(LayeredKind::kDynamic);
  int loaded = 0;
  for (int i = 0; i < 1500; ++i) {
    const Bytes hurt = damaged(bytes, random);
    const auto file = CacheFile::over(hurt);
    const Status status = file.ok() ? file->load(*into) : file.status();
    if (!status.ok()) {
      EXPECT_NE(status.message().find(": found "), std::string::npos) << status.message();
      continue;
    }
    // Whatever a header with the right sum says: written again, it is that file.
    ++loaded;
    EXPECT_EQ(bytes_of(*into, file->info().space), hurt);
  }
  EXPECT_LT(loaded, 1000);
}

TEST(LayeredFile, WhenAnyCallFailsTheCacheAndTheOldFileStay) {
  const TempDir folder;
  const std::string path = folder.path() + "/layers.kvc";
  const auto from = make_layered(LayeredKind::kDynamic);
  put(*from, 0, 1, 5, 1);
  ASSERT_OK(CacheFile::save(*from, path));
  const std::string old = read_file(path);
  put(*from, 0, 1, 300, 2);
  FailingFiles files;
  const internal::FilesInPlace in_place(files);
  for (int k = 0;; ++k) {
    files.fail_at(k);
    const Status status = CacheFile::save(*from, path);
    if (files.calls() <= k) break;
    if (status.ok()) continue;
    if (status.message().find("sync_directory") == std::string::npos) {
      EXPECT_EQ(read_file(path), old);
    }
  }
  const auto into = make_layered(LayeredKind::kDynamic);
  put(*into, 1, 2, 3, 3);
  const CacheState before = state_of(*into);
  for (int k = 0;; ++k) {
    files.fail_at(k);
    const Status status = CacheFile::load(*into, path);
    if (files.calls() <= k) break;
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(state_of(*into), before);
  }
  EXPECT_EQ(layers_of(*into), layers_of(*from));
}

}  // namespace
}  // namespace kvcache::testing
