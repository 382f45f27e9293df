// What PagedCache promises beyond the table of docs: semantics, section 4: memory to the byte,
// budgets, refusals of the memory resource, large copies.
#include "kvcache/paged_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "kvcache/memory_plan.h"
#include "support/paged.h"

namespace kvcache::testing {
namespace {

using Seqs = std::vector<SequenceId>;

// --- Config. ---

TEST(PagedCacheConfig, WhatNoCacheCouldHaveIsRefused) {
  const auto refused = [](auto change) {
    CacheConfig config = PagedFixture::config();
    change(config);
    const Status status = PagedCache::create(config).status();
    return status.code() == StatusCode::kInvalidArgument && !status.message().empty();
  };
  EXPECT_TRUE(refused([](CacheConfig& c) { c.layers.clear(); }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.layers[1].buffers[0].heads = 0; }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.layers[0].buffers[1].dim = -1; }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.layers[0].buffers[0].format.dtype = DType::kI64; }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.page_size = 0; }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.num_pages = 0; }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.num_pages = -1; }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.budget_bytes = -1; }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.budget_bytes = 100; }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.num_pages = std::int64_t{1} << 40; }));
  EXPECT_TRUE(refused([](CacheConfig& c) { c.layout = static_cast<Layout>(7); }));
}

TEST(PagedCacheConfig, UniformMakesEqualLayers) {
  const CacheConfig config = CacheConfig::uniform(3, 2, 64, DType::kBF16);
  ASSERT_EQ(config.layers.size(), 3u);
  EXPECT_EQ(config.layers[0], config.layers[2]);
  EXPECT_EQ(bytes_per_token(config.layers[0]), 2 * 128 * 2);
  EXPECT_TRUE(CacheConfig::uniform(-1, 2, 64).layers.empty());
}

// --- Bytes. ---

// Two groups: layers 0 and 2, and layer 1.
CacheConfig two_groups(std::int64_t num_pages) {
  CacheConfig config = PagedFixture::config(Layout::kHND, DType::kF32, num_pages, 4, 3);
  config.layers[1].buffers[0].dim = 1;
  config.layers[1].life.window = 1 << 20;  // nothing is dropped
  return config;
}

Status append_zeros(PagedCache& cache, const CacheConfig& config, SequenceId seq,
                    std::int64_t count) {
  const Append append{seq, count};
  KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
  for (std::int64_t layer = 0; layer < cache.num_layers(); ++layer) {
    const LayerSpec& spec = config.layers[static_cast<std::size_t>(layer)];
    const HostTensor k(DType::kF32, {count, spec.key().heads, spec.key().dim});
    const HostTensor v(DType::kF32, {count, spec.value().heads, spec.value().dim});
    KVC_RETURN_IF_ERROR(cache.write(step, layer, k, v));
  }
  return cache.commit(step);
}

TEST(PagedCacheBytes, ThePlanEqualsWhatAFreshCacheReports) {
  for (const std::int64_t batch : {1, 3}) {
    for (const std::int64_t length : {0, 1, 4, 5, 17}) {
      for (const std::int64_t spare : {0, 7}) {
        const CacheConfig layers = two_groups(1);
        MemoryPlanRequest request;
        request.layers = layers.layers;
        request.batch_size = batch;
        request.seq_length = length;
        request.page_size = 4;
        const std::int64_t needed = batch * ((length + 3) / 4);
        if (spare > 0) request.num_pages = needed + spare;
        const PlannedBytes plan = plan_memory(CacheKind::kPaged, request).value();

        const CacheConfig config = two_groups(std::max<std::int64_t>(1, needed + spare));
        PagedCache cache = PagedCache::create(config).value();
        for (std::int64_t b = 0; b < batch; ++b) {
          const SequenceId seq = cache.open().value();
          for (std::int64_t done = 0; done < length;) {
            const std::int64_t count = std::min<std::int64_t>(3, length - done);
            EXPECT_OK(append_zeros(cache, config, seq, count));
            done += count;
          }
        }
        EXPECT_EQ(cache.nbytes(), plan.nbytes);
        EXPECT_EQ(cache.reserved_bytes(), plan.reserved_bytes);
        EXPECT_EQ(cache.stats().pages_held, plan.num_pages);
      }
    }
  }
}

