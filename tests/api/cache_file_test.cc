// Sequences in files: what comes back is what was there, bit for bit, in a cache of any page size
// and layout; what cannot be is refused by name, and changes nothing.
#include "kvcache/cache_file.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "kvcache/prefix.h"
#include "support/coded.h"
#include "support/paged.h"
#include "support/refusing_memory.h"
#include "support/stored.h"
#include "support/temp_dir.h"

namespace kvcache::testing {
namespace {

using test::read_file;
using test::TempDir;

constexpr RowFormat kF16 = plain(DType::kF16);

LayerSpec spec_of(const RowFormat& k, const RowFormat& v, Life life = {}) {
  return LayerSpec::kv(2, 64, 32, k, v).living(life);
}
Life window(std::int64_t tokens, std::int32_t sinks = 0) {
  Life life;
  life.window = tokens;
  life.sink_tokens = sinks;
  return life;
}
Life chunk(std::int64_t tokens) {
  Life life;
  life.chunk = tokens;
  return life;
}

// Every kind of life, and of rows.
std::vector<LayerSpec> mixed_layers() {
  return {spec_of(kF16, plain(DType::kBF16)), spec_of(kF16, coded(RowFormat::kInt8), window(9)),
          spec_of(coded(RowFormat::kInt4), coded(RowFormat::kLm4), window(20, 3)),
          spec_of(coded(RowFormat::kQ8_0), kF16), spec_of(kF16, kF16, chunk(8))};
}

std::int64_t coded_rows(const std::vector<std::byte>& bytes) {
  return CacheFile::over(bytes)->info().coded;
}

// What a sequence is after `bytes`, in a cache of that config; it must equal `seq` of `from`.
void expect_loads(const StoredCache& from, SequenceId seq, const CacheConfig& config) {
  StoredCache into(config);
  const std::vector<std::byte> bytes = from.bytes(seq);
  const CacheFile file = CacheFile::over(bytes).value();
  const auto loaded = file.load(into.cache);
  ASSERT_OK(loaded.status());
  EXPECT_EQ(difference(from, seq, into, *loaded), "");
  EXPECT_EQ(into.bytes(*loaded), bytes);
  ASSERT_OK(into.cache.check_invariants());
  EXPECT_EQ(into.cache.stats().rows_encoded, 0);
  ASSERT_OK(into.cache.release(*loaded));
  EXPECT_EQ(into.cache.nbytes(), 0);
  ASSERT_OK(into.cache.check_invariants());
}

TEST(CacheFile, EveryFormComesBackInEveryLayoutAndPageSize) {
  std::vector<RowFormat> formats = {plain(DType::kF32), kF16, plain(DType::kBF16)};
  for (const FormCase& form : coded_forms()) formats.push_back(form.format);
  for (std::size_t i = 0; i < formats.size(); ++i) {
    const RowFormat& k = formats[i];
    const RowFormat& v = formats[(i + 1) % formats.size()];
    for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
      StoredCache from(stored_config({spec_of(k, v), spec_of(v, v)}, 16, layout));
      const SequenceId seq = from.sequence(7, 61);
      for (const std::int64_t page_size : {1, 5, 16, 64, 256}) {
        for (const Layout other : {Layout::kHND, Layout::kNHD}) {
          SCOPED_TRACE(std::string(name_of(k.kind)) + " pages of " + std::to_string(page_size));
          expect_loads(from, seq, stored_config(from.config.layers, page_size, other));
        }
      }
    }
  }
}

TEST(CacheFile, OddHeadSizesAndEveryLengthComeBack) {
  for (const std::int64_t dim : {1, 7, 129, 300}) {
    StoredCache from(stored_config({LayerSpec::kv(3, dim, 5, coded(RowFormat::kInt8), kF16)}, 4));
    for (const std::int64_t length : {0, 1, 3, 4, 5, 255, 256, 257, 600}) {
      const SequenceId seq = from.sequence(1, length);
      expect_loads(from, seq, stored_config(from.config.layers, 3, Layout::kNHD));
      ASSERT_OK(from.cache.release(seq));
    }
  }
}

TEST(CacheFile, WindowsSinksAndChunksHaveTheRowsTheyHeld) {
  for (const std::int64_t length : {1, 3, 8, 9, 16, 33, 300}) {
    StoredCache from(stored_config(mixed_layers(), 4));
    const SequenceId seq = from.sequence(1, length);
    for (const std::int64_t page_size : {1, 4, 16}) {
      SCOPED_TRACE(std::to_string(length) + " tokens, pages of " + std::to_string(page_size));
      expect_loads(from, seq, stored_config(mixed_layers(), page_size, Layout::kNHD));
    }
  }
}

// What a sequence does next is what it would have done.
TEST(CacheFile, ASequenceGoesOnAsItWouldHave) {
  for (const std::int64_t residual : {0, 6}) {
    std::vector<LayerSpec> layers = mixed_layers();
    if (residual > 0) layers = {layers[0], layers[3], spec_of(coded(RowFormat::kInt8), kF16)};
    StoredCache from(stored_config(layers, 4, Layout::kHND, residual));
    StoredCache into(stored_config(layers, 4, Layout::kNHD, residual));
    const SequenceId seq = from.sequence(1, 45);
    const std::vector<std::byte> bytes = from.bytes(seq);
    const SequenceId loaded = CacheFile::over(bytes)->load(into.cache).value();
    for (std::int32_t i = 0; i < 40; ++i) {
      const std::vector<std::int32_t> ids(static_cast<std::size_t>(1 + i % 3), 900 + i);
      ASSERT_OK(from.append(seq, ids));
      ASSERT_OK(into.append(loaded, ids));
      ASSERT_EQ(difference(from, seq, into, loaded), "") << i;
      ASSERT_OK(into.cache.check_invariants());
    }
    EXPECT_EQ(into.bytes(loaded), from.bytes(seq));
  }
}

TEST(CacheFile, PlainTailsOfCodedRowsComeBackAsTheyAre) {
  const std::vector<LayerSpec> layers = {spec_of(coded(RowFormat::kInt4), coded(RowFormat::kInt8)),
                                         spec_of(kF16, coded(RowFormat::kLm4)),
                                         spec_of(kF16, kF16)};
  for (const std::int64_t page_size : {4, 16}) {
    StoredCache from(stored_config(layers, page_size, Layout::kHND, 10));
    const SequenceId seq = from.sequence(1, 61);
    for (const std::int64_t other : {3, 4, 16}) {
      for (const std::int64_t residual : {5, 10, 40}) {
        expect_loads(from, seq, stored_config(layers, other, Layout::kNHD, residual));
      }
    }
    // And go on to be coded, once.
    StoredCache into(stored_config(layers, 3, Layout::kHND, 5));
    const std::vector<std::byte> bytes = from.bytes(seq);
    const SequenceId loaded = CacheFile::over(bytes)->load(into.cache).value();
    ASSERT_OK(into.append(loaded, std::vector<std::int32_t>(20, 3)));
    ASSERT_OK(into.cache.check_invariants());
    EXPECT_EQ(coded_rows(into.bytes(loaded)), 75);
    EXPECT_EQ(into.cache.stats().rows_encoded, 3 * (75 - CacheFile::over(bytes)->info().coded));
  }
}

TEST(CacheFile, PlainTailsNeedACacheThatHasAPlaceForThem) {
  const std::vector<LayerSpec> layers = {spec_of(coded(RowFormat::kInt8), kF16)};
  StoredCache from(stored_config(layers, 4, Layout::kHND, 10));
  StoredCache into(stored_config(layers, 4));
  const std::vector<std::byte> bytes = from.bytes(from.sequence(1, 61));
  const Status status = CacheFile::over(bytes)->load(into.cache).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("residual_tokens: found 0"), std::string::npos)
      << status.message();
  // All codes have one.
  StoredCache coded_all(stored_config(layers, 4));
  expect_loads(coded_all, coded_all.sequence(1, 30), stored_config(layers, 8, Layout::kHND, 7));
}

