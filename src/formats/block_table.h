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

// Blocks that are read at once hold no more than this together, unless one alone does.
inline constexpr std::int64_t kMostBlockMemory = std::int64_t{64} << 20;

// What is read at once of a block that is only summed.
inline constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;

inline Status other_sum(std::size_t block) {
  return refusal(StatusCode::kCorrupt, "sum of block " + std::to_string(block), "another",
                 "that of its bytes");
}

// Reads a block into `room` and returns its bytes. Errors: kCorrupt for another sum, those of the
// file. REQUIRES: room for it.
inline Result<std::span<const std::byte>> read_block(const File& file, const BlockTable& blocks,
                                                     std::size_t block, std::span<std::byte> room) {
  const std::span<std::byte> bytes = room.first(static_cast<std::size_t>(blocks.bytes_of(block)));
  KVC_RETURN_IF_ERROR(file.read_at(blocks.offsets[block], bytes));
  if (xxh3(bytes) != blocks.sums[block]) return other_sum(block);
  return std::span<const std::byte>(bytes);
}

// Whether a block has its sum, read piece by piece through `room`. Errors: as read_block().
inline Status check_block(const File& file, const BlockTable& blocks, std::size_t block,
                          std::span<std::byte> room) {
  Xxh3 sum;
  for (std::int64_t at = blocks.offsets[block]; at < blocks.offsets[block + 1];) {
    const std::int64_t left = blocks.offsets[block + 1] - at;
    const auto piece = room.first(std::min(room.size(), static_cast<std::size_t>(left)));
    KVC_RETURN_IF_ERROR(file.read_at(at, piece));
    sum.add(piece);
    at += static_cast<std::int64_t>(piece.size());
  }
  return sum.sum() == blocks.sums[block] ? Status() : other_sum(block);
}

// Visits blocks 0 .. count - 1 in tasks of the executor, each with room of its own: visit(block,
// room) -> Status, as long as all are ok. Errors: that of the first block that is not. May throw
// bad_alloc.
template <typename Visit>
Status visit_blocks(std::int64_t count, std::int64_t room_bytes, const ExecContext& context,
                    Visit&& visit) {
  const std::int64_t most = std::max<std::int64_t>(1, room_bytes);
  const std::int64_t tasks = std::max<std::int64_t>(
      1, std::min({count, kMostBlockMemory / most, std::int64_t{context.get().concurrency()}}));
  struct Work {
    std::remove_reference_t<Visit>& visit;
    std::int64_t tasks, most;
    std::vector<std::byte> room;
    std::vector<Status> status;
    std::atomic<std::int64_t> failed;  // the first block that was found bad, or their count

    // Blocks of one task have a room of their own, and are apart by the number of tasks.
    void run(std::int64_t task) noexcept {
      Status& result = status[static_cast<std::size_t>(task)];
      const std::span<std::byte> mine(room.data() + task * most, static_cast<std::size_t>(most));
      for (std::int64_t b = task; b < failed.load(std::memory_order_relaxed); b += tasks) {
        result = at_door([&]() -> Status { return visit(b, mine); });
        if (result.ok()) continue;
        std::int64_t first = failed.load(std::memory_order_relaxed);
        while (b < first && !failed.compare_exchange_weak(first, b, std::memory_order_relaxed)) {
        }
        return;
      }
    }
  } work{visit, tasks, most, {}, {}, count};
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

// Calls fn(block, its bytes) noexcept for each block once, as long as all have their sums.
// REQUIRES: the largest block is no more than what the caller has memory for.
template <typename Fn>
Status for_each_block(const File& file, const BlockTable& blocks, const ExecContext& context,
                      Fn&& fn) {
  return visit_blocks(std::ssize(blocks.sums), blocks.most_bytes(), context,
                      [&](std::int64_t block, std::span<std::byte> room) -> Status {
                        KVC_ASSIGN_OR_RETURN(
                            const auto bytes,
                            read_block(file, blocks, static_cast<std::size_t>(block), room));
                        fn(block, bytes);
                        return {};
                      });
}

// All blocks that wanted(block) have their sums.
template <typename Wanted>
Status verify_blocks(const File& file, const BlockTable& blocks, const ExecContext& context,
                     Wanted&& wanted) {
  return visit_blocks(std::ssize(blocks.sums), std::min(kPieceBytes, blocks.most_bytes()), context,
                      [&](std::int64_t block, std::span<std::byte> room) -> Status {
                        if (!wanted(block)) return {};
                        return check_block(file, blocks, static_cast<std::size_t>(block), room);
                      });
}
inline Status verify_blocks(const File& file, const BlockTable& blocks,
                            const ExecContext& context) {
  return verify_blocks(file, blocks, context, [](std::int64_t) { return true; });
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
