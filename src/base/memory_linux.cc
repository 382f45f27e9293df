// Memory from mmap. Growth moves the pages of each row to a larger region (mremap); the old region
// stays mapped, so that views into it remain readable until it is released.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/immortal.h"
#include "base/memory_kinds.h"

#ifndef MREMAP_DONTUNMAP  // Linux 5.7; headers may be older than the kernel
#define MREMAP_DONTUNMAP 4
#endif

namespace kvcache::internal {
namespace {

constexpr int kProtection = PROT_READ | PROT_WRITE;
constexpr int kMapping = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

// How many mappings our grown regions may add in all. The kernel allows a process about 65 530;
// a quarter is left to the rest of it.
std::int64_t mapping_budget() noexcept {
  static const std::int64_t budget = [] {
    long allowed = 65530;
    if (std::FILE* file = std::fopen("/proc/sys/vm/max_map_count", "re")) {
      if (std::fscanf(file, "%ld", &allowed) != 1) allowed = 65530;
      std::fclose(file);
    }
    return static_cast<std::int64_t>(allowed) / 4 * 3;
  }();
  return budget;
}

// A row whose pages were moved is a chain of mappings, and mremap takes one mapping at a time.
// `cuts` are the ends of those mappings in bytes from the page in which a row starts, ascending;
// behind the last one lies memory that was never moved.
struct Moved {
  std::int64_t num_rows = 0;
  std::vector<std::int64_t> cuts;

  // Each row: its pieces, and the rest up to the next row.
  std::int64_t mappings() const noexcept {
    return num_rows * (static_cast<std::int64_t>(cuts.size()) + 1);
  }
};

constexpr std::int64_t kHugePage = 2 << 20;

// KVCACHE_HUGE_PAGES=0 turns them off; asked once.
bool huge_pages_wanted() noexcept {
  static const bool wanted = [] {
    const char* const asked = std::getenv("KVCACHE_HUGE_PAGES");
    return asked == nullptr || std::strcmp(asked, "0") != 0;
  }();
  return wanted;
}

// Transparent huge pages are turned off for all of a region: its rows are filled from their start,
// one token at a time, and lie far apart, so that each would take 2 MiB at its first token. What
// will_fill() is told of is the exception.
std::byte* map_pages(void* address, std::int64_t bytes, int flags) noexcept {
  void* data = mmap(address, static_cast<std::size_t>(bytes), kProtection, kMapping | flags, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  // Refused by kernels without huge pages, where there is nothing to turn off.
  (void)madvise(data, static_cast<std::size_t>(bytes), MADV_NOHUGEPAGE);
  return static_cast<std::byte*>(data);
}

bool move_pages(std::byte* from, std::byte* to, std::int64_t bytes) noexcept {
  const std::size_t length = static_cast<std::size_t>(bytes);
  return mremap(from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) !=
         MAP_FAILED;
}

class MappedMemory final : public MemoryResource {
 public:
  Result<Region> reserve(std::int64_t bytes) noexcept override {
    std::int64_t padded = 0;
    if (bytes <= 0 || !checked_add(bytes, page_bytes() - 1, &padded)) return out_of_memory();
    std::byte* data = map_pages(nullptr, round_down(padded, page_bytes()), 0);
    if (data == nullptr) return out_of_memory();
    return Region{data, bytes};
  }

  Status commit(const Region&, std::int64_t) noexcept override { return {}; }

  void decommit(const Region& region, std::int64_t, std::int64_t offset,
                std::int64_t length) noexcept override {
    if (length <= 0) return;
    const std::int64_t begin = round_up(offset, page_bytes());
    const std::int64_t end = round_down(offset + length, page_bytes());
    if (begin < end) {
      (void)madvise(region.data + begin, static_cast<std::size_t>(end - begin), MADV_DONTNEED);
    }
  }

  Result<Region> grow(const Region& region, const RowSpan& from, const RowSpan& to,
                      std::int64_t bytes, std::int64_t* copied) noexcept override {
    KVC_ASSIGN_OR_RETURN(const Region grown, reserve(bytes));
    *copied = 0;
    if (from.used_bytes <= 0) return grown;
    std::vector<std::int64_t> cuts;
    bool moving = plan_move(region, grown, from, &cuts);
    for (std::int64_t row = 0; row < from.num_rows; ++row) {
      std::int64_t begin = 0;
      for (std::size_t i = 0; i == 0 || i < cuts.size(); ++i) {
        const Piece piece = piece_of(from, to, row, begin, moving ? cuts[i] : kWholeRow);
        if (moving &&
            (piece.page_length == 0 || move_pages(region.data + piece.from_page,
                                                  grown.data + piece.to_page, piece.page_length))) {
          begin = cuts[i];
          continue;
        }
        // Refused. The kernel may have unmapped the target by then: put pages back, and copy what
        // is left of this row and all of the others.
        const Piece rest = piece_of(from, to, row, begin, kWholeRow);
        if (moving && rest.page_length > 0 &&
            map_pages(grown.data + rest.to_page, rest.page_length, MAP_FIXED) == nullptr) {
          undo(region, grown, from, to, row, begin);
          release(grown, 0);
          *copied = 0;
          return out_of_memory();
        }
        moving = false;
        const std::int64_t end = row * from.row_stride + from.used_of(row);
        const std::int64_t length =
            std::max<std::int64_t>(0, std::min(rest.length, end - rest.from));
        copy_piece(region.data, grown.data, rest.from, rest.to, length);
        *copied += length;
        break;
      }
    }
    return grown;
  }

  void release(const Region& region, std::int64_t) noexcept override {
    if (region.data == nullptr) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = moved_.find(region.data);
      if (found != moved_.end()) {
        mappings_ -= found->second.mappings();
        moved_.erase(found);
      }
    }
    (void)munmap(region.data, static_cast<std::size_t>(round_up(region.bytes, page_bytes())));
  }

  void will_fill(const Region& region, std::int64_t offset, std::int64_t length) noexcept override {
    if (length < kHugePage || !huge_pages_wanted()) return;
    // Huge pages lie at multiples of their size in memory, not in the region.
    const auto lead = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(region.data) %
                                                static_cast<std::uintptr_t>(kHugePage));
    const std::int64_t begin = round_up(offset + lead, kHugePage) - lead;
    const std::int64_t end = round_down(offset + length + lead, kHugePage) - lead;
    if (begin >= end) return;
    // Refused by kernels without huge pages.
    (void)madvise(region.data + begin, static_cast<std::size_t>(end - begin), MADV_HUGEPAGE);
  }

