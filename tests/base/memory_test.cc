#include "kvcache/memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "base/memory_kinds.h"

namespace kvcache {
namespace {

using internal::page_bytes;

// One test body for every memory: {name, resource, moves pages}.
struct Kind {
  const char* name;
  MemoryResource& (*get)();
  bool moves;
};

class Memory : public ::testing::TestWithParam<Kind> {
 protected:
  MemoryResource& memory() { return GetParam().get(); }

  Region reserve(std::int64_t bytes) {
    Result<Region> region = memory().reserve(bytes);
    EXPECT_TRUE(region.ok()) << region.status().to_string();
    return region.ok() ? *region : Region{};
  }
};

std::byte pattern(std::int64_t row, std::int64_t i) {
  return static_cast<std::byte>((row * 131 + i * 7 + i / 251 + 1) & 0xff);
}

void fill(const Region& region, const RowSpan& span, std::int64_t from = 0) {
  for (std::int64_t row = 0; row < span.num_rows; ++row) {
    for (std::int64_t i = from; i < span.used_bytes; ++i) {
      region.data[row * span.row_stride + i] = pattern(row, i);
    }
  }
}

// The first byte that is not as `fill` left it, or nothing.
std::string difference(const Region& region, const RowSpan& span) {
  for (std::int64_t row = 0; row < span.num_rows; ++row) {
    for (std::int64_t i = 0; i < span.used_bytes; ++i) {
      if (region.data[row * span.row_stride + i] != pattern(row, i)) {
        return "row " + std::to_string(row) + " byte " + std::to_string(i);
      }
    }
  }
  return "";
}

TEST_P(Memory, ReservesZerosAlignedToAPage) {
  const Region region = reserve(3 * page_bytes() + 5);
  ASSERT_NE(region.data, nullptr);
  EXPECT_EQ(region.bytes, 3 * page_bytes() + 5);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(region.data) % static_cast<size_t>(page_bytes()), 0u);
  for (std::int64_t i = 0; i < region.bytes; ++i) ASSERT_EQ(region.data[i], std::byte{0});
  std::memset(region.data, 1, static_cast<std::size_t>(region.bytes));
  memory().release(region, 0);
}

TEST_P(Memory, RefusesWhatNoSystemHas) {
  EXPECT_EQ(memory().reserve(std::numeric_limits<std::int64_t>::max()).status().code(),
            StatusCode::kOutOfMemory);
  EXPECT_EQ(memory().reserve(std::int64_t{1} << 62).status().code(), StatusCode::kOutOfMemory);
  EXPECT_FALSE(memory().reserve(0).ok());
  EXPECT_FALSE(memory().reserve(-1).ok());
}

TEST_P(Memory, GrowKeepsRowsAndTheOldRegionReadable) {
  const std::int64_t page = page_bytes();
  // Content of less than a page, of whole pages, and of a bit more; strides with an offset within
  // the page, so that rows start anywhere in one.
  for (const std::int64_t used : {std::int64_t{0}, std::int64_t{1}, std::int64_t{100}, page - 1,
                                  page, page + 1, 5 * page + 77}) {
    for (const std::int64_t offset : {std::int64_t{0}, std::int64_t{64}, page - 64}) {
      const RowSpan from{7, 8 * page + offset, used};
      const RowSpan to{7, 16 * page + offset, used};
      const Region old = reserve(from.num_rows * from.row_stride);
      fill(old, from);
      std::int64_t copied = -1;
      Result<Region> grown = memory().grow(old, from, to, to.num_rows * to.row_stride, &copied);
      ASSERT_TRUE(grown.ok()) << grown.status().to_string();
      EXPECT_EQ(copied, GetParam().moves ? 0 : from.num_rows * used);
      EXPECT_EQ(difference(*grown, to), "") << "used " << used << " offset " << offset;
      // Readable, whatever it holds.
      std::int64_t sum = 0;
      for (std::int64_t i = 0; i < old.bytes; i += 512) sum += static_cast<int>(old.data[i]);
      EXPECT_GE(sum, 0);
      memory().release(old, 0);
      EXPECT_EQ(difference(*grown, to), "");
      // And the rest of each row is there to be written.
      const RowSpan more{7, to.row_stride, 15 * page};
      fill(*grown, more, used);
      EXPECT_EQ(difference(*grown, more), "");
      memory().release(*grown, 0);
    }
  }
}

// A row that was moved and then written further lies in several mappings of the system.
TEST_P(Memory, GrowsAgainAndAgain) {
  const std::int64_t page = page_bytes();
  RowSpan from{5, 3 * page + 192, 2 * page};
  Region region = reserve(from.num_rows * from.row_stride);
  fill(region, from);
  for (int round = 0; round < 6; ++round) {
    RowSpan to = from;
    to.row_stride = from.row_stride + (std::int64_t{4} << round) * page;
    std::int64_t copied = -1;
    Result<Region> grown = memory().grow(region, from, to, to.num_rows * to.row_stride, &copied);
    ASSERT_TRUE(grown.ok()) << grown.status().to_string();
    EXPECT_EQ(copied, GetParam().moves ? 0 : from.num_rows * from.used_bytes) << round;
    memory().release(region, 0);
    region = *grown;
    EXPECT_EQ(difference(region, to), "") << round;
    from = to;
    // Longer in most rounds, shorter in one: the content need not reach the last border.
    from.used_bytes = round == 2 ? page + 10 : to.row_stride - page - 300 - round;
    fill(region, from);
  }
  EXPECT_EQ(difference(region, from), "");
  memory().release(region, 0);
}

TEST_P(Memory, DecommitLeavesEverythingOutsideItsPages) {
  const std::int64_t page = page_bytes();
  const RowSpan span{1, 8 * page, 8 * page};
  const Region region = reserve(8 * page);
  fill(region, span);
  memory().decommit(region, 0, page + 1, 3 * page);
  for (std::int64_t i = 0; i < 8 * page; ++i) {
    if (i > page && i < 4 * page + 1) continue;
    ASSERT_EQ(region.data[i], pattern(0, i)) << i;
  }
  memory().decommit(region, 10, 0, 0);
  EXPECT_EQ(region.data[0], pattern(0, 0));
  // What was given back can be used again.
  fill(region, span);
  EXPECT_EQ(difference(region, span), "");
  memory().release(region, 0);
}

TEST_P(Memory, ThreadsShareIt) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this] {
      for (int i = 0; i < 20; ++i) {
        const RowSpan from{3, 2 * page_bytes(), page_bytes() / 2};
        const RowSpan to{3, 4 * page_bytes(), page_bytes() / 2};
        Result<Region> region = memory().reserve(3 * from.row_stride);
        ASSERT_TRUE(region.ok());
        fill(*region, from);
        std::int64_t copied = 0;
        Result<Region> grown = memory().grow(*region, from, to, 3 * to.row_stride, &copied);
        ASSERT_TRUE(grown.ok());
        memory().release(*region, 0);
        EXPECT_EQ(difference(*grown, to), "");
        memory().release(*grown, 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

const Kind kKinds[] = {
#if !KVC_PORTABLE_MEMORY
    {"mapped", []() -> MemoryResource& { return internal::mapped_memory(); }, true},
#endif
    {"portable", []() -> MemoryResource& { return internal::portable_memory(); }, false},
};

INSTANTIATE_TEST_SUITE_P(Kinds, Memory, ::testing::ValuesIn(kKinds),
                         [](const auto& param) { return std::string(param.param.name); });

#if !KVC_PORTABLE_MEMORY

// Resident bytes of this process.
std::int64_t resident() {
  long total = 0;
  long pages = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  const int read = std::fscanf(file, "%ld %ld", &total, &pages);
  std::fclose(file);
  return read == 2 ? pages * page_bytes() : 0;
}

TEST(MappedMemory, ReservingCostsNoMemoryAndTouchingOnePageOfARowOnlyThat) {
  MemoryResource& memory = internal::mapped_memory();
  const std::int64_t stride = std::int64_t{64} << 20;
  const std::int64_t before = resident();
  Result<Region> region = memory.reserve(64 * stride);
  ASSERT_TRUE(region.ok());
  EXPECT_LT(resident() - before, std::int64_t{4} << 20);
  // A huge page per row would be 128 MiB.
  for (int row = 0; row < 64; ++row) region->data[row * stride + 5] = std::byte{1};
  EXPECT_LT(resident() - before, std::int64_t{16} << 20);
  memory.release(*region, 0);
}

TEST(MappedMemory, WhatSticksOutOfHugePagesIsTakenByTheSmallPage) {
  MemoryResource& memory = internal::mapped_memory();
  constexpr std::int64_t kHuge = 2 << 20;
  Result<Region> region = memory.reserve(64 * kHuge);
  ASSERT_TRUE(region.ok());
  // Every second stretch is said to be filled, each but a page too short for a huge page at either
  // end of the one it holds.
  const std::int64_t page = page_bytes();
  for (std::int64_t at = 0; at + 3 * kHuge <= region->bytes; at += 4 * kHuge) {
    memory.will_fill(*region, at, 3 * kHuge);
  }
  const auto lead = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(region->data) %
                                              static_cast<std::uintptr_t>(kHuge));
  const std::int64_t before = resident();
  for (std::int64_t at = 0; at + 4 * kHuge <= region->bytes; at += 4 * kHuge) {
    // Right before the first huge page within the stretch, and behind the stretch.
    const std::int64_t first = (kHuge - lead) % kHuge;
    if (first >= page) region->data[at + first - page] = std::byte{1};
    region->data[at + 3 * kHuge + (lead == 0 ? 0 : kHuge - lead)] = std::byte{1};
  }
  EXPECT_LT(resident() - before, std::int64_t{8} << 20);
  // What is told may be written, read and given back as any other.
  std::memset(region->data, 7, static_cast<std::size_t>(3 * kHuge));
  memory.decommit(*region, 0, kHuge, kHuge);
  EXPECT_EQ(region->data[kHuge + page], std::byte{0});
  EXPECT_EQ(region->data[2 * kHuge], std::byte{7});
  memory.will_fill(*region, 5, 10);  // too short for any
  memory.will_fill(*region, 0, kHuge / 2);
  memory.release(*region, 0);
}

TEST(MappedMemory, DecommitReadsAsZeros) {
  MemoryResource& memory = internal::mapped_memory();
  const std::int64_t page = page_bytes();
  Result<Region> region = memory.reserve(4 * page);
  ASSERT_TRUE(region.ok());
  std::memset(region->data, 1, static_cast<std::size_t>(4 * page));
  memory.decommit(*region, 0, page, 2 * page);
  for (std::int64_t i = page; i < 3 * page; ++i) ASSERT_EQ(region->data[i], std::byte{0});
  memory.release(*region, 0);
}

TEST(MappedMemory, CopiesWhenThereWouldBeTooManyMappings) {
  MemoryResource& memory = internal::mapped_memory();
  const std::int64_t page = page_bytes();
  const RowSpan from{60000, page, 16};
  const RowSpan to{60000, 2 * page, 16};
  Result<Region> region = memory.reserve(from.num_rows * from.row_stride);
  ASSERT_TRUE(region.ok());
  fill(*region, from);
  std::int64_t copied = 0;
  Result<Region> grown = memory.grow(*region, from, to, to.num_rows * to.row_stride, &copied);
  ASSERT_TRUE(grown.ok());
  EXPECT_EQ(copied, from.num_rows * from.used_bytes);
  EXPECT_EQ(difference(*grown, to), "");
  memory.release(*region, 0);
  memory.release(*grown, 0);
}

TEST(MappedMemory, CopiesOfTheLastRowsWhatTheyHold) {
  MemoryResource& memory = internal::mapped_memory();
  const std::int64_t page = page_bytes();
  const RowSpan from{60000, page, 160, 50000, 16};
  const RowSpan to{60000, 2 * page, 160, 50000, 16};
  Result<Region> region = memory.reserve(from.num_rows * from.row_stride);
  ASSERT_TRUE(region.ok());
  fill(*region, from);
  std::int64_t copied = 0;
  Result<Region> grown = memory.grow(*region, from, to, to.num_rows * to.row_stride, &copied);
  ASSERT_TRUE(grown.ok());
  EXPECT_EQ(copied, 10000 * 160 + 50000 * 16);
  EXPECT_EQ(copied, from.total_bytes());
  EXPECT_EQ(difference(*grown, RowSpan{10000, 2 * page, 160}), "");
  EXPECT_EQ(difference(*grown, RowSpan{60000, 2 * page, 16}), "");
  EXPECT_EQ(grown->data[59999 * to.row_stride + 16], std::byte{0});
  memory.release(*region, 0);
  memory.release(*grown, 0);
}

#endif

TEST(LimitedMemory, CountsAndRefusesByTheNumbers) {
  LimitedMemory memory(1000, internal::portable_memory());
  Result<Region> region = memory.reserve(4000);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ(memory.committed_bytes(), 0);
  EXPECT_TRUE(memory.commit(*region, 600).ok());
  const Status refused = memory.commit(*region, 401);
  EXPECT_EQ(refused.code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(refused.message(), "memory: asked 401 bytes more with 600 of 1000 committed");
  EXPECT_EQ(memory.committed_bytes(), 600);
  EXPECT_TRUE(memory.commit(*region, 400).ok());
  EXPECT_EQ(memory.commit(*region, std::numeric_limits<std::int64_t>::max()).code(),
            StatusCode::kOutOfMemory);
  memory.decommit(*region, 100, 0, 0);
  EXPECT_EQ(memory.committed_bytes(), 900);
  memory.release(*region, 900);
  EXPECT_EQ(memory.committed_bytes(), 0);
}

TEST(LimitedMemory, CountsCopiedRowsTwiceUntilTheirOldRegionIsReleased) {
  LimitedMemory memory(1000, internal::portable_memory());
  const RowSpan from{1, 4000, 400}, to{1, 8000, 400};
  Result<Region> region = memory.reserve(4000);
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE(memory.commit(*region, 500).ok());
  fill(*region, from);

  // The account goes with the region that has grown; the old one holds what was copied.
  std::int64_t copied = 0;
  Result<Region> grown = memory.grow(*region, from, to, 8000, &copied);
  ASSERT_TRUE(grown.ok());
  EXPECT_EQ(copied, 400);
  EXPECT_EQ(memory.committed_bytes(), 900);

  // Once more would pass the limit: refused, and nothing is lost.
  copied = 0;
  const Result<Region> refused = memory.grow(*grown, to, RowSpan{1, 16000, 400}, 16000, &copied);
  EXPECT_EQ(refused.status().code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(copied, 0);
  EXPECT_EQ(memory.committed_bytes(), 900);
  EXPECT_EQ(difference(*grown, to), "");
  EXPECT_EQ(difference(*region, from), "");

  memory.release(*region, 0);
  EXPECT_EQ(memory.committed_bytes(), 500);
  memory.release(*grown, 500);
  EXPECT_EQ(memory.committed_bytes(), 0);
}

#if !KVC_PORTABLE_MEMORY
TEST(LimitedMemory, PagesThatMoveCountOnce) {
  LimitedMemory memory(1 << 20, internal::mapped_memory());
  const std::int64_t page = page_bytes();
  const RowSpan from{1, 4 * page, 2 * page}, to{1, 8 * page, 2 * page};
  Result<Region> region = memory.reserve(from.row_stride);
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE(memory.commit(*region, 2 * page).ok());
  fill(*region, from);
  std::int64_t copied = 0;
  Result<Region> grown = memory.grow(*region, from, to, to.row_stride, &copied);
  ASSERT_TRUE(grown.ok());
  EXPECT_EQ(memory.committed_bytes(), 2 * page + copied);
  memory.release(*region, 0);
  memory.release(*grown, 2 * page);
  EXPECT_EQ(memory.committed_bytes(), 0);
}
#endif

// Refuses every commit.
class Miser final : public MemoryResource {
 public:
  Result<Region> reserve(std::int64_t bytes) noexcept override {
    return internal::portable_memory().reserve(bytes);
  }
  Status commit(const Region&, std::int64_t) noexcept override {
    return Status(StatusCode::kOutOfMemory, "no");
  }
  void decommit(const Region&, std::int64_t, std::int64_t, std::int64_t) noexcept override {}
  Result<Region> grow(const Region&, const RowSpan&, const RowSpan&, std::int64_t,
                      std::int64_t*) noexcept override {
    return Status(StatusCode::kOutOfMemory, "no");
  }
  void release(const Region& region, std::int64_t) noexcept override {
    internal::portable_memory().release(region, 0);
  }
};

TEST(LimitedMemory, RefusalUpstreamLeavesTheAccountAlone) {
  Miser miser;
  LimitedMemory memory(1000, miser);
  Result<Region> region = memory.reserve(100);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ(memory.commit(*region, 10).message(), "no");
  EXPECT_EQ(memory.committed_bytes(), 0);
  memory.release(*region, 0);
}

TEST(LimitedMemory, ThreadsNeverPassTheLimitTogether) {
  LimitedMemory memory(1000, internal::portable_memory());
  std::vector<std::thread> threads;
  std::vector<int> granted(4, 0);
  for (std::size_t t = 0; t < granted.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 1000; ++i) granted[t] += memory.commit(Region{}, 1).ok() ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(granted[0] + granted[1] + granted[2] + granted[3], 1000);
  EXPECT_EQ(memory.committed_bytes(), 1000);
}

}  // namespace
}  // namespace kvcache
