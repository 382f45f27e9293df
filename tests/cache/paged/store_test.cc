#include "cache/paged/store.h"

#include <gtest/gtest.h>

#include <cstdint>
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
    LayerSpec spec;
    spec.num_kv_heads = spec.k_head_dim = spec.v_head_dim = 1;
    PagedLayout layout = make_paged_layout(std::vector<LayerSpec>{spec}, 4, Layout::kHND).value();
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

TEST_F(PagedStoreTest, NbytesCountsASharedRowOnceAndATailByItsLongestSharer) {
  const std::int64_t row = store_->layout().row_bytes();
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

TEST_F(PagedStoreTest, BuffersOfLayersDoNotOverlap) {
  LayerSpec spec;
  spec.num_kv_heads = 3;
  spec.k_head_dim = 5;
  spec.v_head_dim = 7;
  PagedLayout layout = make_paged_layout(std::vector<LayerSpec>(3, spec), 4, Layout::kNHD).value();
  const std::int64_t k_bytes = 8 * layout.groups[0].k_page_bytes;
  const std::int64_t v_bytes = 8 * layout.groups[0].v_page_bytes;
  const auto store = PagedStore::create(std::move(layout), 8, 0, system_memory()).value();
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    EXPECT_GE(store->v_rows(layer) - store->k_rows(layer), k_bytes);
    if (layer == 2) break;
    EXPECT_GE(store->k_rows(layer + 1) - store->v_rows(layer), v_bytes);
  }
}

TEST(PagedStoreMemory, IsToldOfTheFreshPagesThatAStepFillsAndOfNoOthers) {
  testing::RefusingMemory memory;
  {
    LayerSpec spec;
    spec.num_kv_heads = 2;
    spec.k_head_dim = 16;
    spec.v_head_dim = 8;
    const std::vector<LayerSpec> layers(3, spec);
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