// A window that was wider when it was written, or held more.
TEST(CacheFile, RowsThatTheCacheWouldHaveDroppedAreLeftOut) {
  const std::vector<LayerSpec> layers = {spec_of(kF16, kF16, window(8, 6)), spec_of(kF16, kF16)};
  CacheConfig wide = stored_config(layers, 4);
  wide.rewind_tokens = 30;
  for (const std::int64_t length : {3, 8, 12, 40, 64}) {
    StoredCache from(wide);
    const std::vector<std::byte> bytes = from.bytes(from.sequence(5, length));
    for (const std::int64_t page_size : {1, 4, 16}) {
      StoredCache into(stored_config(layers, page_size));
      const SequenceId loaded = CacheFile::over(bytes)->load(into.cache).value();
      const SequenceId same = into.sequence(5, length);
      EXPECT_EQ(difference(into, loaded, into, same), "") << length;
      ASSERT_OK(into.cache.check_invariants());
    }
  }
}

TEST(CacheFile, PagesOfKnownIdsAreFoundByAPrefixCache) {
  std::vector<std::int32_t> ids(45);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i) + 1;
  std::vector<std::int32_t> text = ids;
  text.push_back(77);
  const PrefixNamespace space = namespace_of({"model", "tokenizer"});
  for (const bool windows : {false, true}) {
    CacheConfig config = stored_config({spec_of(kF16, kF16), spec_of(kF16, kF16)}, 4);
    if (windows) config.layers[1].life = window(14, 4);  // rows 0 .. 3, and from 32 on
    StoredCache from(config);
    const SequenceId seq = from.cache.open().value();
    ASSERT_OK(from.append(seq, ids));
    const std::vector<std::byte> bytes = from.bytes(seq, space);
    const SequenceId longer = from.cache.fork(seq, 45).value();
    ASSERT_OK(from.append(longer, {78, 79}));
    config.prefixes = true;
    for (const std::int64_t page_size : {2, 4, 16}) {
      config.page_size = page_size;
      StoredCache into(config);
      PrefixCache prefixes = PrefixCache::create(into.cache).value();
      const SequenceId loaded = CacheFile::over(bytes)->load(into.cache, space).value();
      ASSERT_OK(prefixes.check_invariants());
      ASSERT_OK(into.cache.release(loaded));
      ASSERT_OK(prefixes.check_invariants());
      const PrefixHandle found = prefixes.match(text, space).value();
      // A page of which a window's rows or the sinks are a part alone is not for others.
      const bool whole = !windows || page_size <= 4;
      EXPECT_EQ(found.length(), whole ? 45 : 0);
      EXPECT_EQ(prefixes.match(text).value().length(), 0);
      if (!whole) continue;
      const SequenceId opened = prefixes.open(found).value();
      ASSERT_OK(into.append(opened, {78, 79}));
      EXPECT_EQ(difference(from, longer, into, opened), "");
      ASSERT_OK(into.cache.check_invariants());
      ASSERT_OK(prefixes.check_invariants());
    }
  }
}

