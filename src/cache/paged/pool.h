// The page ids of one group: who has each, and which comes next.
//
// A page is in one of five states: fresh (never taken), free, reserved (taken by an open step),
// held (named by the table of at least one sequence; the reference count says by how many) or
// cached (named by none, but kept with its rows until it is held again or evicted).
#ifndef KVCACHE_SRC_CACHE_PAGED_POOL_H_
#define KVCACHE_SRC_CACHE_PAGED_POOL_H_

#include <algorithm>
#include <cstdint>
#include <span>

namespace kvcache::internal {

// Freed pages come back last-in first-out, before any fresh one; fresh ones lowest id first, so the
// pages ever touched are 0 .. touched() - 1.
class PagePool {
 public:
  // Over `tables`, 2 * num_pages numbers that live as long as the pool, of which nothing is read or
  // written before its page is touched. REQUIRES: 1 <= num_pages < 2^31.
  PagePool(std::int64_t num_pages, std::int32_t* tables) noexcept
      : num_pages_(num_pages), references_(tables), free_(tables + num_pages) {}

  std::int64_t num_pages() const noexcept { return num_pages_; }
  std::int64_t touched() const noexcept { return touched_; }
  std::int64_t held() const noexcept { return held_; }
  std::int64_t reserved() const noexcept { return reserved_; }
  std::int64_t cached() const noexcept { return cached_; }
  // Free ones, with their memory and without.
  std::int64_t free() const noexcept { return num_free_; }
  std::int64_t bare() const noexcept { return num_bare_; }
  // What could be taken, once cached pages are evicted.
  std::int64_t available() const noexcept { return num_pages_ - held_ - reserved_; }

  // Of the next `count` pages, those that are bare, those that are fresh, and those that must be
  // evicted first: free ones go before them, cached ones last. REQUIRES: count <= available().
  std::int64_t bare_among(std::int64_t count) const noexcept {
    return std::clamp<std::int64_t>(count - num_free_, 0, num_bare_);
  }
  std::int64_t fresh_among(std::int64_t count) const noexcept {
    return std::clamp<std::int64_t>(count - num_free_ - num_bare_, 0, num_pages_ - touched_);
  }
  std::int64_t evicted_among(std::int64_t count) const noexcept {
    return std::max<std::int64_t>(0, count - num_free_ - num_bare_ - (num_pages_ - touched_));
  }
  // The one that is taken `next` bare pages from now.
  std::int32_t bare_page(std::int64_t next) const noexcept {
    return free_[num_pages_ - num_bare_ + next];
  }

  // The page becomes reserved. REQUIRES: a free or a fresh one is left.
  std::int32_t take() noexcept;
  // A reserved page becomes free.
  void give_back(std::int32_t page) noexcept;
  // One more table names a reserved, held or cached page.
  void hold(std::int32_t page) noexcept;
  // The same of each of a table.
  void hold_all(std::span<const std::int32_t> pages) noexcept;
  // One table less. True if it was the last: the page is then cached, until evict().
  bool drop(std::int32_t page) noexcept;
  // A cached page becomes free.
  void evict(std::int32_t page) noexcept;
  // The free page that would be next becomes bare: its memory went back. REQUIRES: free() > 0.
  std::int32_t strip() noexcept;

  // Tables that name the page.
  std::int32_t references(std::int32_t page) const noexcept {
    return std::max(references_[page], 0);
  }
  bool is_cached(std::int32_t page) const noexcept { return references_[page] == kCached; }

  // The free pages, the last to go first; and the bare ones, the next to go first.
  std::span<const std::int32_t> free_list() const noexcept {
    return {free_, static_cast<std::size_t>(num_free_)};
  }
  std::span<const std::int32_t> bare_list() const noexcept {
    return {free_ + num_pages_ - num_bare_, static_cast<std::size_t>(num_bare_)};
  }

 private:
  static constexpr std::int32_t kCached = -1;  // in place of a reference count

  bool hold_stretch(const std::int32_t* pages) noexcept;

  std::int64_t num_pages_;
  std::int64_t touched_ = 0;
  std::int64_t num_free_ = 0;
  std::int64_t num_bare_ = 0;
  std::int64_t held_ = 0;
  std::int64_t reserved_ = 0;
  std::int64_t cached_ = 0;
  std::int32_t* references_;  // [num_pages]
  // [num_pages] free pages from its begin on, bare ones up to its end: freeing cannot fail.
  std::int32_t* free_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_POOL_H_
