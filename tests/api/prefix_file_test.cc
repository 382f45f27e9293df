// A prefix cache that is warm after a restart: what was known is found again, in its namespaces,
// and rows are those of its texts.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "kvcache/cache_file.h"
#include "support/damage.h"
#include "support/failing_files.h"
#include "support/prefix_world.h"
#include "support/temp_dir.h"

namespace kvcache::testing {
namespace {

using test::read_file;
using test::TempDir;

Life window_of(std::int64_t tokens, std::int32_t sinks = 0) {
  Life life;
  life.window = tokens;
  life.sink_tokens = sinks;
  return life;
}

std::int64_t found(PrefixWorld& world, const Text& text, const PrefixNamespace& name = {}) {
  Text longer = text;
  longer.push_back(-1);
  return world.prefixes->explain(longer, name)->length;
}

TEST(PrefixFile, EveryTextIsFoundAgainWithItsRows) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  for (const std::int64_t page_size : {1, 4, 16}) {
    for (const auto& lives : std::vector<std::vector<Life>>{
             {Life()}, {Life(), window_of(9, 2)}, {window_of(6), Life(), window_of(40)}}) {
      const CacheConfig config = PrefixWorld::config_of(lives, 200, page_size);
      PrefixWorld before(config);
      const Text system = counted(1, 33);
      const std::vector<std::pair<PrefixNamespace, Text>> texts = {
          {named(1), joined(system, counted(100, 20))},
          {named(1), joined(system, counted(200, 7))},
          {named(2), joined(system, counted(100, 20))},
          {named(2, 5), counted(900, 3)}};
      for (const auto& [name, text] : texts) before.ask(text, name);
      const auto saved = before.prefixes->save(path);
      ASSERT_OK(saved.status());
      EXPECT_EQ(*saved, before.prefixes->stats().pages);

      PrefixWorld after(config);
      const auto loaded = after.prefixes->load(path);
      ASSERT_OK(loaded.status());
      after.check();
      EXPECT_EQ(*loaded, *saved);
      EXPECT_EQ(after.prefixes->stats().pages_unheld, *saved);
      for (const auto& [name, text] : texts) {
        EXPECT_EQ(found(after, text, name), found(before, text, name));
        Text more = text;
        more.push_back(7777);
        after.ask(more, name);  // which looks at every row
      }
      EXPECT_EQ(found(after, texts[0].second, named(3)), 0);
    }
  }
}

TEST(PrefixFile, AnotherNamespaceMissesByName) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  const CacheConfig config = PrefixWorld::config_of({Life()}, 50, 4);
  PrefixWorld before(config);
  before.ask(counted(1, 20), namespace_of({"model"}));
  ASSERT_OK(before.prefixes->save(path).status());
  PrefixWorld after(config);
  ASSERT_OK(after.prefixes->load(path).status());
  const auto said = after.prefixes->explain(counted(1, 20), namespace_of({"another model"}));
  EXPECT_EQ(said->length, 0);
  EXPECT_EQ(said->reason, PrefixMiss::kOtherNamespace);
}

TEST(PrefixFile, OfSeveralNamespacesTheOneThatIsWantedComes) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  const CacheConfig config = PrefixWorld::config_of({Life()}, 50, 4);
  PrefixWorld before(config);
  before.ask(counted(1, 20), named(1));
  before.ask(counted(1, 20), named(2));
  before.ask(joined(counted(1, 16), counted(70, 8)), named(1));
  ASSERT_OK(before.prefixes->save(path).status());
  // What others have is not read: damage there is theirs.
  const CacheFile file = CacheFile::open(path).value();
  std::string bytes = read_file(path);
  std::int64_t at = file.info().header_bytes, ours = 0;
  for (const CacheFilePage& page : file.info().pages) {
    const bool is_ours = file.info().spaces[static_cast<std::size_t>(page.space)] == named(1);
    if (!is_ours) bytes[static_cast<std::size_t>(at)] ^= 1;
    ours += is_ours ? 1 : 0;
    at += 4096;
  }
  ASSERT_EQ(at, file.info().file_bytes);  // a block of 4096 each
  folder.write("warm", bytes);
  PrefixWorld after(config);
  EXPECT_EQ(after.prefixes->load(path).status().code(), StatusCode::kCorrupt);
  const auto loaded = after.prefixes->load(path, named(1));
  ASSERT_OK(loaded.status());
  EXPECT_EQ(*loaded, ours);
  EXPECT_EQ(found(after, counted(1, 20), named(1)), 20);
  EXPECT_EQ(found(after, joined(counted(1, 16), counted(70, 8)), named(1)), 24);
  EXPECT_EQ(found(after, counted(1, 20), named(2)), 0);
  EXPECT_EQ(after.prefixes->load(path, named(3)).value(), 0);
  EXPECT_EQ(after.prefixes->load(path, named(2)).status().code(), StatusCode::kCorrupt);
  after.check();
}

