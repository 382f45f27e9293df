// Files that are damaged, forged or half written, and systems that refuse: refused by name or equal
// rows, and an old file stays whole.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <utility>

#include "kvcache/cache_file.h"
#include "support/damage.h"
#include "support/failing_files.h"
#include "support/paged.h"
#include "support/stored.h"
#include "support/temp_dir.h"

namespace kvcache::testing {
namespace {

using internal::FileHeader;
using internal::StoredSequence;
using test::read_file;
using test::TempDir;

constexpr RowFormat kF16 = plain(DType::kF16);

std::vector<LayerSpec> few_layers() {
  Life window;
  window.window = 9;
  window.sink_tokens = 2;
  return {LayerSpec::kv(2, 16, 8, kF16, coded(RowFormat::kInt8)),
          LayerSpec::kv(1, 32, 32, coded(RowFormat::kInt4), kF16).living(window)};
}

// Layers that keep all tokens: coded ones, of which the newest rows are plain, and a plain one.
CacheConfig residual_config(std::int64_t page_size) {
  CacheConfig config =
      stored_config({LayerSpec::kv(2, 32, 32, coded(RowFormat::kInt8), coded(RowFormat::kInt8)),
                     LayerSpec::kv(1, 16, 16, kF16, kF16),
                     LayerSpec::kv(1, 32, 32, coded(RowFormat::kInt4), kF16)},
                    page_size);
  config.residual_tokens = 6;
  return config;
}

StoredSequence described(const Bytes& bytes) {
  return internal::read_header(internal::BytesFile(bytes)).value().seq;
}

// Loads or refuses; what is loaded has the rows of `seq`, unless it was forged with sums that fit.
void expect_refused_or_equal(const Bytes& bytes, bool forged, const StoredCache& from,
                             SequenceId seq, StoredCache& into, int* loads) {
  const auto file = CacheFile::over(bytes);
  if (!file.ok()) {
    EXPECT_NE(file.status().message().find(": found "), std::string::npos)
        << file.status().to_string();
    return;
  }
  const std::int64_t reserved = into.cache.reserved_bytes();
  const auto loaded = file->load(into.cache);
  if (!loaded.ok()) {
    EXPECT_NE(loaded.status().message().find(": found "), std::string::npos)
        << loaded.status().to_string();
    EXPECT_EQ(into.cache.stats().sequences, 0);
    EXPECT_EQ(into.cache.stats().open_steps, 0);
    EXPECT_EQ(into.cache.reserved_bytes(), reserved);
    return;
  }
  ++*loads;
  if (!forged) {
    EXPECT_EQ(difference(from, seq, into, *loaded), "");
  }
  ASSERT_OK(into.cache.check_invariants());
  ASSERT_OK(into.cache.release(*loaded));
}

void damage_many(const CacheConfig& written, const CacheConfig& config, int files) {
  StoredCache from(written);
  const SequenceId seq = from.sequence(1, 300);
  const Bytes bytes = from.bytes(seq);
  std::mt19937_64 random(7);
  int loads = 0;
  StoredCache into(config);
  for (int i = 0; i < files; ++i) {
    bool forged = false;
    const Bytes changed = damaged(bytes, random, &forged);
    expect_refused_or_equal(changed, forged, from, seq, into, &loads);
    if (::testing::Test::HasFailure()) FAIL() << "number " << i;
  }
  EXPECT_GT(loads, 0);  // of other ids, and edits that change nothing
}

TEST(CacheFileDamage, TenThousandDamagedFilesAreRefusedByNameOrLoadEqualRows) {
  damage_many(stored_config(few_layers(), 4), stored_config(few_layers(), 8), 8000);
}

TEST(CacheFileDamage, DamagedFilesWithPlainNewestRowsAreRefusedByNameOrLoadEqualRows) {
  damage_many(residual_config(4), residual_config(8), 2000);
}

TEST(CacheFileDamage, EveryTruncationIsRefused) {
  StoredCache from(stored_config(few_layers(), 4));
  const Bytes bytes = from.bytes(from.sequence(1, 20));
  for (std::size_t size = 0; size < bytes.size(); size += size < 200 ? 1 : 61) {
    EXPECT_EQ(CacheFile::over(std::span(bytes).first(size)).status().code(), StatusCode::kCorrupt)
        << size;
  }
}

TEST(CacheFileDamage, EveryBitOfEveryByteIsUnderASum) {
  StoredCache from(stored_config(few_layers(), 4));
  StoredCache into(stored_config(few_layers(), 4));
  const Bytes bytes = from.bytes(from.sequence(1, 20));
  for (std::size_t at = 0; at < bytes.size(); at += 1 + at % 7) {
    Bytes changed = bytes;
    changed[at] ^= std::byte{0x10};
    const auto file = CacheFile::over(changed);
    const Status status = file.ok() ? file->load(into.cache).status() : file.status();
    EXPECT_FALSE(status.ok()) << at;
    if (file.ok()) {
      EXPECT_EQ(file->verify().code(), StatusCode::kCorrupt);
      EXPECT_EQ(status.message(), "sum of block 0: found another, expected that of its bytes");
    }
  }
}

TEST(CacheFileDamage, OtherVersionsAndKindsAreUnsupportedByName) {
  StoredCache from(stored_config(few_layers(), 4));
  const Bytes bytes = from.bytes(from.sequence(1, 5));
  for (const auto& [at, words] : {std::pair{8, "version: found 9, expected 1"},
                                  std::pair{12, "kind: found 9, expected 1, 2 or 3"}}) {
    Bytes changed = bytes;
    changed[static_cast<std::size_t>(at)] = std::byte{9};
    const Status status = CacheFile::over(changed).status();
    EXPECT_EQ(status.code(), StatusCode::kUnsupported);
    EXPECT_EQ(status.message(), words);
  }
}

TEST(CacheFileDamage, ForgedHeadersAreRefusedByTheField) {
  StoredCache from(stored_config(few_layers(), 4));
  StoredCache into(stored_config(few_layers(), 4));
  const StoredSequence seq = described(from.bytes(from.sequence(1, 40)));
  const auto expect = [&](auto&& change, const std::string& words) {
    StoredSequence changed = seq;
    change(changed);
    const Bytes bytes = forged(changed);
    const auto file = CacheFile::over(bytes);
    const Status status = file.ok() ? file->load(into.cache).status() : file.status();
    EXPECT_NE(status.message().find(words), std::string::npos) << status.message() << ", " << words;
    EXPECT_EQ(into.cache.stats().sequences, 0);
  };
  expect([](StoredSequence& s) { s.layers[1].first = 33; }, "layers[1].first: found 33");
  expect([](StoredSequence& s) { s.layers[0].first = 1; }, "layers[0].first: found 1");
  expect([](StoredSequence& s) { s.layers[1].first = 41; }, "layers[1].first: found 41");
  expect([](StoredSequence& s) { s.coded = 41; }, "coded: found 41");
  expect([](StoredSequence& s) { s.coded = 39; }, "residual_tokens: found 0");
  expect([](StoredSequence& s) { s.tokens.resize(41); }, "num_tokens: found 41");
  expect([](StoredSequence& s) { s.layers[0].spec.buffers[0].role = Role::kState; },
         "layers[0].buffers[0].role: found 4");
  expect(
      [](StoredSequence& s) {
        s.layers[0].spec.buffers[0].format = plain(DType::kF32);
        s.layers[0].spec.buffers[0].format.rotate = true;
      },
      "layers[0].buffers[0].rotate: found 1");
  expect(
      [](StoredSequence& s) {
        s.layers[0].spec.buffers[1].format = {RowFormat::kLm4, DType::kF32, false};
      },
      "layers[0].buffers[1].rotate: found 0");
  expect([](StoredSequence& s) { s.layers[0].spec.life.window = -1; },
         "layers[0].window: found -1");
}

// Of coded layers whose newest rows are plain all rows are there, as of every layer that keeps all.
TEST(CacheFileDamage, LayersWithPlainNewestRowsBeginAtTheFirst) {
  const CacheConfig config = residual_config(4);
  StoredCache from(config);
  StoredCache into(config);
  const StoredSequence seq = described(from.bytes(from.sequence(1, 23)));
  ASSERT_LT(seq.coded, seq.length);
  for (std::size_t layer = 0; layer < seq.layers.size(); ++layer) {
    for (const std::int64_t first : {std::int64_t{1}, std::int64_t{5}, seq.coded, seq.length}) {
      StoredSequence changed = seq;
      changed.layers[layer].first = first;
      const Bytes bytes = forged(changed);
      const Status status = CacheFile::over(bytes)->load(into.cache).status();
      EXPECT_EQ(status.code(), StatusCode::kCorrupt);
      const std::string words =
          "layers[" + std::to_string(layer) + "].first: found " + std::to_string(first);
      EXPECT_EQ(status.message().find(words), 0u) << status.message();
      EXPECT_EQ(into.cache.stats().sequences, 0);
    }
  }
}

// A layer of the same group as another says that it holds more.
TEST(CacheFileDamage, LayersThatLiveAlikeHoldTheSame) {
  std::vector<LayerSpec> layers = few_layers();
  layers.push_back(layers[1]);
  StoredCache from(stored_config(layers, 4));
  StoredSequence seq = described(from.bytes(from.sequence(1, 40)));
  seq.layers[2].first = 20;
  const Bytes bytes = forged(seq);
  const Status status = CacheFile::over(bytes)->load(from.cache).status();
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_NE(status.message().find("layers[2].first: found 20"), std::string::npos)
      << status.message();
}

// --- Systems that refuse. ---

TEST(CacheFileDamage, AFailureOfAnyCallWhileSavingLeavesTheOldFile) {
  StoredCache from(stored_config(few_layers(), 4));
  const SequenceId seq = from.sequence(1, 600);
  const Bytes bytes = from.bytes(seq);
  const std::string whole(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (const bool full : {false, true}) {
    const TempDir folder;
    const std::string path = folder.write("a", "old");
    FailingFiles files;
    const internal::FilesInPlace in_place(files);
    if (full) files.fill_up();
    for (int k = 0;; ++k) {
      files.fail_at(k);
      const Status status = CacheFile::save(from.cache, seq, path);
      if (status.ok()) break;
      EXPECT_EQ(status.code(), StatusCode::kIo);
      const bool renamed = status.message() == "injected: sync_directory";
      EXPECT_EQ(read_file(path), renamed ? whole : "old") << status.message();
      EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
      folder.write("a", "old");
      ASSERT_OK(from.cache.check_invariants());
    }
    EXPECT_EQ(read_file(path), whole);
    EXPECT_GT(files.calls(), 6);
  }
}

TEST(CacheFileDamage, AFailureOfAnyCallWhileLoadingChangesNothing) {
  const TempDir folder;
  const std::string path = folder.path() + "/a";
  StoredCache from(stored_config(few_layers(), 4));
  ASSERT_OK(CacheFile::save(from.cache, from.sequence(1, 600), path));
  StoredCache into(stored_config(few_layers(), 16));
  const SequenceId other = into.sequence(3, 10);
  const std::string rows = into.rows(0, other);
  FailingFiles files;
  const internal::FilesInPlace in_place(files);
  int failures = 0;
  for (int k = 0;; ++k) {
    files.fail_at(k);
    const Status status = CacheFile::load(into.cache, path, {}, {&serial_executor()}).status();
    if (status.ok()) break;
    ++failures;
    EXPECT_EQ(status.code(), StatusCode::kIo);
    EXPECT_EQ(into.cache.stats().sequences, 1);
    EXPECT_EQ(into.cache.stats().open_steps, 0);
    EXPECT_EQ(into.rows(0, other), rows);
    ASSERT_OK(into.cache.check_invariants());
  }
  EXPECT_GE(failures, 2 + 2 + 3);  // open, size, the header's two; three blocks, at least once
}

// Where pages are in hand the file is read once, and a damaged one leaves no trace all the same.
TEST(CacheFileDamage, ADamagedFileLeavesNoTraceWhereverItsPagesComeFrom) {
  StoredCache from(stored_config(few_layers(), 4));
  Bytes bytes = from.bytes(from.sequence(1, 600));
  bytes[bytes.size() - 100] ^= std::byte{1};
  StoredCache into(stored_config(few_layers(), 16));
  for (const bool in_hand : {false, true}) {
    if (in_hand) {
      ASSERT_OK(into.cache.release(into.sequence(9, 700)));
    }
    const SequenceId other = into.sequence(3, 10);
    const std::int64_t reserved = into.cache.reserved_bytes();
    const PagedStats before = into.cache.stats();
    const Status status = CacheFile::over(bytes)->load(into.cache).status();
    EXPECT_EQ(status.code(), StatusCode::kCorrupt);
    EXPECT_EQ(into.cache.reserved_bytes(), reserved);
    EXPECT_EQ(into.cache.stats().pages_high_water, before.pages_high_water);
    EXPECT_EQ(into.cache.stats().pages_held, before.pages_held);
    ASSERT_OK(into.cache.check_invariants());
    ASSERT_OK(into.cache.release(other));
  }
}

// --- kill -9. ---

// A child saves one of two sequences over and over, and is killed at some moment: the file is one
// of both, whole.
void kill_while_saving(int rounds) {
  const TempDir folder;
  const std::string path = folder.path() + "/a";
  StoredCache from(stored_config(few_layers(), 4));
  const SequenceId seqs[] = {from.sequence(1, 500), from.sequence(5000, 700)};
  ASSERT_OK(CacheFile::save(from.cache, seqs[0], path));
  std::string texts[2];
  for (int i = 0; i < 2; ++i) {
    const Bytes bytes = from.bytes(seqs[i]);
    texts[i].assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  std::mt19937 random(11);
  for (int round = 0; round < rounds; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int i = 0;; ++i) {
        if (!CacheFile::save(from.cache, seqs[i % 2], path).ok()) ::_exit(1);
      }
    }
    ::usleep(random() % 4000);
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int state = 0;
    ASSERT_EQ(::waitpid(child, &state, 0), child);
    ASSERT_TRUE(WIFSIGNALED(state)) << "the child could not save";
    const std::string text = read_file(path);
    ASSERT_TRUE(text == texts[0] || text == texts[1]) << "round " << round;
    if (round % 50 != 0) continue;
    StoredCache into(stored_config(few_layers(), 16));
    ASSERT_OK(CacheFile::load(into.cache, path).status());
  }
}

TEST(CacheFileDamage, WhoIsKilledWhileSavingLeavesTheOldFileOrTheNew) { kill_while_saving(20); }

TEST(CacheFileSoak, WhoIsKilledWhileSavingLeavesTheOldFileOrTheNew) {
  const bool asked = std::getenv("KVCACHE_SOAK_SECONDS") != nullptr;
  kill_while_saving(asked ? 200 : 5);
  if (asked) std::printf("kill while saving: 200 rounds, the old file or the new\n");
}

}  // namespace
}  // namespace kvcache::testing