TEST(PagedCacheBytes, APlanIsABudgetThatHoldsIt) {
  CacheConfig config = two_groups(0);
  MemoryPlanRequest request;
  request.layers = config.layers;
  request.batch_size = 3;
  request.seq_length = 9;
  request.page_size = config.page_size;
  config.budget_bytes = plan_memory(CacheKind::kPaged, request)->reserved_bytes;
  PagedCache cache = PagedCache::create(config).value();
  for (int i = 0; i < 3; ++i) {
    EXPECT_OK(append_zeros(cache, config, cache.open().value(), 9));
  }
  EXPECT_EQ(cache.free_pages(), 0);
  EXPECT_EQ(cache.reserved_bytes(), config.budget_bytes);
}

TEST(PagedCacheBytes, MorePagesThanOneGroupCouldHaveInABudgetAreRefused) {
  CacheConfig config = two_groups(9);  // pages of 192 and 64 bytes, with tables of 220
  config.budget_bytes = 192 + 9 * (64 + 220);
  EXPECT_OK(PagedCache::create(config).status());
  config.budget_bytes -= 1;
  EXPECT_EQ(PagedCache::create(config).status().code(), StatusCode::kInvalidArgument);
}

// A full layer and a window of 4 whose pages go back: the plan's bytes are enough for as long a
// sequence as it says, and what the window needs while it is short goes to the full layer later.
TEST(PagedCacheBytes, APlanWithWindowsIsABudgetThatHoldsItToTheByte) {
  for (const std::int64_t length : {9, 40, 101}) {
    for (const std::int64_t step : {1, 3, 16}) {
      CacheConfig config = two_groups(0);
      config.layers[1].life.window = 4;
      MemoryPlanRequest request;
      request.layers = config.layers;
      request.seq_length = length;
      request.step_tokens = step;
      request.page_size = config.page_size;
      const PlannedBytes plan = plan_memory(CacheKind::kPaged, request).value();
      config.budget_bytes = plan.reserved_bytes;
      PagedCache cache = PagedCache::create(config).value();
      const SequenceId seq = cache.open().value();
      for (std::int64_t n = 0; n < length; n += step) {
        ASSERT_OK(append_zeros(cache, config, seq, std::min(step, length - n)));
        ASSERT_LE(cache.reserved_bytes(), config.budget_bytes);
      }
      EXPECT_EQ(cache.reserved_bytes(), plan.reserved_bytes);
      EXPECT_EQ(append_zeros(cache, config, seq, 9 * step).code(), StatusCode::kNeverFits);
      EXPECT_OK(cache.check_invariants());
    }
  }
}