TEST(PrefixFile, WithinABoundOfBytesWhatWasUsedLastGoes) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  const CacheConfig config = PrefixWorld::config_of({Life(), Life()}, 200, 4);
  PrefixWorld before(config);
  for (int i = 0; i < 8; ++i) before.ask(counted(1000 * i, 16));
  before.ask(joined(counted(3000, 16), {1}));  // used again
  // Rows of a token are 16 bytes, a page has 64: two texts of four pages, and the page of one
  // token.
  const std::int64_t most = 2 * 4 * 64 + 16;
  EXPECT_EQ(before.prefixes->save(path, most).value(), 9);
  PrefixWorld after(config);
  EXPECT_EQ(after.prefixes->load(path).value(), 9);
  EXPECT_EQ(found(after, joined(counted(3000, 16), {1})), 17);
  EXPECT_EQ(found(after, counted(7000, 16)), 16);
  EXPECT_EQ(found(after, counted(6000, 16)), 0);
  after.check();
}

TEST(PrefixFile, TheOrderOfUseIsThatOfBefore) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  CacheConfig config = PrefixWorld::config_of({Life()}, 12, 4);
  PrefixWorld before(config);
  for (int i = 0; i < 3; ++i) before.ask(counted(1000 * i, 16));
  before.ask(joined(counted(0, 15), {5}));
  ASSERT_OK(before.prefixes->save(path).status());
  PrefixWorld after(config);
  ASSERT_OK(after.prefixes->load(path).status());
  after.ask(counted(9000, 4));
  // Of the text that was not used for longest the end has left.
  EXPECT_LT(found(after, counted(1000, 16)), 16);
  EXPECT_EQ(found(after, counted(2000, 16)), 16);
  after.check();
}

TEST(PrefixFile, WhatHasNoRoomStaysOutAndNothingLeavesForIt) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  PrefixWorld before(PrefixWorld::config_of({Life()}, 100, 4));
  for (int i = 0; i < 10; ++i) before.ask(counted(1000 * i, 16));
  ASSERT_OK(before.prefixes->save(path).status());
  for (const bool budget : {false, true}) {
    CacheConfig config = PrefixWorld::config_of({Life()}, 14, 4);
    if (budget) {
      config.num_pages = 0;
      config.budget_bytes = 14 * 400;
    }
    PrefixWorld after(config);
    const Text mine = counted(50000, 16);
    after.ask(mine);
    const std::int64_t loaded = after.prefixes->load(path).value();
    EXPECT_GT(loaded, 4);
    EXPECT_LT(loaded, 20);
    EXPECT_EQ(found(after, mine), 16);
    EXPECT_EQ(found(after, counted(9000, 16)), 16);  // used last
    if (budget) {
      EXPECT_LE(after.cache.reserved_bytes(), config.budget_bytes);
    }
    after.check();
    // And again: what is known already takes no room.
    EXPECT_EQ(after.prefixes->load(path).value(), 0);
    after.check();
  }
}

TEST(PrefixFile, PrioritiesComeAlong) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  const CacheConfig config = PrefixWorld::config_of({Life()}, 12, 4);
  PrefixWorld before(config);
  before.ask(counted(1, 16));
  ASSERT_OK(before.prefixes->set_priority(
      before.prefixes->match(joined(counted(1, 16), {9})).value(), 90));
  before.ask(counted(1000, 16));
  ASSERT_OK(before.prefixes->save(path).status());
  PrefixWorld after(config);
  ASSERT_OK(after.prefixes->load(path).status());
  after.ask(counted(2000, 20));
  EXPECT_EQ(found(after, counted(1, 16)), 16);
  EXPECT_LT(found(after, counted(1000, 16)), 16);
  const CacheFile file = CacheFile::open(path).value();
  EXPECT_EQ(file.info().kind, CacheFileInfo::Kind::kTexts);
  EXPECT_EQ(file.info().pages.size(), 8u);
  ASSERT_OK(file.verify());
}

