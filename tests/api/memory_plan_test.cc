#include "kvcache/memory_plan.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "support/layered.h"

namespace kvcache::testing {
namespace {

LayerSpec spec(std::int64_t heads, std::int64_t k_dim, std::int64_t v_dim, DType k, DType v) {
  return LayerSpec::kv(heads, k_dim, v_dim, plain(k), plain(v));
}

// A cache filled by appends of `step` tokens up to `length`.
std::unique_ptr<Cache> filled(LayeredKind kind, const std::vector<LayerSpec>& layers,
                              std::int64_t batch, std::int64_t length, std::int64_t step,
                              Layout layout, std::int64_t max_length) {
  CacheOptions options;
  options.layout = layout;
  options.reserve_tokens = 16;
  auto cache = make_layered(kind, options, max_length, static_cast<std::int64_t>(layers.size()));
  for (std::int64_t done = 0; done < length; done += step) {
    const std::int64_t count = std::min(step, length - done);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const LayerSpec& s = layers[i];
      const auto tensor_for = [&](std::int64_t dim, DType dtype) {
        return HostTensor(dtype, layout == Layout::kHND ? Shape{batch, s.key().heads, count, dim}
                                                        : Shape{batch, count, s.key().heads, dim});
      };
      EXPECT_OK(cache
                    ->update(tensor_for(s.key().dim, s.key().format.dtype),
                             tensor_for(s.value().dim, s.value().format.dtype),
                             static_cast<std::int64_t>(i))
                    .status());
    }
  }
  return cache;
}

TEST(MemoryPlan, EqualsToTheByteWhatContiguousCachesReport) {
  const std::vector<LayerSpec> layers = {spec(3, 64, 64, DType::kF32, DType::kF32),
                                         spec(2, 80, 16, DType::kBF16, DType::kF32),
                                         spec(1, 1, 1, DType::kF16, DType::kF16)};
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (const LayeredKind kind : {LayeredKind::kDynamic, LayeredKind::kStatic}) {
      for (const std::int64_t length : {0, 1, 15, 16, 17, 100, 1000}) {
        MemoryPlanRequest request;
        request.layers = layers;
        request.batch_size = 2;
        request.seq_length = length;
        request.max_length = 1003;
        request.layout = layout;
        const PlannedBytes plan =
            plan_memory(kind == LayeredKind::kStatic ? CacheKind::kStatic : CacheKind::kDynamic,
                        request)
                .value();
        for (const std::int64_t step : {7, 1000}) {
          const auto cache = filled(kind, layers, 2, length, step, layout, 1003);
          EXPECT_EQ(cache->nbytes(), plan.nbytes) << length;
          EXPECT_EQ(cache->reserved_bytes(), plan.reserved_bytes) << length;
        }
      }
    }
  }
}

TEST(MemoryPlan, RefusesWhatNoCacheCouldHave) {
  const std::vector<LayerSpec> good = {spec(1, 1, 1, DType::kF32, DType::kF32)};
  const auto code = [](CacheKind kind, const MemoryPlanRequest& request) {
    const Result<PlannedBytes> plan = plan_memory(kind, request);
    EXPECT_FALSE(plan.ok());
    return plan.status().code();
  };
  for (const CacheKind kind : {CacheKind::kDynamic, CacheKind::kStatic, CacheKind::kPaged}) {
    MemoryPlanRequest request;
    request.max_length = 8;
    request.seq_length = 4;
    EXPECT_EQ(code(kind, request), StatusCode::kInvalidArgument);  // no layers
    request.layers = good;
    ASSERT_TRUE(plan_memory(kind, request).ok());
    MemoryPlanRequest bad = request;
    bad.batch_size = 0;
    EXPECT_EQ(code(kind, bad), StatusCode::kInvalidArgument);
    bad = request;
    bad.seq_length = -1;
    EXPECT_EQ(code(kind, bad), StatusCode::kInvalidArgument);
    bad = request;
    bad.seq_length = bad.max_length = std::numeric_limits<std::int64_t>::max();
    bad.batch_size = 1000;
    EXPECT_EQ(code(kind, bad), StatusCode::kInvalidArgument);
    for (const LayerSpec& wrong :
         {spec(0, 1, 1, DType::kF32, DType::kF32), spec(1, -1, 1, DType::kF32, DType::kF32),
          spec(1, 1, 0, DType::kF32, DType::kF32), spec(1, 1, 1, DType::kI32, DType::kF32)}) {
      bad = request;
      bad.layers = {&wrong, 1};
      EXPECT_EQ(code(kind, bad), StatusCode::kInvalidArgument);
    }
  }
  MemoryPlanRequest request;
  request.layers = good;
  request.seq_length = 9;
  request.max_length = 8;
  EXPECT_EQ(plan_memory(CacheKind::kStatic, request).status().message(),
            "seq_length: found 9, expected at most max_length, 8");
}

TEST(MemoryPlan, AStepIsNeverLongerThanTheSequence) {
  const std::vector<LayerSpec> layers = {spec(1, 4, 4, DType::kF32, DType::kF32).living({4}),
                                         spec(1, 4, 4, DType::kF32, DType::kF32).living({0, 4})};
  MemoryPlanRequest request;
  request.layers = layers;
  request.page_size = 2;
  request.seq_length = 100;
  for (const std::int64_t step : {100L, 101L, 1L << 40, std::numeric_limits<std::int64_t>::max()}) {
    request.step_tokens = step;
    EXPECT_EQ(plan_memory(CacheKind::kPaged, request).value().num_pages, 100) << step;
  }
}

// Steps are looked at one by one as long as they repeat soon; the plan is a bound otherwise.
TEST(MemoryPlan, SizesThatNothingHasArePlannedAtOnce) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const std::vector<LayerSpec> layers = {
      spec(1, 1, 1, DType::kF32, DType::kF32).living({4, 0, 1 << 30})};
  MemoryPlanRequest request;
  request.layers = layers;
  request.page_size = 1048573;
  request.seq_length = kMost;
  request.step_tokens = 1;
  EXPECT_EQ(plan_memory(CacheKind::kPaged, request).value().num_pages, 1025 + 2);
  const std::vector<LayerSpec> chunks = {spec(1, 1, 1, DType::kF32, DType::kF32).living({0, 1021})};
  request.layers = chunks;
  request.page_size = 65537;
  EXPECT_LE(plan_memory(CacheKind::kPaged, request).value().num_pages, 3);
}

}  // namespace
}  // namespace kvcache::testing