TEST(CacheFile, TokensAreKeptAsFarAsTheyAreKnown) {
  StoredCache from(stored_config({spec_of(kF16, kF16)}, 4));
  const SequenceId seq = from.sequence(10, 6);
  ASSERT_OK(from.append(seq, {40, 41}, false));
  const std::vector<std::byte> bytes = from.bytes(seq);
  const CacheFile file = CacheFile::over(bytes).value();
  EXPECT_EQ(file.info().length, 8);
  EXPECT_EQ(file.info().tokens, (std::vector<std::int32_t>{10, 11, 12, 13, 14, 15}));
  StoredCache into(stored_config({spec_of(kF16, kF16)}, 16));
  EXPECT_EQ(into.bytes(file.load(into.cache).value()), bytes);
}

TEST(CacheFile, SavesOfForksAndOpenStepsAreTheCommittedRows) {
  StoredCache from(stored_config({spec_of(kF16, kF16)}, 4));
  const SequenceId seq = from.sequence(10, 10);
  const SequenceId fork = from.cache.fork(seq, 6).value();
  expect_loads(from, fork, stored_config(from.config.layers, 8));
  const std::vector<std::byte> before = from.bytes(seq);
  const Append append{seq, 3};
  PagedCache::Step step = from.cache.reserve({&append, 1}).value();
  ASSERT_OK(from.write(step, {1, 2, 3}));
  EXPECT_EQ(from.bytes(seq), before);
}

TEST(CacheFile, InfoSaysWhatIsThere) {
  StoredCache from(stored_config(mixed_layers(), 4));
  const PrefixNamespace space = namespace_of({"a"}, 5);
  const std::vector<std::byte> bytes = from.bytes(from.sequence(1, 300), space);
  const CacheFile file = CacheFile::over(bytes).value();
  EXPECT_EQ(file.info().version, 1);
  EXPECT_EQ(file.info().space, space);
  EXPECT_EQ(file.info().length, 300);
  EXPECT_EQ(file.info().layers, mixed_layers());
  EXPECT_EQ(file.info().first_positions, (std::vector<std::int64_t>{0, 292, 281, 0, 296}));
  EXPECT_EQ(file.info().coded, 300);
  EXPECT_EQ(file.info().file_bytes, static_cast<std::int64_t>(bytes.size()));
  EXPECT_EQ(static_cast<std::int64_t>(file.info().sums.size()),
            (300 + file.info().block_tokens - 1) / file.info().block_tokens);
  EXPECT_OK(file.verify());
}

// --- Files of the system. ---

