// Every allocation of every call of PagedCache fails once: the call is kOutOfMemory, and the cache
// is as before.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "support/paged.h"

namespace {

// Allocations of this thread until one fails; negative: none does.
thread_local std::int64_t allocations_left = -1;

}  // namespace

// Replaces the allocation of the whole test program; it fails only where a test asks for it. Not
// inlined: g++ would see free() meet new.
[[gnu::noinline]] void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  if (allocations_left >= 0 && allocations_left-- == 0) return nullptr;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (void* data = operator new(bytes, std::nothrow)) return data;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* data) noexcept { std::free(data); }
[[gnu::noinline]] void operator delete(void* data, std::size_t) noexcept { std::free(data); }
[[gnu::noinline]] void operator delete(void* data, const std::nothrow_t&) noexcept {
  std::free(data);
}

namespace kvcache::testing {
namespace {

using Seqs = std::vector<SequenceId>;

// `call` returns a Status or Result; it is repeated, each time with a later allocation failing,
// until nothing fails. How often it failed; what it may not change is checked after each failure.
template <typename Call, typename Look>
int fail_every_allocation(const Call& call, const Look& look) {
  const auto before = look();
  for (int failures = 0;; ++failures) {
    allocations_left = failures;
    StatusCode code = StatusCode::kOk;
    {
      const auto result = call();
      allocations_left = -1;
      if constexpr (requires { result.status(); }) {
        code = result.status().code();
      } else {
        code = result.code();
      }
      if (code == StatusCode::kOk) return failures;
    }
    EXPECT_EQ(code, StatusCode::kOutOfMemory);
    EXPECT_TRUE(look() == before) << "allocation " << failures;
    if (::testing::Test::HasFailure()) return failures;
  }
}

TEST(PagedCacheAllocations, AnyThatFailsLeavesTheCacheAsBefore) {
  PagedFixture f(PagedFixture::config(Layout::kHND, DType::kF32, 16));
  const SequenceId a = f.open();
  const SequenceId b = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3, 4, 5, 6}));
  EXPECT_OK(f.append(b, {7}));
  const Seqs seqs = {a, b};
  const auto look = [&] { return state_of(f, seqs); };
  EXPECT_GT(fail_every_allocation([&] { return f.cache.open(); }, look), 0);
  EXPECT_GT(fail_every_allocation([&] { return f.cache.fork(a, 5); }, look), 0);
  const std::int32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const Append appends[] = {{a, 9, ids}, {b, 3}};
  EXPECT_GT(fail_every_allocation([&] { return f.cache.reserve(appends); }, look), 0);
  PagedCache::Step step = f.cache.reserve(appends).value();
  EXPECT_OK(f.write(step, Tokens(12, 9)));
  EXPECT_GT(fail_every_allocation([&] { return f.cache.view(step, 0); }, look), 0);
  EXPECT_GT(fail_every_allocation([&] { return f.cache.slot_mapping(step, 0); }, look), 0);
  EXPECT_EQ(fail_every_allocation([&] { return f.cache.commit(step); }, look), 0);
  EXPECT_GT(fail_every_allocation([&] { return f.cache.view(0, seqs); }, look), 0);
  EXPECT_GT(fail_every_allocation([&] { return f.cache.block_table(0, seqs); }, look), 0);
  EXPECT_GT(fail_every_allocation([&] { return f.cache.page_indices(0, seqs); }, look), 0);
  const HostTensor beams = indices({1, 0});
  EXPECT_GT(fail_every_allocation([&] { return f.cache.reorder(seqs, beams); }, look), 0);
  EXPECT_EQ(fail_every_allocation([&] { return f.cache.truncate(b, 2); }, look), 0);
  EXPECT_EQ(fail_every_allocation([&] { return f.cache.release(b); }, [] { return 0; }), 0);
}

TEST(PagedCacheAllocations, WritesMakeNone) {
  PagedFixture f;
  const SequenceId a = f.open();
  PagedCache::Step step = f.reserve(a, 5).value();
  const HostTensor k = packed(f.spec(), {1, 2, 3, 4, 5}, 0, false);
  const HostTensor v = packed(f.spec(), {1, 2, 3, 4, 5}, 0, true);
  allocations_left = 0;
  const Status status = f.cache.write(step, 0, k, v);
  allocations_left = -1;
  EXPECT_TRUE(status.ok());
}

TEST(PagedCacheAllocations, CreateFailsCleanly) {
  const CacheConfig config = PagedFixture::config();
  EXPECT_GT(fail_every_allocation([&] { return PagedCache::create(config); }, [] { return 0; }), 0);
}

}  // namespace
}  // namespace kvcache::testing