TEST(PrefixFile, OtherLayersPageSizesAndKindsAreRefusedByName) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  PrefixWorld before(PrefixWorld::config_of({Life()}, 50, 4));
  before.ask(counted(1, 20));
  ASSERT_OK(before.prefixes->save(path).status());
  const auto refused = [&](PrefixWorld world, const std::string& words) {
    const Status status = world.prefixes->load(path).status();
    EXPECT_EQ(status.message(), words);
    EXPECT_EQ(world.prefixes->stats().pages, 0);
  };
  refused(PrefixWorld(PrefixWorld::config_of({Life()}, 50, 8)), "page_size: found 4, expected 8");
  refused(PrefixWorld(PrefixWorld::config_of({Life(), Life()}, 50, 4)),
          "layers: found 1, expected 2");
  refused(PrefixWorld(PrefixWorld::config_of({window_of(3)}, 50, 4)),
          "layers[0].window: found 0, expected 3");
  const Status status = CacheFile::load(before.cache, path).status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_EQ(status.message(), "kind: found 2, expected 1, a sequence");
}

TEST(PrefixFile, DamagedFilesAreRefusedByNameOrLoadEqualRows) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  const CacheConfig config = PrefixWorld::config_of({Life(), window_of(9)}, 60, 4);
  PrefixWorld before(config);
  const Text text = counted(1, 30);
  before.ask(text);
  before.ask(joined(counted(1, 20), counted(50, 9)));
  ASSERT_OK(before.prefixes->save(path).status());
  const std::string whole = read_file(path);
  const auto* const begin = reinterpret_cast<const std::byte*>(whole.data());
  std::mt19937_64 random(3);
  int loads = 0;
  for (int i = 0; i < 400; ++i) {
    bool forged = false;
    const Bytes bytes = damaged(Bytes(begin, begin + whole.size()), random, &forged);
    folder.write("warm", std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    PrefixWorld after(config);
    const auto loaded = after.prefixes->load(path);
    after.check();
    if (!loaded.ok()) {
      EXPECT_NE(loaded.status().message().find(": found "), std::string::npos)
          << loaded.status().message();
      EXPECT_EQ(after.prefixes->stats().pages, 0);
      continue;
    }
    ++loads;
    if (!forged) after.ask(joined(text, {7}));
    if (::testing::Test::HasFailure()) FAIL() << "number " << i;
  }
  EXPECT_GT(loads, 0);
}

TEST(PrefixFile, AFailureOfAnyCallLeavesFileAndCacheAsTheyWere) {
  const TempDir folder;
  const std::string path = folder.write("warm", "old");
  const CacheConfig config = PrefixWorld::config_of({Life()}, 60, 4);
  PrefixWorld before(config);
  before.ask(counted(1, 30));
  FailingFiles files;
  const internal::FilesInPlace in_place(files);
  for (int k = 0;; ++k) {
    files.fail_at(k);
    const Status status = before.prefixes->save(path).status();
    if (status.ok()) break;
    EXPECT_EQ(status.code(), StatusCode::kIo);
    if (status.message() == "injected: sync_directory") continue;
    EXPECT_EQ(read_file(path), "old");
  }
  int failures = 0;
  for (int k = 0;; ++k) {
    PrefixWorld after(config);
    files.fail_at(k);
    const Status status = after.prefixes->load(path, {&serial_executor()}).status();
    after.check();
    if (status.ok()) break;
    ++failures;
    EXPECT_EQ(status.code(), StatusCode::kIo);
    EXPECT_EQ(after.prefixes->stats().pages, 0);
    EXPECT_EQ(after.cache.stats().pages_cached, 0);
  }
  EXPECT_GT(failures, 12);
}