TEST(CacheFile, AFileIsWrittenAndReadByItsName) {
  const TempDir folder;
  const std::string path = folder.path() + "/prompt.kvc";
  StoredCache from(stored_config(mixed_layers(), 4));
  const SequenceId seq = from.sequence(1, 50);
  ASSERT_OK(CacheFile::save(from.cache, seq, path));
  StoredCache into(stored_config(mixed_layers(), 64));
  const auto loaded = CacheFile::load(into.cache, path);
  ASSERT_OK(loaded.status());
  EXPECT_EQ(difference(from, seq, into, *loaded), "");
  const std::vector<std::byte> bytes = from.bytes(seq);
  EXPECT_EQ(read_file(path),
            std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

TEST(CacheFile, WhatIsNoSuchFileIsRefusedByName) {
  const TempDir folder;
  StoredCache into(stored_config({spec_of(kF16, kF16)}, 4));
  const auto expect = [&](const std::string& path, StatusCode code, const std::string& words) {
    const Status status = CacheFile::load(into.cache, path).status();
    EXPECT_EQ(status.code(), code) << status.to_string();
    EXPECT_NE(status.message().find(words), std::string::npos) << status.message();
    EXPECT_EQ(status.message().find(path), 0u) << status.message();
  };
  expect(folder.path() + "/none", StatusCode::kNotFound, "No such file");
  expect(folder.path(), StatusCode::kIo, "regular file");
  expect(folder.write("empty", ""), StatusCode::kCorrupt, "file: found 0");
  expect(folder.write("text", std::string(9000, 'x')), StatusCode::kCorrupt, "magic");
  EXPECT_EQ(into.cache.stats().sequences, 0);
}

TEST(CacheFile, AnotherNamespaceIsRefusedByName) {
  StoredCache from(stored_config({spec_of(kF16, kF16)}, 4));
  const std::vector<std::byte> bytes = from.bytes(from.sequence(1, 5), namespace_of({"a"}));
  const CacheFile file = CacheFile::over(bytes).value();
  for (const PrefixNamespace& other :
       {PrefixNamespace{}, namespace_of({"b"}), namespace_of({"a"}, 1)}) {
    const Status status = file.load(from.cache, other).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message().find("namespace: found "), 0u) << status.message();
  }
  EXPECT_OK(file.load(from.cache, namespace_of({"a"})).status());
}

TEST(CacheFile, OtherLayersAreRefusedByName) {
  const LayerSpec spec = LayerSpec::kv(2, 64, 64, coded(RowFormat::kInt8), kF16);
  StoredCache from(stored_config({spec, spec}, 4));
  const std::vector<std::byte> bytes = from.bytes(from.sequence(1, 5));
  const auto with = [&](auto&& change) {
    LayerSpec changed = spec;
    change(changed);
    return std::vector<LayerSpec>{spec, changed};
  };
  const std::pair<std::vector<LayerSpec>, const char*> cases[] = {
      {{spec}, "layers: found 2, expected 1"},
      {with([](LayerSpec& s) { s.life.window = 3; }), "layers[1].window: found 0, expected 3"},
      {with([](LayerSpec& s) { s.life.chunk = 3; }), "layers[1].chunk: found 0, expected 3"},
      {with([](LayerSpec& s) { s.buffers[0].heads = s.buffers[1].heads = 4; }),
       "layers[1].buffers[0].heads: found 2, expected 4"},
      {with([](LayerSpec& s) { s.buffers[1].dim = 32; }),
       "layers[1].buffers[1].dim: found 64, expected 32"},
      {with([](LayerSpec& s) { s.buffers[1].format.dtype = DType::kBF16; }),
       "layers[1].buffers[1].dtype: found f16, expected bf16"},
      {with([](LayerSpec& s) { s.buffers[0].format = coded(RowFormat::kInt4); }),
       "layers[1].buffers[0].form: found int8, expected int4"},
      {with([](LayerSpec& s) { s.buffers[0].format.rotate = true; }),
       "layers[1].buffers[0].rotate: found 0, expected 1"},
  };
  for (const auto& [layers, words] : cases) {
    StoredCache into(stored_config(layers, 4));
    const Status status = CacheFile::over(bytes)->load(into.cache).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), words);
  }
}

// --- Refusals of room. ---