TEST(PagedCacheBytes, MemoryOfAFreePageGoesToTheGroupThatNeedsIt) {
  TestMemory memory;
  {
    // 16 tokens in one step touch 4 pages of each group, of which the window keeps one; later the
    // full layer has 12, and of the four there is memory for the two that a step needs.
    CacheConfig config = two_groups(0);
    config.layers[1].life.window = 4;
    config.memory = &memory;
    config.budget_bytes = 12 * (192 + 220) + 2 * 64;
    PagedFixture f(config);
    const SequenceId a = f.open();
    ASSERT_OK(f.append(a, Tokens(16, 5)));
    const std::int64_t filled = f.cache.reserved_bytes();
    EXPECT_EQ(filled, 4 * (192 + 64 + 220));
    for (std::int64_t n = 16; n < 48; n += 4) ASSERT_OK(f.append(a, Tokens(4, 6)));
    EXPECT_EQ(f.cache.free_pages(0), 0);
    EXPECT_EQ(f.cache.free_pages(1), 1);  // it has that one
    EXPECT_EQ(f.cache.reserved_bytes(), config.budget_bytes);
    EXPECT_EQ(memory.committed_bytes(), config.budget_bytes);
    EXPECT_EQ(f.held(1, a), Tokens(3, 6));
    EXPECT_REFUSED(f, {a}, StatusCode::kNeverFits, f.append(a, {7}));
    // And back again.
    EXPECT_OK(f.cache.release(a));
    const SequenceId b = f.open();
    ASSERT_OK(f.append(b, Tokens(24, 8)));
    EXPECT_LE(f.cache.reserved_bytes(), config.budget_bytes);
    EXPECT_EQ(memory.committed_bytes(), f.cache.reserved_bytes());
    EXPECT_EQ(f.held(0, b), Tokens(24, 8));
    EXPECT_EQ(f.held(1, b), Tokens(3, 8));
  }
  EXPECT_EQ(memory.committed_bytes(), 0);
  EXPECT_EQ(memory.regions(), 0);
}

TEST(PagedCacheBytes, ABudgetHoldsForTablesOfSharersToo) {
  CacheConfig config = PagedFixture::config();
  config.num_pages = 0;
  config.budget_bytes = 4 * (4 * 2 * 6 * 4 + 32 + 16 + 140);
  PagedFixture f(config);
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
  Seqs forks = {a};
  for (;;) {
    const Result<SequenceId> child = f.cache.fork(a, 6);
    EXPECT_LE(f.cache.reserved_bytes(), config.budget_bytes);
    if (!child.ok()) {
      EXPECT_EQ(child.status().code(), StatusCode::kRetryLater);
      break;
    }
    forks.push_back(*child);
    ASSERT_LT(forks.size(), 100u);
  }
  // What is left over a reserve may take, and no page more.
  const std::int64_t free = f.cache.free_pages();
  EXPECT_LT(free, 2);
  EXPECT_REFUSED(f, forks, StatusCode::kRetryLater, f.reserve(a, 4 * free + 1).status());
  for (std::size_t i = 1; i < forks.size(); ++i) EXPECT_OK(f.cache.release(forks[i]));
  EXPECT_EQ(f.cache.free_pages(), 2);
  EXPECT_OK(f.append(a, Tokens(10, 7)));
  EXPECT_EQ(f.cache.free_pages(), 0);
  EXPECT_LE(f.cache.reserved_bytes(), config.budget_bytes);
}

TEST(PagedCacheBytes, MemoryIsAskedForAsPagesAreFirstUsedAndGivenBackAtTheEnd) {
  TestMemory memory;
  const std::int64_t page = 4 * 2 * 6 * 4;  // tokens, layers, elements, bytes
  {
    CacheConfig config = PagedFixture::config();
    config.memory = &memory;
    PagedFixture f(config);
    const std::int64_t tables = 32 + 4 * 4 + 140;  // of each page
    EXPECT_EQ(memory.committed_bytes(), 0);
    const SequenceId a = f.open();
    EXPECT_EQ(memory.committed_bytes(), 128);  // a sequence
    EXPECT_OK(f.append(a, {1, 2, 3, 4, 5}));
    EXPECT_EQ(memory.committed_bytes(), 2 * (tables + page));
    EXPECT_OK(f.cache.release(a));
    EXPECT_OK(f.append(f.open(), Tokens(8, 1)));
    EXPECT_EQ(memory.committed_bytes(), 2 * (tables + page));
    PagedCache::Step step = f.reserve(f.open(), 1).value();
    EXPECT_EQ(memory.committed_bytes(), 3 * (tables + page));
    PagedCache moved = std::move(f.cache);
    EXPECT_EQ(moved.rollback(step).code(), StatusCode::kOk);
  }
  EXPECT_EQ(memory.committed_bytes(), 0);
  EXPECT_EQ(memory.regions(), 0);
}