// Into a cache that knows something already, also a beginning of what the file has.
TEST(PrefixFile, AFailureOfAnyCallLeavesWhatWasKnown) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  const CacheConfig config = PrefixWorld::config_of({Life(), window_of(9)}, 60, 4);
  PrefixWorld before(config);
  before.ask(counted(1, 15));
  before.ask(counted(1, 15), named(2));
  for (int i = 1; i < 5; ++i) before.ask(counted(1000 * i, 10), named(i));
  ASSERT_OK(before.prefixes->save(path).status());
  FailingFiles files;
  const internal::FilesInPlace in_place(files);
  for (const bool throws : {false, true}) {
    if (throws) files.throw_instead();
    int failures = 0;
    for (int k = 0;; ++k) {
      PrefixWorld after(config);
      after.ask(counted(1, 14));
      after.ask(counted(1, 6), named(2));
      const std::int64_t pages = after.prefixes->stats().pages;
      files.fail_at(k);
      const auto loaded = after.prefixes->load(path, {&serial_executor()});
      files.fail_at(-1);
      after.check();
      EXPECT_EQ(found(after, counted(1, 14)), 14);
      EXPECT_EQ(found(after, counted(1, 6), named(2)), 6);
      if (loaded.ok()) {
        EXPECT_EQ(found(after, counted(1, 15)), 15);
        break;
      }
      ++failures;
      EXPECT_EQ(after.prefixes->stats().pages, pages) << k;
      EXPECT_EQ(after.prefixes->stats().namespaces, 2) << k;
    }
    EXPECT_GT(failures, 30);
  }
}

// Room for a namespace is none that pages have: nothing leaves, and every page has its own text,
// however little of the file fits.
TEST(PrefixFile, NamespacesWithoutRoomStayOutAndNothingLeavesForThem) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  PrefixWorld before(PrefixWorld::config_of({Life()}, 200, 4));
  for (int i = 0; i < 20; ++i) before.ask(counted(1, 8), named(i));
  ASSERT_OK(before.prefixes->save(path).status());
  CacheConfig config = PrefixWorld::config_of({Life()}, 0, 4);
  std::int64_t most = 0;
  for (config.budget_bytes = 900; most < 40; config.budget_bytes += 1 + config.budget_bytes % 9) {
    ASSERT_LT(config.budget_bytes, 60000);
    auto cache = PagedCache::create(config);
    if (!cache.ok()) continue;
    PrefixWorld after(config);

    const auto loaded = after.prefixes->load(path);
    ASSERT_OK(loaded.status());
    const PrefixStats stats = after.prefixes->stats();
    ASSERT_EQ(stats.pages_evicted, 0) << config.budget_bytes;
    ASSERT_EQ(stats.pages, *loaded) << config.budget_bytes;
    ASSERT_LE(after.cache.reserved_bytes(), config.budget_bytes);
    ASSERT_GE(*loaded, most) << config.budget_bytes;
    most = *loaded;
    after.check();
  }
}

TEST(PrefixFile, EveryPolicyIsSavedAndWarmedUp) {
  const TempDir folder;
  const std::string path = folder.path() + "/warm";
  const CacheConfig config = PrefixWorld::config_of({Life(), window_of(7)}, 40, 4);
  for (const Eviction eviction :
       {Eviction::kLru, Eviction::kS3Fifo, Eviction::kArc, Eviction::kAdaptive}) {
    PrefixOptions options;
    options.eviction = eviction;
    PrefixWorld before(config, options);
    std::mt19937 random(5);
    for (int i = 0; i < 60; ++i) {
      const auto which = static_cast<std::int32_t>(random() % 12);
      before.ask(
          joined(counted(1000 * which, 10), counted(static_cast<std::int32_t>(random() % 3), 5)));
    }
    const std::int64_t saved = before.prefixes->save(path).value();
    EXPECT_EQ(saved, before.prefixes->stats().pages);
    PrefixWorld after(config, options);
    EXPECT_EQ(after.prefixes->load(path).value(), saved);
    after.check();
    for (int i = 0; i < 60; ++i) {
      const auto which = static_cast<std::int32_t>(random() % 12);
      after.ask(
          joined(counted(1000 * which, 10), counted(static_cast<std::int32_t>(random() % 3), 5)));
    }
  }
}

}  // namespace
}  // namespace kvcache::testing
