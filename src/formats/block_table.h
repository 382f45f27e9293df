// Where the blocks of a file lie, and what their sums are.
#ifndef KVCACHE_SRC_FORMATS_BLOCK_TABLE_H_
#define KVCACHE_SRC_FORMATS_BLOCK_TABLE_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/door.h"
#include "base/expect.h"
#include "base/file.h"
#include "base/xxh3.h"
#include "kvcache/executor.h"
#include "kvcache/status.h"

namespace kvcache::internal {

struct BlockTable {
  std::vector<std::uint64_t> sums;    // [num_blocks]
  std::vector<std::int64_t> offsets;  // [num_blocks + 1] where each begins; the file's end

  std::int64_t header_bytes() const noexcept { return offsets.front(); }
  std::int64_t file_bytes() const noexcept { return offsets.back(); }
  std::int64_t bytes_of(std::size_t block) const noexcept {
    return offsets[block + 1] - offsets[block];
  }
  std::int64_t most_bytes() const noexcept {
    std::int64_t most = 0;
    for (std::size_t b = 0; b < sums.size(); ++b) most = std::max(most, bytes_of(b));
    return most;
  }
};

// Reads a block into `room` and returns its bytes. Errors: kCorrupt for another sum, those of the
// file. REQUIRES: room for it.
inline Result<std::span<const std::byte>> read_block(const File& file, const BlockTable& blocks,
                                                     std::size_t block, std::span<std::byte> room) {
  const std::span<std::byte> bytes = room.first(static_cast<std::size_t>(blocks.bytes_of(block)));
  KVC_RETURN_IF_ERROR(file.read_at(blocks.offsets[block], bytes));
  if (xxh3(bytes) != blocks.sums[block]) {
    return refusal(StatusCode::kCorrupt, "sum of block " + std::to_string(block), "another",
                   "that of its bytes");
  }
  return std::span<const std::byte>(bytes);
}

// Blocks that are read at once hold no more than this together, unless one alone does.
inline constexpr std::int64_t kMostBlockMemory = std::int64_t{64} << 20;

// Calls fn(block, its bytes) noexcept for each block once, in tasks of the executor, as long as all
// have their sums. Errors: that of the first that has not. May throw bad_alloc.
template <typename Fn>
Status for_each_block(const File& file, const BlockTable& blocks, const ExecContext& context,
                      Fn&& fn) {
  const auto count = static_cast<std::int64_t>(blocks.sums.size());
  const std::int64_t most = std::max<std::int64_t>(1, blocks.most_bytes());
  const std::int64_t tasks = std::max<std::int64_t>(
      1, std::min({count, kMostBlockMemory / most, std::int64_t{context.get().concurrency()}}));
  struct Work {
    const File& file;
    const BlockTable& blocks;
    std::remove_reference_t<Fn>& fn;
    std::int64_t tasks, most;
    std::vector<std::byte> room;
    std::vector<Status> status;
    std::atomic<std::int64_t> failed;  // the first block that was found bad, or their count

    // Blocks of one task have a room of their own, and are apart by the number of tasks.
    void run(std::int64_t task) noexcept {
      Status& result = status[static_cast<std::size_t>(task)];
      const std::span<std::byte> mine(room.data() + task * most, static_cast<std::size_t>(most));
      for (std::int64_t b = task; b < failed.load(std::memory_order_relaxed); b += tasks) {
        result = at_door([&]() -> Status {
          KVC_ASSIGN_OR_RETURN(const auto bytes,
                               read_block(file, blocks, static_cast<std::size_t>(b), mine));
          fn(b, bytes);
          return {};
        });
        if (result.ok()) continue;
        std::int64_t first = failed.load(std::memory_order_relaxed);
        while (b < first && !failed.compare_exchange_weak(first, b, std::memory_order_relaxed)) {
        }
        return;
      }
    }
  } work{file, blocks, fn, tasks, most, {}, {}, count};
  work.room.resize(static_cast<std::size_t>(tasks * most));
  work.status.resize(static_cast<std::size_t>(tasks));
  context.get().parallel_for(
      tasks,
      [](void* data, std::int64_t task, std::int32_t) noexcept {
        static_cast<Work*>(data)->run(task);
      },
      &work);
  if (work.failed == count) return {};
  return work.status[static_cast<std::size_t>(work.failed % tasks)];
}

// All blocks have their sums.
inline Status verify_blocks(const File& file, const BlockTable& blocks,
                            const ExecContext& context) {
  return for_each_block(file, blocks, context, [](std::int64_t, std::span<const std::byte>) {});
}

// Writes the blocks and sets their sums: fill(block, its bytes, zeros yet) puts rows into them. May
// throw bad_alloc.
template <typename Fill>
Status write_blocks(File& file, BlockTable& blocks, Fill&& fill) {
  std::vector<std::byte> room(static_cast<std::size_t>(blocks.most_bytes()));
  for (std::size_t b = 0; b < blocks.sums.size(); ++b) {
    const auto bytes = std::span(room).first(static_cast<std::size_t>(blocks.bytes_of(b)));
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    fill(static_cast<std::int64_t>(b), bytes);
    blocks.sums[b] = xxh3(bytes);
    KVC_RETURN_IF_ERROR(file.write_at(blocks.offsets[b], bytes));
  }
  return {};
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_FORMATS_BLOCK_TABLE_H_
