// The page ids of one group: who has each, and which comes next.
//
// A page is fresh (never taken), free, reserved (taken by an open step) or held (named by the table
// of at least one sequence; the reference count says by how many).
#ifndef KVCACHE_SRC_CACHE_PAGED_POOL_H_
#define KVCACHE_SRC_CACHE_PAGED_POOL_H_

#include <cstdint>
#include <memory>
#include <span>

#include "kvcache/status.h"

namespace kvcache::internal {

// Integers that the system zeroes as they are touched: the tables of a large pool cost memory only
// as it fills. Not calloc's, which takes memory that was used before where it has some, and touches
// all of it.
struct FreeInts {
  std::int64_t count = 0;
  void operator()(std::int32_t* data) const noexcept;
};
using LazyInts = std::unique_ptr<std::int32_t[], FreeInts>;

// `count` zeros, 1 <= count < 2^31; null if there is no memory.
LazyInts make_lazy_ints(std::int64_t count) noexcept;

// Freed pages come back last-in first-out, before any fresh one; fresh ones lowest id first, so the
// pages ever touched are 0 .. touched() - 1.
class PagePool {
 public:
  // REQUIRES: 1 <= num_pages < 2^31. Errors: kOutOfMemory.
  Status init(std::int64_t num_pages) noexcept;

  std::int64_t num_pages() const noexcept { return num_pages_; }
  std::int64_t touched() const noexcept { return touched_; }
  std::int64_t held() const noexcept { return held_; }
  std::int64_t reserved() const noexcept { return reserved_; }
  std::int64_t available() const noexcept { return num_pages_ - held_ - reserved_; }

  // Fresh pages among the next `count`. REQUIRES: count <= available().
  std::int64_t fresh_among(std::int64_t count) const noexcept {
    return count > num_free_ ? count - num_free_ : 0;
  }

  // REQUIRES: available() > 0. The page becomes reserved.
  std::int32_t take() noexcept;
  // A reserved page becomes free.
  void give_back(std::int32_t page) noexcept;
  // One more table names a reserved or held page.
  void hold(std::int32_t page) noexcept;
  // One table less; the last one frees it.
  void drop(std::int32_t page) noexcept;

  std::int32_t references(std::int32_t page) const noexcept { return references_[page]; }

  // The free list, bottom first.
  std::span<const std::int32_t> free_list() const noexcept {
    return {free_.get(), static_cast<std::size_t>(num_free_)};
  }

 private:
  std::int64_t num_pages_ = 0;
  std::int64_t touched_ = 0;
  std::int64_t num_free_ = 0;
  std::int64_t held_ = 0;
  std::int64_t reserved_ = 0;
  LazyInts references_;  // [num_pages]
  LazyInts free_;  // [num_pages], the first num_free_ in use: room for all, so freeing cannot fail
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_POOL_H_
