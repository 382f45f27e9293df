#include "cache/contiguous/layer.h"

#include <gtest/gtest.h>

#include "base/memory_kinds.h"
#include "support/refusing_memory.h"
#include "support/tensors.h"

namespace kvcache::internal {
namespace {

using kvcache::testing::iota;
using kvcache::testing::RefusingMemory;
using kvcache::testing::T;
using kvcache::testing::values;

constexpr std::int64_t kTiB = std::int64_t{1} << 40;

// 500 floats a token: two tokens fill most of a page.
LayerShape wide_shape() { return {2, LayerSpec::kv(1, 500, 500), Layout::kHND}; }

Placement growing(MemoryResource& memory, std::int64_t reserve_tokens) {
  return {&memory, 0, reserve_tokens, kTiB};
}

// Appends `count` tokens whose elements all are the token's index.
void append(ContiguousLayer* layer, std::int64_t count, const Placement& placement,
            std::int64_t* copied) {
  for (std::int64_t i = 0; i < count; ++i) {
    kvcache::testing::HostTensor token(DType::kF32, {2, 1, 1, 500});
    for (std::int64_t e = 0; e < token.num_elements(); ++e) token.set(e, layer->length());
    const std::int64_t row = layer->length();
    ASSERT_TRUE(layer->make_room(row + 1, placement, copied).ok());
    layer->write(token, token, {0, 2, 0, 1, row}, {});
    layer->set_length(row + 1);
  }
}

void expect_indices(const ContiguousLayer& layer) {
  const KeyValueView rows = layer.rows();
  for (const TensorView* tensor : {&rows.key, &rows.value}) {
    const std::vector<float> all = values(*tensor);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const std::int64_t token = static_cast<std::int64_t>(i) / 500 % layer.length();
      ASSERT_EQ(all[i], static_cast<float>(token));
    }
  }
}

TEST(ContiguousLayer, CommitsOncePerPageOfARowNotPerTokenOrRow) {
  RefusingMemory memory;
  ContiguousLayer layer;
  LayerShape shape{4, LayerSpec::kv(8, 16, 16), Layout::kHND};
  const Placement placement = growing(memory, 4096);
  ASSERT_TRUE(layer.populate(shape, 1, placement).ok());
  std::int64_t copied = 0;
  for (std::int64_t length = 1; length <= 640; ++length) {
    ASSERT_TRUE(layer.make_room(length, placement, &copied).ok());
    layer.set_length(length);
    ASSERT_EQ(layer.committed_bytes(), memory.committed());
  }
  // 64 bytes a token: one call at first and one for every 64 tokens.
  EXPECT_LE(memory.commits(), 1 + 640 * 64 / page_bytes());
}

TEST(ContiguousLayer, GrowthMovesRowsAndTheAccountOfTheirMemory) {
  RefusingMemory memory;
  ContiguousLayer layer;
  const Placement placement = growing(memory, 2);
  ASSERT_TRUE(layer.populate(wide_shape(), 0, placement).ok());
  std::int64_t copied = 0;
  append(&layer, 33, placement, &copied);
  expect_indices(layer);
  EXPECT_EQ(memory.regions(), 1);
  EXPECT_EQ(memory.committed(), layer.committed_bytes());
  const bool moves_pages = &system_memory() != &portable_memory();
  EXPECT_EQ(copied == 0, moves_pages);
}

TEST(ContiguousLayer, GrowthByCopyingKeepsRowsAndCountsThem) {
  RefusingMemory memory(portable_memory());
  ContiguousLayer layer;
  const Placement placement = growing(memory, 2);
  ASSERT_TRUE(layer.populate(wide_shape(), 0, placement).ok());
  std::int64_t copied = 0;
  append(&layer, 9, placement, &copied);
  expect_indices(layer);
  EXPECT_EQ(copied, (2 + 4 + 8) * 2 * 2 * 500 * 4);
}

TEST(ContiguousLayer, ARefusedGrowthOrCommitLeavesRowsWhereTheyAre) {
  for (std::int64_t call = 1; call <= 2; ++call) {
    RefusingMemory memory;
    ContiguousLayer layer;
    const Placement placement = growing(memory, 4);
    ASSERT_TRUE(layer.populate(wide_shape(), 0, placement).ok());
    std::int64_t copied = 0;
    append(&layer, 4, placement, &copied);
    const void* where = layer.rows().key.data;
    const std::int64_t committed = layer.committed_bytes();
    memory.refuse(call, true);
    EXPECT_EQ(layer.make_room(9, placement, &copied).code(), StatusCode::kOutOfMemory);
    EXPECT_TRUE(memory.refused());
    EXPECT_EQ(layer.rows().key.data, where);
    EXPECT_EQ(layer.committed_bytes(), committed);
    EXPECT_EQ(memory.committed(), committed);
    expect_indices(layer);
    memory.refuse(0);
    append(&layer, 5, placement, &copied);
    expect_indices(layer);
  }
}

TEST(ContiguousLayer, ARefusedReservationIsHalvedUntilItIsGranted) {
  RefusingMemory memory;
  ContiguousGeometry granted;
  ASSERT_TRUE(growing_geometry(wide_shape(), 1000, &granted));
  memory.limit_reservation(granted.region_bytes);
  ContiguousLayer layer;
  ASSERT_TRUE(layer.populate(wide_shape(), 3, growing(memory, 131072)).ok());
  EXPECT_LE(layer.address_bytes(), granted.region_bytes);
  EXPECT_GT(layer.address_bytes(), granted.region_bytes / 4);
}

TEST(ContiguousLayer, OneLayerTakesAtMostHalfOfTheAddressSpaceLeftUnlessItMust) {
  RefusingMemory memory;
  ContiguousGeometry must;
  ASSERT_TRUE(growing_geometry(wide_shape(), 100, &must));
  ContiguousLayer layer;
  Placement placement = growing(memory, 131072);
  placement.address_bytes = must.region_bytes * 4;
  ASSERT_TRUE(layer.populate(wide_shape(), 100, placement).ok());
  EXPECT_LE(layer.address_bytes(), placement.address_bytes / 2);

  ContiguousLayer tight;
  placement.address_bytes = must.region_bytes;
  EXPECT_TRUE(tight.populate(wide_shape(), 100, placement).ok());
  ContiguousLayer over;
  EXPECT_EQ(over.populate(wide_shape(), 150, placement).code(), StatusCode::kOutOfMemory);
  EXPECT_FALSE(over.populated());
}

TEST(ContiguousLayer, ShrinkReturnsWholePagesBehindTheRows) {
  RefusingMemory memory;
  ContiguousLayer layer;
  const Placement placement = growing(memory, 100);
  ASSERT_TRUE(layer.populate(wide_shape(), 0, placement).ok());
  std::int64_t copied = 0;
  append(&layer, 60, placement, &copied);
  const std::int64_t full = layer.committed_bytes();
  layer.set_length(11);
  EXPECT_EQ(layer.committed_bytes(), full);
  layer.shrink();
  ContiguousGeometry geometry;
  ASSERT_TRUE(growing_geometry(wide_shape(), 100, &geometry));
  EXPECT_EQ(layer.committed_bytes(), geometry.committed_bytes(11));
  EXPECT_EQ(memory.committed(), layer.committed_bytes());
  EXPECT_GT(memory.returned_bytes(), 4 * 40 * 2000);
  expect_indices(layer);
  append(&layer, 49, placement, &copied);
  expect_indices(layer);
  EXPECT_EQ(layer.committed_bytes(), full);
  layer.set_length(0);
  layer.shrink();
  EXPECT_EQ(memory.regions(), 0);
  EXPECT_TRUE(layer.populated());
  append(&layer, 3, placement, &copied);
  expect_indices(layer);
}

TEST(ContiguousLayer, AHeldMappingOutlivesGrowthAndLayer) {
  RefusingMemory memory;
  std::shared_ptr<const void> held;
  TensorView before;
  {
    ContiguousLayer layer;
    const Placement placement = growing(memory, 2);
    ASSERT_TRUE(layer.populate(wide_shape(), 0, placement).ok());
    std::int64_t copied = 0;
    append(&layer, 2, placement, &copied);
    held = layer.mapping();
    before = layer.rows().key;
    append(&layer, 2, placement, &copied);
    EXPECT_EQ(memory.regions(), 2);
    EXPECT_EQ(memory.committed(), layer.committed_bytes());
  }
  EXPECT_EQ(memory.regions(), 1);
  EXPECT_EQ(values(before).size(), 2000u);  // readable; what it reads is unspecified
  held.reset();
  EXPECT_EQ(memory.regions(), 0);
}

}  // namespace
}  // namespace kvcache::internal
