#include "kvcache/batching_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <random>

#include "base/memory_kinds.h"
#include "kvcache/attention.h"
#include "kvcache/static_cache.h"
#include "support/batching.h"
#include "support/refusing_memory.h"

namespace kvcache::testing {
namespace {

// The bytes of a dense tensor.
std::vector<std::byte> bytes_of(const HostTensor& tensor) {
  const auto* data = static_cast<const std::byte*>(tensor.view().data);
  return {data, data + tensor.num_elements() * size_of(tensor.dtype())};
}

// Heads, sizes and storage of a model's layer, and random rows for it.
struct Model {
  Layout layout = Layout::kHND;
  DType dtype = DType::kF32;
  std::int64_t heads = 4, kv_heads = 2, k_dim = 8, v_dim = 16;

  CacheOptions cache_options(std::int64_t reserve_tokens = 131072) const {
    CacheOptions options;
    options.layout = layout;
    options.dtype = dtype;
    options.reserve_tokens = reserve_tokens;
    return options;
  }
  BatchingOptions batch_options() const {
    BatchingOptions options;
    options.layout = layout;
    options.dtype = dtype;
    return options;
  }
  Shape shape(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) const {
    return layout == Layout::kHND ? Shape{b, h, t, d} : Shape{b, t, h, d};
  }
};

struct Step {
  HostTensor q, k, v;  // [1, ...], one request's
};

Step random_step(const Model& m, std::int64_t count, std::mt19937* random) {
  std::normal_distribution<float> normal;
  const auto fill = [&](std::int64_t h, std::int64_t d) {
    HostTensor tensor(DType::kF32, m.shape(1, h, count, d));
    for (std::int64_t i = 0; i < tensor.num_elements(); ++i) tensor.set(i, normal(*random));
    return tensor;
  };
  return {fill(m.heads, m.k_dim), fill(m.kv_heads, m.k_dim), fill(m.kv_heads, m.v_dim)};
}

// Rows of one batch, those of idle slots NaN. Slot s takes steps[s], which may be null.
HostTensor stack(const std::vector<const HostTensor*>& parts, const Shape& one) {
  Shape shape = one;
  shape[0] = static_cast<std::int64_t>(parts.size());
  HostTensor all(DType::kF32, shape);
  std::int64_t count = 1;
  for (std::size_t axis = 1; axis < one.size(); ++axis) count *= one[axis];
  for (std::size_t s = 0; s < parts.size(); ++s) {
    const std::vector<float> from = parts[s] != nullptr ? values(*parts[s]) : std::vector<float>();
    for (std::int64_t i = 0; i < count; ++i) {
      all.set(static_cast<std::int64_t>(s) * count + i,
              from.empty() ? std::nanf("") : from[static_cast<std::size_t>(i)]);
    }
  }
  return all;
}

// attend() over the slots; result[s] holds the bytes of slot s.
std::vector<std::vector<std::byte>> attend_slots(BatchingCache& batch, const Model& m,
                                                 const std::vector<const Step*>& steps,
                                                 std::int64_t count,
                                                 const AttentionOptions& options = {}) {
  std::vector<const HostTensor*> q, k, v;
  for (const Step* step : steps) {
    q.push_back(step != nullptr ? &step->q : nullptr);
    k.push_back(step != nullptr ? &step->k : nullptr);
    v.push_back(step != nullptr ? &step->v : nullptr);
  }
  const auto slots = static_cast<std::int64_t>(steps.size());
  HostTensor out(DType::kF32, m.shape(slots, m.heads, count, m.v_dim));
  const Status status = batch.attend(stack(q, m.shape(1, m.heads, count, m.k_dim)),
                                     stack(k, m.shape(1, m.kv_heads, count, m.k_dim)),
                                     stack(v, m.shape(1, m.kv_heads, count, m.v_dim)),
                                     out.mutable_view(), 0, options);
  EXPECT_TRUE(status.ok()) << status.to_string();
  const std::vector<std::byte> all = bytes_of(out);
  std::vector<std::vector<std::byte>> result;
  const auto each = static_cast<std::ptrdiff_t>(all.size() / steps.size());
  for (std::ptrdiff_t s = 0; s < static_cast<std::ptrdiff_t>(steps.size()); ++s) {
    result.emplace_back(all.begin() + s * each, all.begin() + (s + 1) * each);
  }
  return result;
}

// The same step of the request alone, over its own cache.
std::vector<std::byte> attend_alone(Cache& cache, const Model& m, const Step& step,
                                    std::int64_t count, const AttentionOptions& options = {}) {
  EXPECT_TRUE(cache.update(step.k, step.v).ok());
  const auto by_head = [&](auto view) {
    if (m.layout == Layout::kNHD) {
      std::swap(view.shape[1], view.shape[2]);
      std::swap(view.strides[1], view.strides[2]);
    }
    return view;
  };
  HostTensor out(DType::kF32, m.shape(1, m.heads, count, m.v_dim));
  const OwnedKvView view = cache.view(0).value();
  const Status status =
      attend(by_head(step.q.view()), {}, view, by_head(out.mutable_view()), {}, options);
  EXPECT_TRUE(status.ok()) << status.to_string();
  return bytes_of(out);
}

// --- The bits of a request alone. ---

struct BitsCase {
  Layout layout;
  DType dtype;
};

class BatchingBits : public ::testing::TestWithParam<BitsCase> {};
INSTANTIATE_TEST_SUITE_P(
    Batching, BatchingBits,
    ::testing::Values(BitsCase{Layout::kHND, DType::kF32}, BitsCase{Layout::kNHD, DType::kF32},
                      BitsCase{Layout::kHND, DType::kF16}, BitsCase{Layout::kNHD, DType::kBF16}),
    [](const auto& test) {
      return std::string(name_of(test.param.layout)) + "_" + name_of(test.param.dtype);
    });

TEST_P(BatchingBits, SlotsLaidOutInEveryWayGiveTheBitsOfTheRequestAlone) {
  Model m;
  m.layout = GetParam().layout;
  m.dtype = GetParam().dtype;
  std::mt19937 random(7);
  // Dynamic alike (twice), outgrown its reservation, static, cropped, and an idle slot between.
  std::vector<std::unique_ptr<Cache>> caches, alone;
  const std::int64_t lengths[] = {5, 1300, 0, 700, 40, 900};
  for (int i = 0; i < 6; ++i) {
    std::vector<std::unique_ptr<Cache>> pair;
    for (int copy = 0; copy < 2; ++copy) {
      if (i == 4) {
        pair.push_back(
            std::make_unique<StaticCache>(StaticCache::create(64, 1, m.cache_options()).value()));
      } else {
        pair.push_back(std::make_unique<DynamicCache>(
            DynamicCache::create(m.cache_options(i == 3 ? 16 : 131072)).value()));
      }
    }
    if (lengths[i] > 0) {
      const Step prefill = random_step(m, lengths[i], &random);
      for (const auto& cache : pair) ASSERT_OK(cache->update(prefill.k, prefill.v).status());
      if (i == 5) {
        for (const auto& cache : pair) ASSERT_OK(cache->crop(600));
      }
    }
    caches.push_back(std::move(pair[0]));
    alone.push_back(std::move(pair[1]));
  }
  BatchingCache batch = BatchingCache::create(6, m.batch_options()).value();
  for (int i = 0; i < 6; ++i) {
    if (i != 2) ASSERT_OK(batch.add_request(*caches[i], i));
  }
  AttentionOptions windowed;
  windowed.window = 50;
  windowed.sink_tokens = 3;
  for (const std::int64_t count : {1, 1, 12, 3}) {
    for (const AttentionOptions& options : {AttentionOptions(), windowed}) {
      std::vector<Step> steps;
      for (int i = 0; i < 6; ++i) steps.push_back(random_step(m, count, &random));
      std::vector<const Step*> pointers;
      for (int i = 0; i < 6; ++i) pointers.push_back(i == 2 ? nullptr : &steps[i]);
      const auto got = attend_slots(batch, m, pointers, count, options);
      for (int i = 0; i < 6; ++i) {
        if (i == 2) {
          EXPECT_EQ(got[2], std::vector<std::byte>(got[2].size(), std::byte{0}));
        } else {
          EXPECT_EQ(got[i], attend_alone(*alone[i], m, steps[i], count, options)) << "slot " << i;
        }
      }
      ASSERT_OK(batch.rewind(4, count));  // within its capacity
      ASSERT_OK(alone[4]->rewind(count));
    }
  }
}

// --- A running batch. ---

TEST(RunningBatch, RequestsJoinAndLeaveInAnyOrderAndKeepTheBitsOfTheirRunAlone) {
  Model m;
  m.heads = 2;
  m.kv_heads = 1;
  constexpr int kRequests = 6;
  constexpr int kSteps = 6;
  const std::int64_t lengths[kRequests] = {1, 3000, 1, 3000, 500, 64};
  std::mt19937 random(11);
  std::vector<Step> prefills;
  std::vector<std::vector<Step>> steps(kRequests);
  std::vector<std::vector<std::vector<std::byte>>> expected(kRequests);
  for (int r = 0; r < kRequests; ++r) {
    prefills.push_back(random_step(m, lengths[r], &random));
    DynamicCache alone = DynamicCache::create(m.cache_options()).value();
    ASSERT_OK(alone.update(prefills[r].k, prefills[r].v).status());
    for (int i = 0; i < kSteps; ++i) {
      steps[r].push_back(random_step(m, 1, &random));
      expected[r].push_back(attend_alone(alone, m, steps[r].back(), 1));
    }
  }
  constexpr int kSlots = 3;
  for (int order = 0; order < 100; ++order) {
    std::vector<int> waiting = {0, 1, 2, 3, 4, 5};
    std::shuffle(waiting.begin(), waiting.end(), random);
    BatchingCache batch = BatchingCache::create(kSlots, m.batch_options()).value();
    int running[kSlots] = {-1, -1, -1};
    int done[kSlots] = {0, 0, 0}, last[kSlots] = {0, 0, 0};
    std::int64_t rows_read = 0;
    while (!waiting.empty() || batch.active() > 0) {
      for (int s = 0; s < kSlots; ++s) {
        if (running[s] >= 0 || waiting.empty() || random() % 2 == 0) continue;
        const int r = waiting.back();
        waiting.pop_back();
        // Some reservations are outgrown while the request runs.
        DynamicCache cache =
            DynamicCache::create(m.cache_options(random() % 2 == 0 ? lengths[r] : 131072)).value();
        ASSERT_OK(cache.update(prefills[r].k, prefills[r].v).status());
        ASSERT_OK(batch.add_request(cache, s));
        running[s] = r;
        done[s] = 0;
        last[s] = 1 + static_cast<int>(random() % kSteps);
      }
      std::vector<const Step*> now;
      for (int s = 0; s < kSlots; ++s) {
        now.push_back(running[s] >= 0 ? &steps[running[s]][done[s]] : nullptr);
        if (running[s] >= 0) rows_read += lengths[running[s]] + done[s] + 1;
      }
      const auto got = attend_slots(batch, m, now, 1);
      for (int s = 0; s < kSlots; ++s) {
        if (running[s] < 0) continue;
        ASSERT_EQ(got[s], expected[running[s]][done[s]]) << "order " << order << ", slot " << s;
        if (++done[s] == last[s]) {
          ASSERT_OK(batch.remove_request(s));
          running[s] = -1;
        }
      }
    }
    ASSERT_EQ(batch.stats().rows_read, rows_read);           // idle slots cost no attention work
    if (&system_memory() != &internal::portable_memory()) {  // where growth moves pages
      ASSERT_EQ(batch.stats().copied_bytes, 0);
    }
    ASSERT_EQ(batch.nbytes(), 0);
  }
}

// --- Results of update_and_fetch. ---

TEST(BatchingCache, ResultsKeepTheirMemoryReadableAfterTheyAreOutdated) {
  BatchingCache batch = BatchingCache::create(1).value();
  DynamicCache cache = DynamicCache::create().value();
  ASSERT_OK(batch.add_request(cache, 0));
  const HostTensor many = iota({1, 1, 3000, 1});
  const BatchFetch old = batch.update_and_fetch(T({1}), T({1})).value();
  ASSERT_OK(batch.update_and_fetch(many, many).status());  // moves the dense copies
  batch = BatchingCache::create(1).value();
  (void)values(old.key);  // no fault
  EXPECT_NE(old.storage, nullptr);
}

TEST(BatchingCache, DenseCopiesAreCountedAndReuseTheirMemory) {
  RefusingMemory memory;
  BatchingOptions options;
  options.memory = &memory;
  BatchingCache batch = BatchingCache::create(2, options).value();
  DynamicCache cache = DynamicCache::create().value();
  ASSERT_OK(batch.add_request(cache, 1));
  std::int64_t bytes = 0;
  for (std::int64_t i = 0; i < 100; ++i) {
    const HostTensor next = rows({{0}, {1}});
    ASSERT_OK(batch.update_and_fetch(next, next).status());
    bytes += (i + 1) * 2 * 4;
    EXPECT_EQ(batch.stats().copied_bytes, bytes);
  }
  EXPECT_EQ(memory.regions(), 1);
  EXPECT_EQ(batch.stats().rows_appended, 100);
}

TEST(BatchingCache, TruncateKeepsTheFirstTokensOfOneRequestInEveryLayer) {
  BatchingCache batch = BatchingCache::create(2).value();
  for (const std::int64_t id : {0, 1}) {
    DynamicCache cache = DynamicCache::create().value();
    ASSERT_OK(batch.add_request(cache, id));
  }
  const HostTensor two = rows({{1, 2, 3}, {4, 5, 6}});
  ASSERT_OK(batch.update_and_fetch(two, two, {}, {}, 0).status());
  const HostTensor one = rows({{7}, {8}});
  ASSERT_OK(batch.update_and_fetch(one, one, {}, {}, 1).status());
  ASSERT_OK(batch.truncate(1, 2));
  EXPECT_EQ(batch.seq_length(0, 0).value(), 3);
  EXPECT_EQ(batch.seq_length(1, 0).value(), 2);
  EXPECT_EQ(batch.seq_length(1, 1).value(), 1);  // shorter: left alone
  EXPECT_EQ(batch.truncate(1, -1).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(batch.truncate(2, 0).code(), StatusCode::kOutOfRange);
  ASSERT_OK(batch.remove_request(0));
  EXPECT_EQ(batch.truncate(0, 0).code(), StatusCode::kNotFound);
}

TEST(BatchingCache, AnUpdateReachesOneLayerAndLayersAppearWhenUsed) {
  BatchingCache batch = BatchingCache::create(1).value();
  DynamicCache cache = DynamicCache::create().value();
  ASSERT_OK(batch.add_request(cache, 0));
  ASSERT_OK(batch.update_and_fetch(T({1, 2}), T({1, 2}), {}, {}, 3).status());
  EXPECT_EQ(batch.seq_length(0, 3).value(), 2);
  EXPECT_EQ(batch.seq_length(0, 0).value(), 0);
  DynamicCache small = DynamicCache::create().value();
  ASSERT_OK(small.update(T({1}), T({1})).status());
  BatchingCache other = BatchingCache::create(2).value();
  DynamicCache first = DynamicCache::create().value();
  ASSERT_OK(other.add_request(first, 0));
  const HostTensor two = rows({{1}, {2}});
  ASSERT_OK(other.update_and_fetch(two, two, {}, {}, 3).status());
  EXPECT_EQ(other.add_request(small, 1).message(),
            "cache: found 1 layers, expected at least 4 as the batch");
}

TEST(BatchingCache, TheTypesOfTheFirstRowsHold) {
  BatchingCache batch = BatchingCache::create(2).value();
  DynamicCache a = DynamicCache::create().value(), b = DynamicCache::create().value();
  ASSERT_OK(a.update(T({1}, DType::kF16), T({1}, DType::kBF16)).status());
  ASSERT_OK(batch.add_request(a, 0));
  ASSERT_OK(batch.add_request(b, 1));
  const HostTensor next = rows({{2}, {3}});
  const BatchFetch fetched = batch.update_and_fetch(next, next).value();
  EXPECT_EQ(fetched.key.dtype, DType::kF16);
  EXPECT_EQ(fetched.value.dtype, DType::kBF16);
  EXPECT_EQ(values(fetched.value), (Floats{1, 2, 0, 3}));
}

TEST(BatchingCache, RowsOfTheBatchItselfAreNoInput) {
  BatchingCache batch = BatchingCache::create(1).value();
  DynamicCache cache = DynamicCache::create().value();
  ASSERT_OK(cache.update(T({1, 2}), T({3, 4})).status());
  const KeyValueView before = cache.get(0).value();
  ASSERT_OK(batch.add_request(cache, 0));
  EXPECT_BATCH_UNCHANGED(batch, Layout::kHND, StatusCode::kInvalidArgument,
                         "value: found rows of this layer itself",
                         batch.update_and_fetch(T({1, 2}), before.value).status());
  const BatchFetch fetched = batch.update_and_fetch(T({5}), T({5})).value();
  EXPECT_EQ(batch.update_and_fetch(fetched.key, fetched.key).status().message(),
            "key: found a result of update_and_fetch, expected memory outside of the batch");
  EXPECT_EQ(batch.update_and_fetch(T({6}), T({6}), {}, fetched.mask).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(batch.seq_length(0).value(), 3);
}

TEST(BatchingCache, MovingABatchMovesItsSlots) {
  BatchingCache batch = BatchingCache::create(1).value();
  DynamicCache cache = DynamicCache::create().value();
  ASSERT_OK(cache.update(T({1, 2}), T({3, 4})).status());
  ASSERT_OK(batch.add_request(cache, 0));
  BatchingCache moved = std::move(batch);
  EXPECT_EQ(moved.seq_length(0).value(), 2);
  EXPECT_EQ(values(moved.update_and_fetch(T({5}), T({6})).value().value), (Floats{3, 4, 6}));
}

// --- Refusals of the memory. ---

TEST(BatchingCache, EveryRefusedCallOfTheMemoryLeavesTheBatchAsItWas) {
  using Operation = Status (*)(BatchingCache&);
  const Operation outgrow = [](BatchingCache& b) {
    const HostTensor many = iota({3, 1, 1200, 1});
    return b.update_and_fetch(many, many).status();
  };
  const Operation new_layer = [](BatchingCache& b) {
    const HostTensor one = iota({3, 1, 1, 1});
    return b.update_and_fetch(one, one, {}, {}, 2).status();
  };
  const Operation attended = [](BatchingCache& b) {
    const HostTensor many = iota({3, 1, 1200, 1});
    HostTensor out = many;
    return b.attend(many, many, many, out.mutable_view());
  };
  for (const Operation operation : {outgrow, new_layer, attended}) {
    const bool prefilled = operation != new_layer;
    const std::int64_t num_layers = prefilled ? 1 : 3;
    bool more = true;
    for (std::int64_t call = 1; more; ++call) {
      ASSERT_LT(call, 50);
      RefusingMemory memory;
      BatchingOptions options;
      options.memory = &memory;
      CacheOptions of_request;
      of_request.memory = &memory;
      of_request.reserve_tokens = 8;
      BatchingCache batch = BatchingCache::create(3, options).value();
      for (std::int64_t id : {0, 1, 2}) {
        DynamicCache cache = DynamicCache::create(of_request).value();
        const HostTensor prefill = iota({1, 1, 7, 1}, DType::kF32, static_cast<double>(10 * id));
        if (prefilled) ASSERT_OK(cache.update(prefill, prefill).status());
        if (id == 1) cache.reset();  // memory of the right shape, without rows
        ASSERT_OK(batch.add_request(cache, id));
      }
      const BatchState before = state_of(batch, Layout::kHND, num_layers);
      const std::int64_t committed = memory.committed();
      const std::int64_t regions = memory.regions();
      memory.refuse(call, true);
      const Status status = operation(batch);
      more = memory.refused();
      EXPECT_EQ(status.code(), more ? StatusCode::kOutOfMemory : StatusCode::kOk);
      memory.refuse(0);
      if (!more) break;
      EXPECT_EQ(memory.committed(), committed);
      EXPECT_EQ(memory.regions(), regions);
      EXPECT_EQ(batch.reserved_bytes(), committed);
      EXPECT_TRUE(state_of(batch, Layout::kHND, num_layers) == before);
      EXPECT_OK(operation(batch));
    }
  }
}

TEST(BatchingCache, AFailingAttendGivesTheRoomItTookBack) {
  RefusingMemory memory;
  CacheOptions of_request;
  of_request.memory = &memory;
  BatchingCache batch = BatchingCache::create(1).value();
  DynamicCache cache = DynamicCache::create(of_request).value();
  ASSERT_OK(batch.add_request(cache, 0));
  const HostTensor many = iota({1, 1, 5000, 1});
  HostTensor out = many;
  AttentionOptions options;
  options.softcap = -1;
  EXPECT_EQ(batch.attend(many, many, many, out.mutable_view(), 0, options).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(memory.committed(), 0);
  EXPECT_EQ(memory.regions(), 0);
  EXPECT_EQ(batch.stats().rows_appended, 0);
  EXPECT_OK(batch.attend(iota({1, 2, 1, 3}), iota({1, 2, 1, 3}), iota({1, 2, 1, 4}),
                         HostTensor(DType::kF32, {1, 2, 1, 4}).mutable_view()));  // any shape yet
}

}  // namespace
}  // namespace kvcache::testing