 private:
  static constexpr std::int64_t kWholeRow = std::numeric_limits<std::int64_t>::max();

  // Part of a row: its content and the pages under it, as offsets into the two regions.
  struct Piece {
    std::int64_t from, to, length;
    std::int64_t from_page, to_page, page_length;
  };

  // The part of a row between two cuts. A row lies at the same offset within a page in both
  // regions, because their strides are equal modulo a page.
  static Piece piece_of(const RowSpan& from, const RowSpan& to, std::int64_t row,
                        std::int64_t begin, std::int64_t end) noexcept {
    const std::int64_t lead = row * from.row_stride % page_bytes();
    const std::int64_t from_page = row * from.row_stride - lead;
    const std::int64_t to_page = row * to.row_stride - lead;
    const std::int64_t first = std::max(begin, lead);
    const std::int64_t last = std::max(first, std::min(end, lead + from.used_bytes));
    const std::int64_t page_end =
        std::max(begin, std::min(end, round_up(lead + from.used_bytes, page_bytes())));
    return {from_page + first, to_page + first, last - first,
            from_page + begin, to_page + begin, page_end - begin};
  }

  static void copy_piece(const std::byte* source, std::byte* target, std::int64_t from,
                         std::int64_t to, std::int64_t length) noexcept {
    std::memcpy(target + to, source + from, static_cast<std::size_t>(length));
  }

  // Brings back all rows before `row`, and `row` up to `end`. The old pages are still mapped.
  static void undo(const Region& region, const Region& grown, const RowSpan& from,
                   const RowSpan& to, std::int64_t row, std::int64_t end) noexcept {
    for (std::int64_t back = 0; back <= row; ++back) {
      const Piece piece = piece_of(from, to, back, 0, back < row ? kWholeRow : end);
      copy_piece(grown.data, region.data, piece.to, piece.from, piece.length);
    }
  }

  // Registers how `grown` will be cut if the rows are moved to it, and returns the cuts. False if
  // the rows must be copied.
  bool plan_move(const Region& region, const Region& grown, const RowSpan& from,
                 std::vector<std::int64_t>* cuts) noexcept try {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto before = moved_.find(region.data);
    if (before != moved_.end()) *cuts = before->second.cuts;
    // A row may start anywhere in a page, so it ends at one of two pages.
    const std::int64_t shortest = round_up(from.used_bytes, page_bytes());
    const std::int64_t longest = from.row_stride % page_bytes() == 0
                                     ? shortest
                                     : round_up(from.used_bytes + page_bytes() - 1, page_bytes());
    while (!cuts->empty() && cuts->back() >= shortest) cuts->pop_back();
    cuts->push_back(shortest);
    if (longest > shortest) cuts->push_back(longest);
    Moved next{from.num_rows, *cuts};
    const std::int64_t mappings = next.mappings();
    if (mappings > mapping_budget() - mappings_) return false;
    moved_.emplace(grown.data, std::move(next));
    mappings_ += mappings;
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }

  std::mutex mutex_;
  std::unordered_map<const std::byte*, Moved> moved_;  // by the start of a grown region
  std::int64_t mappings_ = 0;
};

}  // namespace

MemoryResource& mapped_memory() noexcept {
  static Immortal<MappedMemory> memory;  // a cache may outlive the statics of other files
  return *memory;
}

}  // namespace kvcache::internal