TEST(CacheFile, WhereThereIsNoRoomNothingIsChanged) {
  CacheConfig config = stored_config({spec_of(kF16, kF16), spec_of(kF16, kF16, window(4))}, 4);
  config.num_pages = 8;
  StoredCache from(stored_config(config.layers, 4));
  StoredCache into(config);
  const SequenceId other = into.sequence(1, 16);
  const std::string rows = into.rows(0, other);
  const auto expect = [&](std::int64_t length, StatusCode code) {
    const SequenceId seq = from.sequence(1, length);
    const std::vector<std::byte> bytes = from.bytes(seq);
    const std::int64_t reserved = into.cache.reserved_bytes();
    const PagedStats before = into.cache.stats();
    const auto loaded = CacheFile::over(bytes)->load(into.cache);
    EXPECT_EQ(loaded.status().code(), code) << loaded.status().to_string();
    ASSERT_OK(into.cache.check_invariants());
    if (loaded.ok()) {
      ASSERT_OK(into.cache.release(*loaded));
      return;
    }
    EXPECT_EQ(into.cache.reserved_bytes(), reserved);
    EXPECT_EQ(into.cache.stats().pages_held, before.pages_held);
    EXPECT_EQ(into.cache.stats().open_steps, 0);
    EXPECT_EQ(into.rows(0, other), rows);
  };
  expect(33, StatusCode::kNeverFits);
  expect(20, StatusCode::kRetryLater);
  expect(16, StatusCode::kOk);
}

TEST(CacheFile, AWindowedSequenceNeedsNoMoreThanItHolds) {
  CacheConfig config = stored_config({spec_of(kF16, kF16, window(8))}, 4);
  StoredCache from(config);
  config.num_pages = 3;
  // Of a thousand ids three pages have no room for: then none are kept.
  expect_loads(from, from.sequence(1, 1000, false), config);
  StoredCache into(config);
  const std::vector<std::byte> bytes = from.bytes(from.sequence(1, 1000));
  const SequenceId loaded = CacheFile::over(bytes)->load(into.cache).value();
  const std::vector<std::byte> again = into.bytes(loaded);
  EXPECT_TRUE(CacheFile::over(again)->info().tokens.empty());
}

TEST(CacheFile, ARefusalOfMemoryAtAnyCallChangesNothing) {
  RefusingMemory memory;
  CacheConfig config = stored_config(mixed_layers(), 4);
  StoredCache from(config);
  const std::vector<std::byte> bytes = from.bytes(from.sequence(1, 60));
  const CacheFile file = CacheFile::over(bytes).value();
  config.memory = &memory;
  bool refused = true;
  int refusals = 0;
  for (std::int64_t n = 1; refused; ++n) {
    StoredCache into(config);
    const SequenceId other = into.sequence(3, 9);
    const std::int64_t committed = memory.committed();
    memory.refuse(n);
    const auto loaded = file.load(into.cache);
    refused = memory.refused();
    memory.refuse(0);
    ASSERT_OK(into.cache.check_invariants());
    if (!refused) {
      EXPECT_OK(loaded.status());
      continue;
    }
    ++refusals;
    EXPECT_EQ(loaded.status().code(), StatusCode::kOutOfMemory);
    EXPECT_EQ(memory.committed(), committed);
    EXPECT_EQ(into.cache.seq_length(other).value(), 9);
    EXPECT_EQ(into.cache.stats().sequences, 1);
  }
  EXPECT_GT(refusals, 2);
}

TEST(CacheFile, ABudgetHoldsWhatIsLoaded) {
  CacheConfig config = stored_config({spec_of(kF16, kF16)}, 4);
  StoredCache from(config);
  const std::vector<std::byte> bytes = from.bytes(from.sequence(1, 64));
  config.num_pages = 0;
  config.budget_bytes = 20000;
  StoredCache into(config);
  std::vector<SequenceId> loaded;
  for (;;) {
    const auto more = CacheFile::over(bytes)->load(into.cache);
    ASSERT_OK(into.cache.check_invariants());
    EXPECT_LE(into.cache.reserved_bytes(), config.budget_bytes);
    if (!more.ok()) {
      EXPECT_EQ(more.status().code(),
                loaded.empty() ? StatusCode::kNeverFits : StatusCode::kRetryLater);
      break;
    }
    loaded.push_back(*more);
  }
  config.budget_bytes = 100000;
  StoredCache larger(config);
  loaded.clear();
  for (;;) {
    const auto more = CacheFile::over(bytes)->load(larger.cache);
    ASSERT_OK(larger.cache.check_invariants());
    EXPECT_LE(larger.cache.reserved_bytes(), config.budget_bytes);
    if (!more.ok()) break;
    loaded.push_back(*more);
  }
  EXPECT_GE(loaded.size(), 2u);
}

}  // namespace
}  // namespace kvcache::testing