TEST(PagedCacheBytes, AnAssignedCacheGivesItsMemoryBackAndItsStepsAreSafe) {
  TestMemory memory;
  CacheConfig config = PagedFixture::config();
  config.memory = &memory;
  PagedFixture f(config);
  PagedCache::Step step = f.reserve(f.open(), 3).value();
  f.cache = PagedCache::create(PagedFixture::config()).value();
  EXPECT_EQ(memory.committed_bytes(), 0);
  EXPECT_EQ(memory.regions(), 0);
  EXPECT_EQ(f.cache.commit(step).code(), StatusCode::kNotFound);
}

// --- Refusals of the memory resource. ---

TEST(PagedCacheMemory, CreateLeavesNothingBehindWhenAnyReservationFails) {
  TestMemory memory;
  memory.fail_after(0);  // address space of the tables is all that it asks for
  CacheConfig config = two_groups(8);
  config.memory = &memory;
  EXPECT_EQ(PagedCache::create(config).status().code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(memory.regions(), 0);
}

TEST(PagedCacheMemory, ReserveChangesNothingWhenAnyCommitFails) {
  TestMemory memory;
  CacheConfig config = two_groups(8);
  config.memory = &memory;
  PagedCache cache = PagedCache::create(config).value();
  const Seqs seqs = {cache.open().value(), cache.open().value()};
  EXPECT_OK(append_zeros(cache, config, seqs[0], 2));
  const std::int64_t committed = memory.committed_bytes();
  const std::int64_t reserved = cache.reserved_bytes();
  const Append appends[] = {{seqs[0], 7}, {seqs[1], 3}};
  // Tables, and the pages of each group.
  for (std::int64_t calls = 0; calls < 3; ++calls) {
    memory.fail_after(calls);
    EXPECT_EQ(cache.reserve(appends).status().code(), StatusCode::kOutOfMemory);
    EXPECT_EQ(memory.committed_bytes(), committed);
    EXPECT_EQ(cache.reserved_bytes(), reserved);
    EXPECT_EQ(cache.free_pages(0), 7);
    EXPECT_EQ(cache.free_pages(1), 7);
    EXPECT_EQ(cache.stats().open_steps, 0);
    EXPECT_OK(cache.check_invariants());
  }
  memory.fail_after(3);
  EXPECT_OK(cache.reserve(appends).status());
  // Pages that were touched before need nothing of the resource.
  memory.fail_after(0);
  EXPECT_OK(cache.reserve(appends).status());
}

TEST(PagedCacheMemory, AbsurdPoolsAreRefusedBeforeAnythingIsTouched) {
  CacheConfig config = CacheConfig::uniform(1000, 1 << 20, 1 << 20);
  config.num_pages = (std::int64_t{1} << 31) / 16 - 1;
  EXPECT_FALSE(PagedCache::create(config).ok());
}

// --- Copies. ---

std::vector<float> gathered(const PagedCache& cache, SequenceId seq, const LayerSpec& spec) {
  const std::int64_t length = cache.seq_length(seq).value();
  HostTensor k(DType::kF32, {spec.key().heads, length, spec.key().dim});
  HostTensor v(DType::kF32, {spec.value().heads, length, spec.value().dim});
  EXPECT_OK(cache.gather(0, seq, k.mutable_view(), v.mutable_view()));
  std::vector<float> all = values(k);
  const std::vector<float> v_values = values(v);
  all.insert(all.end(), v_values.begin(), v_values.end());
  return all;
}

TEST(PagedCacheCopies, LargeOnesGoThroughTheExecutorAndGiveTheSameRows) {
  const std::int64_t count = 1003;  // 1.5 MiB in f32, in pages of 64 for three sequences
  CacheConfig config = CacheConfig::uniform(1, 3, 64);
  config.page_size = 64;
  config.num_pages = 64;
  const HostTensor k = iota({3 * count, 3, 64});
  const HostTensor v = iota({3 * count, 3, 64}, DType::kF32, 1e6);
  std::vector<std::vector<float>> results;
  const auto threads = make_thread_pool(3).value();
  for (Executor* executor : {&serial_executor(), threads.get()}) {
    PagedCache cache = PagedCache::create(config).value();
    std::vector<Append> appends;
    for (int i = 0; i < 3; ++i) appends.push_back({cache.open().value(), count});
    PagedCache::Step step = cache.reserve(appends).value();
    EXPECT_OK(cache.write(step, 0, k, v, {executor}));
    EXPECT_OK(cache.commit(step));
    for (const Append& append : appends) {
      results.push_back(gathered(cache, append.seq, config.layers[0]));
    }
  }
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(results[i] == results[i + 3]);
  EXPECT_EQ(results[1][0], float(count * 3 * 64));
  EXPECT_EQ(results[1][64], float((count + 1) * 3 * 64));
}

TEST(PagedCacheCopies, TensorsMayHaveAnyStrides) {
  PagedFixture f;
  const SequenceId a = f.open();
  PagedCache::Step step = f.reserve(a, 3).value();
  for (std::int64_t layer = 0; layer < f.num_layers; ++layer) {
    // Head-first memory shown as [tokens, heads, dim], newest token first.
    HostTensor k(DType::kF32, {2, 3, 2});
    HostTensor v(DType::kF32, {2, 3, 2});
    for (std::int64_t head = 0; head < 2; ++head) {
      for (std::int64_t row = 0; row < 3; ++row) {
        for (std::int64_t d = 0; d < 2; ++d) {
          const std::int64_t at = (head * 3 + 2 - row) * 2 + d;
          k.set(at, element(double(row), layer, head, d, false));
          v.set(at, d == 0 ? element(double(row), layer, head, d, true) : -1);
        }
      }
    }
    const auto shown = [](const HostTensor& tensor, std::int64_t dim) {
      TensorView view = tensor;
      view.data = static_cast<const float*>(view.data) + 4;
      view.shape[0] = 3;
      view.shape[1] = 2;
      view.shape[2] = dim;
      view.strides[0] = -2;
      view.strides[1] = 6;
      return view;
    };
    EXPECT_OK(f.cache.write(step, layer, shown(k, 2), shown(v, 1)));
  }
  EXPECT_OK(f.cache.commit(step));
  EXPECT_EQ(f.tokens(a), (Tokens{0, 1, 2}));
  // Every other element of a larger destination.
  std::vector<float> out(2 * 3 * 4, -1.0f);
  MutableTensorView k(out.data(), DType::kF32, {2, 3, 2});
  k.strides[0] = 12;
  k.strides[1] = 4;
  k.strides[2] = 2;
  HostTensor v(DType::kF32, {2, 3, 1});
  EXPECT_OK(f.cache.gather(0, a, k, v.mutable_view()));
  EXPECT_EQ(values(k), (std::vector<float>{0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11}));
  EXPECT_EQ(out[1], -1.0f);
}

TEST(PagedCacheThreads, ConstCallsRunTogether) {
  PagedFixture f;
  const SequenceId a = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5}));
  const SequenceId b = f.cache.fork(a, 3).value();
  PagedCache::Step step = f.reserve(b, 1).value();
  EXPECT_OK(f.write(step, {9}));
  const auto look = [&] {
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(f.tokens(a), (Tokens{1, 2, 3, 4, 5}));
      EXPECT_EQ(f.tokens(f.cache.view(step, 0).value(), 0), (Tokens{1, 2, 3, 9}));
      EXPECT_EQ(f.cache.nbytes(), 5 * 48);
    }
  };
  std::thread other(look);
  look();
  other.join();
}

}  // namespace
}  // namespace kvcache::testing
