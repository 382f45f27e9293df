#include "cache/paged/layout.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace kvcache::internal {
namespace {

LayerSpec spec(std::int64_t heads, std::int64_t k_dim, std::int64_t v_dim,
               DType dtype = DType::kBF16) {
  return LayerSpec::kv(heads, k_dim, v_dim, dtype);
}

std::vector<std::int64_t> indices(const GroupLayout& group) {
  std::vector<std::int64_t> layers;
  for (const LayerLayout& layer : group.layers) layers.push_back(layer.layer);
  return layers;
}

TEST(PagedLayout, GroupsAreInTheOrderOfTheirFirstLayer) {
  const LayerSpec windowed = spec(2, 64, 64).living({32});
  const std::vector<LayerSpec> layers = {spec(8, 128, 128), windowed, spec(8, 128, 128)};
  const PagedLayout layout = make_paged_layout(layers, 16, Layout::kHND).value();
  ASSERT_EQ(layout.num_groups(), 2);
  EXPECT_EQ(indices(layout.groups[0]), (std::vector<std::int64_t>{0, 2}));
  EXPECT_EQ(indices(layout.groups[1]), (std::vector<std::int64_t>{1}));
  EXPECT_EQ(layout.places[2].group, 0);
  EXPECT_EQ(layout.places[2].index, 1);
  EXPECT_EQ(layout.groups[0].page_bytes, 2 * 16 * 8 * (128 + 128) * 2);
  EXPECT_EQ(layout.page_bytes(), 2 * 16 * 8 * 256 * 2 + 16 * 2 * 128 * 2);
  EXPECT_EQ(layout.page_table_bytes(), 32 * 2 + 4 * 16 + 140);
}

TEST(PagedLayout, StridesWithinAPageFollowTheLayout) {
  const std::vector<LayerSpec> layers = {spec(3, 8, 4)};
  const LayerLayout hnd = make_paged_layout(layers, 16, Layout::kHND).value().groups[0].layers[0];
  EXPECT_EQ(hnd.buffers[0].page_bytes, 2 * 3 * 16 * 8);
  EXPECT_EQ(hnd.buffers[0].head_stride, 2 * 16 * 8);
  EXPECT_EQ(hnd.buffers[0].token_stride, 2 * 8);
  EXPECT_EQ(hnd.buffers[1].head_stride, 2 * 16 * 4);
  const LayerLayout nhd = make_paged_layout(layers, 16, Layout::kNHD).value().groups[0].layers[0];
  EXPECT_EQ(nhd.buffers[0].page_bytes, 2 * 3 * 16 * 8);
  EXPECT_EQ(nhd.buffers[0].head_stride, 2 * 8);
  EXPECT_EQ(nhd.buffers[0].token_stride, 2 * 3 * 8);
}

TEST(PagedLayout, TablesNeedMoreOnlyBeyondWhatThePagesBring) {
  const PagedLayout layout =
      make_paged_layout(std::vector<LayerSpec>{spec(1, 8, 8)}, 16, Layout::kHND).value();
  const std::int64_t fixed = 10 * (32 + 64 + 140);
  EXPECT_EQ(layout.table_bytes(10, 0, 0), fixed);
  EXPECT_EQ(layout.table_bytes(10, 10, 20), fixed);
  EXPECT_EQ(layout.table_bytes(10, 11, 22), fixed + 128 + 2 * 4);
}

TEST(PagedLayout, PagesInABudgetAreThoseThatFitWithTheirTables) {
  const PagedLayout layout =
      make_paged_layout(std::vector<LayerSpec>{spec(1, 8, 8)}, 16, Layout::kHND).value();
  const std::int64_t each = layout.page_bytes() + layout.page_table_bytes();
  EXPECT_EQ(layout.pages_in_budget(each - 1), 0);
  EXPECT_EQ(layout.pages_in_budget(each), 1);
  EXPECT_EQ(layout.pages_in_budget(7 * each - 1), 6);
  EXPECT_EQ(layout.pages_in_budget(std::numeric_limits<std::int64_t>::max()), (1LL << 31) / 16 - 1);
}

TEST(PagedLayout, SizesThatNoCacheCouldHaveAreRefused) {
  const auto refused = [](const LayerSpec& layer, std::int64_t page_size = 16) {
    const auto layout = make_paged_layout(std::vector<LayerSpec>{layer}, page_size, Layout::kHND);
    return layout.status().code() == StatusCode::kInvalidArgument;
  };
  const std::int64_t large = std::numeric_limits<std::int32_t>::max();
  EXPECT_FALSE(refused(spec(1, 1, 1)));
  EXPECT_TRUE(refused(spec(0, 8, 8)));
  EXPECT_TRUE(refused(spec(1, -1, 8)));
  EXPECT_TRUE(refused(spec(1, 8, 0)));
  EXPECT_TRUE(refused(spec(1, 8, 8, DType::kI32)));
  EXPECT_TRUE(refused(spec(1, 8, 8), 0));
  EXPECT_TRUE(refused(spec(1, 8, 8), large + 1));
  EXPECT_TRUE(refused(spec(large, large, 1), large));
  EXPECT_TRUE(refused(spec(large + 1, 1, 1)));
  EXPECT_FALSE(make_paged_layout({}, 16, Layout::kHND).ok());
}

TEST(PagedLayout, BuffersAndLivesThatAreNotBuiltAreRefusedByName) {
  const auto refused = [](const LayerSpec& layer, const std::string& name) {
    const Status status =
        make_paged_layout(std::vector<LayerSpec>{layer}, 16, Layout::kHND).status();
    return status.code() == StatusCode::kUnsupported &&
           status.message().find(name) != std::string::npos;
  };
  LayerSpec latent = spec(1, 8, 8);
  latent.num_buffers = 1;
  latent.buffers[0].role = Role::kLatent;
  EXPECT_TRUE(refused(latent, "layers[0].num_buffers: found 1"));
  EXPECT_TRUE(refused(spec(1, 8, 8).living({0, 0, 0, true}), "layers[0].life.state: found true"));
}

TEST(PagedLayout, SlotsOfAPoolFitInt32) {
  const PagedLayout layout =
      make_paged_layout(std::vector<LayerSpec>{spec(1, 8, 8)}, 16, Layout::kHND).value();
  EXPECT_TRUE(layout.check_num_pages((1LL << 31) / 16 - 1).ok());
  EXPECT_FALSE(layout.check_num_pages((1LL << 31) / 16).ok());
  EXPECT_FALSE(layout.check_num_pages(0).ok());
}

MemoryPlanRequest request(const std::vector<LayerSpec>& layers) {
  MemoryPlanRequest result;
  result.layers = layers;
  result.seq_length = 17;
  result.batch_size = 3;
  return result;
}

TEST(PagedPlan, CountsRowsPagesAndTables) {
  const std::vector<LayerSpec> layers = {spec(2, 8, 8), spec(2, 8, 8), spec(1, 4, 4)};
  const PlannedBytes plan = plan_paged(request(layers)).value();
  const std::int64_t row = 2 * 2 * 16 * 2 + 8 * 2;
  EXPECT_EQ(plan.nbytes, 3 * 17 * row);
  EXPECT_EQ(plan.num_pages, 3 * 2);
  EXPECT_EQ(plan.reserved_bytes, 6 * 16 * row + 6 * (32 + 64 + 140));
}

TEST(PagedPlan, AbsurdRequestsAreRefused) {
  const std::vector<LayerSpec> layers = {spec(2, 8, 8)};
  const auto refused = [](const MemoryPlanRequest& r) {
    return plan_paged(r).status().code() == StatusCode::kInvalidArgument;
  };
  MemoryPlanRequest r = request(layers);
  r.seq_length = std::numeric_limits<std::int64_t>::max();
  EXPECT_TRUE(refused(r));
  r = request(layers);
  r.batch_size = std::numeric_limits<std::int64_t>::max();
  EXPECT_TRUE(refused(r));
  r.seq_length = 0;
  EXPECT_TRUE(refused(r));
  r = request(layers);
  r.num_pages = 5;
  EXPECT_TRUE(refused(r));
  r = request(layers);
  r.batch_size = 0;
  EXPECT_TRUE(refused(r));
}

}  // namespace
}  // namespace kvcache::internal
