#include "cache/paged/store.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kvcache/memory.h"
#include "support/refusing_memory.h"

namespace kvcache::internal {
namespace {

using Ids = std::vector<std::int32_t>;

// Pages of 4 tokens; rows do not matter here, so layers count as written.
class PagedStoreTest : public ::testing::Test {
 protected:
  PagedStoreTest() {
    PagedLayout layout =
        make_paged_layout(std::vector<LayerSpec>{LayerSpec::kv(1, 1, 1)}, 4, Layout::kHND).value();
    store_ = PagedStore::create(std::move(layout), 8, 0, system_memory()).value();
  }

  void append(SequenceId seq, std::int64_t count, const Ids& ids, std::int64_t accepted = -1) {
    const Append append{seq, count, ids};
    std::unique_ptr<PagedStep> step = store_->reserve({&append, 1}).value();
    step->written[0] = 1;
    const std::int64_t kept = accepted < 0 ? count : accepted;
    ASSERT_TRUE(store_->commit(*step, {&kept, 1}).ok());
  }
  Ids tokens(SequenceId seq) { return store_->tokens(*store_->find(seq).value()); }

  std::unique_ptr<PagedStore> store_;
};

TEST_F(PagedStoreTest, TokenIdsAreKeptInStepWithTheCommittedRows) {
  const SequenceId a = store_->open().value();
  append(a, 6, {1, 2, 3, 4, 5, 6}, 5);
  append(a, 1, {7});
  EXPECT_EQ(tokens(a), (Ids{1, 2, 3, 4, 5, 7}));
  const SequenceId b = store_->fork(a, 5).value();
  append(b, 2, {8, 9});
  append(a, 1, {10});
  EXPECT_EQ(tokens(a), (Ids{1, 2, 3, 4, 5, 7, 10}));
  EXPECT_EQ(tokens(b), (Ids{1, 2, 3, 4, 5, 8, 9}));
  ASSERT_TRUE(store_->truncate(a, 2).ok());
  EXPECT_EQ(tokens(a), (Ids{1, 2}));
  const SequenceId both[] = {a, b};
  const std::int64_t beams[] = {1, 0};
  ASSERT_TRUE(store_->reorder(both, beams).ok());
  EXPECT_EQ(tokens(a), (Ids{1, 2, 3, 4, 5, 8, 9}));
  EXPECT_EQ(tokens(b), (Ids{1, 2}));
}

TEST_F(PagedStoreTest, OneAppendWithoutIdsEndsWhatIsKnownUntilItIsCutOff) {
  const SequenceId a = store_->open().value();
  append(a, 2, {1, 2});
  append(a, 1, {});
  append(a, 1, {4});
  EXPECT_EQ(tokens(a), (Ids{1, 2}));
  ASSERT_TRUE(store_->truncate(a, 2).ok());
  append(a, 1, {5});
  EXPECT_EQ(tokens(a), (Ids{1, 2, 5}));
}

// The blocks of ids are as many as the pages of a group, and a window goes on for ever.
TEST(PagedStoreWindows, IdsEndWhereTheirBlocksAreTakenAndTheSequenceGoesOn) {
  PagedLayout layout =
      make_paged_layout(std::vector<LayerSpec>{LayerSpec::kv(1, 1, 1).living({4})}, 2, Layout::kHND)
          .value();
  const auto store = PagedStore::create(std::move(layout), 4, 0, system_memory()).value();
  const SequenceId a = store->open().value();
  const auto append = [&](std::int32_t id) {
    const Append one{a, 1, {&id, 1}};
    auto step = store->reserve({&one, 1});
    ASSERT_TRUE(step.ok()) << step.status().to_string();
    (*step)->written[0] = 1;
    ASSERT_TRUE(store->commit(**step, {}).ok());
  };
  for (std::int32_t id = 0; id < 40; ++id) append(id);
  EXPECT_EQ(store->find(a).value()->length, 40);
  EXPECT_EQ(store->tokens(*store->find(a).value()), (Ids{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_TRUE(store->check_invariants().ok()) << store->check_invariants().to_string();
  ASSERT_TRUE(store->release(a).ok());
  EXPECT_EQ(store->nbytes(), 0);
}

TEST_F(PagedStoreTest, NbytesCountsASharedRowOnceAndATailByItsLongestSharer) {
  const std::int64_t row = store_->layout().groups[0].row_bytes;
  const SequenceId a = store_->open().value();
  append(a, 6, {});
  EXPECT_EQ(store_->nbytes(), 6 * row);
  const SequenceId b = store_->fork(a, 5).value();
  const SequenceId c = store_->fork(a, 4).value();
  EXPECT_EQ(store_->nbytes(), 6 * row);
  append(c, 1, {});
  EXPECT_EQ(store_->nbytes(), 7 * row);
  ASSERT_TRUE(store_->release(a).ok());
  EXPECT_EQ(store_->nbytes(), 6 * row);
  append(b, 3, {});
  const SequenceId d = store_->fork(b, 7).value();
  EXPECT_EQ(store_->nbytes(), 9 * row);  // d's tail is within a page that is full for b
  ASSERT_TRUE(store_->release(b).ok());
  EXPECT_EQ(store_->nbytes(), 8 * row);
  ASSERT_TRUE(store_->release(d).ok());
  EXPECT_EQ(store_->nbytes(), 5 * row);
}

TEST_F(PagedStoreTest, ATokenBlockThatIsSharedIsCopiedBeforeItIsWritten) {
  const SequenceId a = store_->open().value();
  append(a, 2, {1, 2});
  const SequenceId b = store_->fork(a, 2).value();
  append(a, 1, {});  // ends what is known of a, whose block b still shares
  append(b, 2, {3, 4});
  EXPECT_EQ(tokens(a), (Ids{1, 2}));
  EXPECT_EQ(tokens(b), (Ids{1, 2, 3, 4}));
  EXPECT_TRUE(store_->check_invariants().ok()) << store_->check_invariants().to_string();
}

// Keeps every page that it is asked about, and evicts the oldest first.
class KeepAll final : public PageKeeper {
 public:
  bool keeps(const PageGroup&, std::int32_t page) noexcept override {
    kept.push_back(page);
    return true;
  }
  void make_room(PageGroup& group, std::int64_t count) noexcept override {
    for (; count > 0; --count) {
      group.evict(kept.front());
      evicted.push_back(kept.front());
      kept.erase(kept.begin());
    }
  }
  Ids kept, evicted;
};

TEST_F(PagedStoreTest, CachedPagesAreAvailableAndEvictedOnlyWhenNoOtherIsLeft) {
  KeepAll keeper;
  store_->set_keeper(&keeper);
  const SequenceId a = store_->open().value();
  append(a, 12, {});
  ASSERT_TRUE(store_->release(a).ok());
  EXPECT_EQ(keeper.kept, (Ids{2, 1, 0}));
  EXPECT_EQ(store_->free_pages(0), 8);
  EXPECT_EQ(store_->nbytes(), 0);
  EXPECT_TRUE(store_->check_invariants().ok()) << store_->check_invariants().to_string();
  const SequenceId b = store_->open().value();
  append(b, 20, {});
  EXPECT_EQ(keeper.evicted, Ids());
  append(b, 8, {});
  EXPECT_EQ(keeper.evicted, (Ids{2, 1}));
  EXPECT_EQ(store_->free_pages(0), 1);
  EXPECT_TRUE(store_->check_invariants().ok()) << store_->check_invariants().to_string();
  store_->set_keeper(nullptr);
}

TEST(PagedStoreMemory, PagesStayWhereTheyAreWhileThePoolGrowsByRegions) {
  // Pages of 64 KiB: 64 of them a region of 4 MiB.
  PagedLayout layout =
      make_paged_layout(std::vector<LayerSpec>{LayerSpec::kv(1, 1024, 1024)}, 8, Layout::kHND)
          .value();
  LimitedMemory memory(std::int64_t{1} << 30);
  const auto store = PagedStore::create(std::move(layout), 1000, 0, memory).value();
  const SequenceId seq = store->open().value();
  std::vector<const std::byte*> starts;
  for (int page = 0; page < 200; ++page) {
    const Append append{seq, 8};
    std::unique_ptr<PagedStep> step = store->reserve({&append, 1}).value();
    step->written[0] = 1;
    ASSERT_TRUE(store->commit(*step, {}).ok());
    starts.push_back(store->group_of(0).rows(0, 0).page_at(page));
    std::memset(const_cast<std::byte*>(starts.back()), page, 1024);
  }
  const RowsView rows = store->group_of(0).rows(0, 0);
  for (int page = 0; page < 200; ++page) {
    ASSERT_EQ(rows.page_at(page), starts[static_cast<std::size_t>(page)]);
    ASSERT_EQ(static_cast<int>(*rows.page_at(page)), page);
  }
  EXPECT_EQ(memory.committed_bytes(), store->reserved_bytes());
}

TEST_F(PagedStoreTest, BuffersOfLayersDoNotOverlap) {
  PagedLayout layout =
      make_paged_layout(std::vector<LayerSpec>(3, LayerSpec::kv(3, 5, 7)), 4, Layout::kNHD).value();
  const std::int64_t bytes[] = {8 * layout.groups[0].layers[0].buffers[0].page_bytes,
                                8 * layout.groups[0].layers[0].buffers[1].page_bytes};
  const auto store = PagedStore::create(std::move(layout), 8, 0, system_memory()).value();
  const PageGroup& group = store->group_of(0);
  std::int64_t end = 0;
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    for (std::int32_t buffer = 0; buffer < 2; ++buffer) {
      EXPECT_GE(group.rows(layer, buffer).offset, end);
      end = group.rows(layer, buffer).offset + bytes[buffer];
    }
  }
}

TEST(PagedStoreMemory, IsToldOfTheFreshPagesThatAStepFillsAndOfNoOthers) {
  testing::RefusingMemory memory;
  {
    const std::vector<LayerSpec> layers(3, LayerSpec::kv(2, 16, 8));
    PagedLayout layout = make_paged_layout(layers, 4, Layout::kHND).value();
    const std::int64_t page_bytes = layout.page_bytes();
    auto store = PagedStore::create(std::move(layout), 64, 0, memory).value();
    const SequenceId a = store->open().value();
    const auto add = [&](std::int64_t count) {
      const Append append{a, count, {}};
      auto step = store->reserve({&append, 1}).value();
      for (auto& written : step->written) written = 1;
      ASSERT_TRUE(store->commit(*step, {&count, 1}).ok());
    };
    add(41);  // 11 pages
    EXPECT_EQ(memory.filled(), 11 * page_bytes);
    add(3);  // the last page has room
    EXPECT_EQ(memory.filled(), 11 * page_bytes);
    ASSERT_TRUE(store->truncate(a, 4).ok());
    add(40);  // ten pages that were used before
    EXPECT_EQ(memory.filled(), 11 * page_bytes);
    add(1);
    EXPECT_EQ(memory.filled(), 12 * page_bytes);
  }
}

}  // namespace
}  // namespace kvcache::internal
