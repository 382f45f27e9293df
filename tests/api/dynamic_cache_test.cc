#include "kvcache/dynamic_cache.h"

#include <gtest/gtest.h>

#include "base/memory_kinds.h"
#include "support/layered.h"
#include "support/refusing_memory.h"

namespace kvcache::testing {
namespace {

DynamicCache make(const CacheOptions& options = {}) {
  return DynamicCache::create(options).value();
}

TEST(DynamicCache, RefusesOptionsThatCannotBe) {
  CacheOptions options;
  options.dtype = DType::kI32;
  EXPECT_EQ(DynamicCache::create(options).status().message(),
            "dtype: found i32, expected f32, f16 or bf16");
  options = {};
  options.reserve_tokens = 0;
  EXPECT_EQ(DynamicCache::create(options).status().message(),
            "reserve_tokens: found 0, expected at least 1");
  options = {};
  options.layout = static_cast<Layout>(7);
  EXPECT_EQ(DynamicCache::create(options).status().code(), StatusCode::kInvalidArgument);
}

TEST(DynamicCache, LayersAppearWhenUsedAndSkippedOnesAreEmpty) {
  DynamicCache cache = make();
  EXPECT_EQ(cache.num_layers(), 0);
  ASSERT_OK(cache.update(T({1}), T({2}), 5).status());
  EXPECT_EQ(cache.num_layers(), 6);
  EXPECT_EQ(cache.seq_length(3).value(), 0);
  EXPECT_EQ(cache.view(3).status().code(), StatusCode::kNotFound);
}

TEST(DynamicCache, AFailedUpdateCreatesNoLayer) {
  RefusingMemory memory;
  CacheOptions options;
  options.memory = &memory;
  DynamicCache cache = make(options);
  ASSERT_OK(cache.update(T({1}), T({2})).status());
  for (std::int64_t call = 1; call <= 2; ++call) {
    memory.refuse(call, true);
    EXPECT_ERROR_UNCHANGED(cache, StatusCode::kOutOfMemory, "",
                           cache.update(T({1}), T({2}), 3).status());
    EXPECT_EQ(cache.num_layers(), 1);
  }
  memory.refuse(0);
  EXPECT_OK(cache.update(T({1}), T({2}), 3).status());
}

TEST(DynamicCache, ReadsTensorsThroughTheirStrides) {
  DynamicCache cache = make();
  // [1, 2, 3, 2] as the transpose of a [1, 3, 2, 2], one head reversed, one row repeated.
  const HostTensor storage = iota({1, 3, 2, 2});
  TensorView key = storage;
  std::swap(key.shape[1], key.shape[2]);
  std::swap(key.strides[1], key.strides[2]);
  TensorView value = storage;
  value.shape[1] = 2;
  value.shape[2] = 3;
  value.strides[1] = 0;
  value.strides[2] = -4;
  value.strides[3] = 1;
  value.data = static_cast<const float*>(value.data) + 8;
  const KeyValueView rows = cache.update(key, value).value();
  EXPECT_EQ(values(rows.key), (Floats{0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11}));
  EXPECT_EQ(values(rows.value), (Floats{8, 9, 4, 5, 0, 1, 8, 9, 4, 5, 0, 1}));
}

TEST(DynamicCache, RefusesItsOwnRowsAsInput) {
  DynamicCache cache = make();
  ASSERT_OK(cache.update(T({1, 2}), T({3, 4})).status());
  const KeyValueView rows = cache.get(0).value();
  EXPECT_ERROR_UNCHANGED(cache, StatusCode::kInvalidArgument, "key: found rows of this layer",
                         cache.update(rows.key, rows.value).status());
  EXPECT_ERROR_UNCHANGED(cache, StatusCode::kInvalidArgument, "value: found rows of this layer",
                         cache.update(T({1, 2}), rows.key).status());
  EXPECT_OK(cache.update(rows.key, rows.value, 1).status());  // another layer's memory
}

TEST(DynamicCache, TheViewShowsTheFilledRows) {
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    CacheOptions options;
    options.layout = layout;
    DynamicCache cache = make(options);
    const bool by_head = layout == Layout::kHND;
    const HostTensor key = iota(by_head ? Shape{2, 3, 5, 4} : Shape{2, 5, 3, 4});
    const HostTensor value = iota(by_head ? Shape{2, 3, 5, 6} : Shape{2, 5, 3, 6}, DType::kBF16);
    ASSERT_OK(cache.update(key, value).status());
    const OwnedKvView owner = cache.view(0).value();
    const KvView& view = owner;
    ASSERT_EQ(view.num_parts, 1);
    EXPECT_EQ(view.num_seqs, 2);
    EXPECT_EQ(view.num_kv_heads, 3);
    EXPECT_EQ(view.k_head_dim, 4);
    EXPECT_EQ(view.v_head_dim, 6);
    const KvPart& part = view.parts[0];
    EXPECT_EQ(part.block_table, nullptr);
    EXPECT_GE(part.page_size, 5);
    EXPECT_EQ(part.v.format.dtype, DType::kBF16);
    const std::vector<float> keys_in = values(key);
    for (std::int64_t s = 0; s < 2; ++s) {
      EXPECT_EQ(part.lengths[s], 5);
      EXPECT_EQ(part.first_position[s], 0);
      for (std::int64_t h = 0; h < 3; ++h) {
        for (std::int64_t t = 0; t < 5; ++t) {
          const float got = *reinterpret_cast<const float*>(part.k.row_at(s, h, t));
          const std::int64_t at = by_head ? ((s * 3 + h) * 5 + t) * 4 : ((s * 5 + t) * 3 + h) * 4;
          EXPECT_EQ(got, keys_in[static_cast<std::size_t>(at)]);
        }
      }
    }
  }
}

TEST(DynamicCache, ACloneIsIndependent) {
  DynamicCache cache = make();
  ASSERT_OK(cache.update(T({1, 2, 3}), T({4, 5, 6})).status());
  ASSERT_OK(cache.update(T({7}), T({8}), 2).status());
  ASSERT_OK(cache.crop(2));
  DynamicCache copy = cache.clone().value();
  EXPECT_EQ(state_of(copy).layers, state_of(cache).layers);
  ASSERT_OK(copy.update(T({9}), T({9})).status());
  cache.reset();
  EXPECT_EQ(keys(copy), (Floats{2, 3, 9}));
  EXPECT_EQ(copy.next_position().value(), 4);
  EXPECT_EQ(keys(copy, 2), (Floats{7}));
}

TEST(DynamicCache, MovingACacheMovesItsRows) {
  DynamicCache cache = make();
  ASSERT_OK(cache.update(T({1, 2}), T({3, 4})).status());
  const void* where = cache.get(0).value().key.data;
  DynamicCache moved = std::move(cache);
  EXPECT_EQ(moved.get(0).value().key.data, where);
  cache = make();
  EXPECT_EQ(cache.seq_length().value(), 0);
}

TEST(DynamicCache, LargeUpdatesOnThreadsStoreTheSameRows) {
  const std::unique_ptr<Executor> pool = make_thread_pool(4).value();
  ExecContext threads;
  threads.executor = pool.get();
  ExecContext serial;
  serial.executor = &serial_executor();
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (const std::int64_t heads : {1, 3}) {
      CacheOptions options;
      options.layout = layout;
      options.dtype = DType::kF32;
      DynamicCache one = make(options), many = make(options);
      const Shape shape =
          layout == Layout::kHND ? Shape{2, heads, 1031, 64} : Shape{2, 1031, heads, 64};
      const HostTensor key = iota(shape);
      ASSERT_OK(one.update(key, key, 0, {}, serial).status());
      ASSERT_OK(many.update(key, key, 0, {}, threads).status());
      ASSERT_OK(one.crop(1000, serial));
      ASSERT_OK(many.crop(1000, threads));
      ASSERT_OK(one.reorder(indices({1, 0, 0}), serial));
      ASSERT_OK(many.reorder(indices({1, 0, 0}), threads));
      EXPECT_TRUE(state_of(one) == state_of(many));
    }
  }
}

TEST(DynamicCache, ABudgetRefusesBeforeAnythingChanges) {
  LimitedMemory memory(64 * 1024);
  CacheOptions options;
  options.memory = &memory;
  DynamicCache cache = make(options);
  const HostTensor token = iota({1, 2, 1, 256});
  std::int64_t stored = 0;
  while (cache.update(token, token).ok()) ++stored;
  EXPECT_GT(stored, 8);
  EXPECT_LE(memory.committed_bytes(), 64 * 1024);
  EXPECT_EQ(memory.committed_bytes(), cache.reserved_bytes());
  EXPECT_EQ(cache.seq_length().value(), stored);
  EXPECT_ERROR_UNCHANGED(cache, StatusCode::kOutOfMemory, "memory: asked",
                         cache.update(token, token).status());
  EXPECT_ERROR_UNCHANGED(cache, StatusCode::kOutOfMemory, "memory: asked",
                         cache.batch_repeat_interleave(2));
  EXPECT_ERROR_UNCHANGED(cache, StatusCode::kOutOfMemory, "memory: asked", cache.clone().status());
  ASSERT_OK(cache.rewind(stored));
  cache.shrink();
  EXPECT_EQ(memory.committed_bytes(), 0);
}

TEST(DynamicCache, EveryRefusedCallOfTheMemoryLeavesTheCacheAsItWas) {
  using Operation = Status (*)(DynamicCache&);
  const Operation operations[] = {
      [](DynamicCache& c) {
        const HostTensor many = iota({2, 1, 900, 4});
        return c.update(many, many, 0).status();
      },
      [](DynamicCache& c) {
        const HostTensor one = iota({2, 1, 1, 4});
        return c.update(one, one, 1, index(5000)).status();
      },
      [](DynamicCache& c) {
        const HostTensor one = iota({1, 1, 1, 1});
        return c.update(one, one, 7).status();
      },
      [](DynamicCache& c) {
        return c.reorder(indices({1, 0}));
      },
      [](DynamicCache& c) { return c.batch_repeat_interleave(3); },
      [](DynamicCache& c) { return c.clone().status(); },
  };
  for (const Operation operation : operations) {
    bool more = true;
    for (std::int64_t call = 1; more; ++call) {
      RefusingMemory memory;
      CacheOptions options;
      options.memory = &memory;
      options.reserve_tokens = 8;
      DynamicCache cache = make(options);
      for (std::int64_t layer : {0, 1, 3}) {
        const HostTensor rows_in = iota({2, 1, 8, 4}, DType::kF32, static_cast<double>(layer));
        ASSERT_OK(cache.update(rows_in, rows_in, layer).status());
      }
      const CacheState before = state_of(cache);
      const void* where = cache.get(0).value().key.data;
      const std::int64_t committed = memory.committed();
      const std::int64_t regions = memory.regions();
      memory.refuse(call, true);
      const Status status = operation(cache);
      more = memory.refused();
      EXPECT_EQ(status.code(), more ? StatusCode::kOutOfMemory : StatusCode::kOk);
      if (!more) break;
      EXPECT_TRUE(state_of(cache) == before);
      EXPECT_EQ(cache.get(0).value().key.data, where);
      EXPECT_EQ(memory.committed(), committed);
      EXPECT_EQ(memory.regions(), regions);
      memory.refuse(0);
      EXPECT_OK(operation(cache));
    }
  }
}

}  // namespace
}  // namespace kvcache::testing
