// Keys of entries that are gone, in the order in which they went, found by key. A key that meets
// another in the table is found as it, which costs a policy a wrong guess and nothing else.
#ifndef KVCACHE_SRC_CACHE_PREFIX_GHOSTS_H_
#define KVCACHE_SRC_CACHE_PREFIX_GHOSTS_H_

#include <cstddef>
#include <cstdint>

#include "cache/prefix/places.h"
#include "cache/prefix/queue.h"

namespace kvcache::internal {

struct Ghost {
  std::uint64_t key = 0;
  QueueLink link;
  std::int32_t next = 0;   // with the same place in the table, one more than its number
  std::int32_t note = 0;   // of the policy's,
  std::uint32_t when = 0;  // likewise
};

// Over `ghosts` and `heads`, of which nothing is read or written beyond what it was grown to.
class GhostTable {
 public:
  static constexpr std::size_t kBytes = sizeof(Ghost) + sizeof(std::int32_t);

  void begin(Ghost* ghosts, std::int32_t* heads) noexcept {
    ghosts_ = ghosts;
    heads_ = heads;
  }
  // Room for `capacity` ghosts, not fewer than before.
  void grow(std::int32_t capacity) noexcept {
    while (capacity_ < capacity) {
      const auto added = static_cast<std::uint32_t>(capacity_++);
      heads_[added] = 0;
      if (added == 0) continue;
      for (std::int32_t* link = &heads_[place_before(added)]; *link != 0;) {
        const std::int32_t at = *link;
        Ghost& ghost = ghosts_[at - 1];
        if (place(ghost.key) != added) {
          link = &ghost.next;
          continue;
        }
        *link = ghost.next;
        ghost.next = heads_[added];
        heads_[added] = at;
      }
    }
  }

  bool is_full() const noexcept { return free_ == 0 && used_ == capacity_; }
  std::int32_t find(std::uint64_t key) const noexcept {
    if (capacity_ == 0) return -1;
    std::int32_t at = heads_[place(key)] - 1;
    while (at >= 0 && ghosts_[at].key != key) at = ghosts_[at].next - 1;
    return at;
  }
  Ghost* all() noexcept { return ghosts_; }

  // REQUIRES: not full.
  std::int32_t add(std::uint64_t key) noexcept {
    std::int32_t at = free_ - 1;
    if (at >= 0) {
      free_ = ghosts_[at].next;
    } else {
      at = used_++;
    }
    std::int32_t& head = heads_[place(key)];
    ghosts_[at] = {key, {}, head, 0, 0};
    head = at + 1;
    return at;
  }
  void remove(std::int32_t ghost) noexcept {
    std::int32_t* link = &heads_[place(ghosts_[ghost].key)];
    while (*link != ghost + 1) link = &ghosts_[*link - 1].next;
    *link = ghosts_[ghost].next;
    ghosts_[ghost].next = free_;
    free_ = ghost + 1;
  }

 private:
  std::uint32_t place(std::uint64_t key) const noexcept {
    return place_of(key, static_cast<std::uint32_t>(capacity_));
  }

  Ghost* ghosts_ = nullptr;
  std::int32_t* heads_ = nullptr;
  std::int32_t capacity_ = 0;
  std::int32_t used_ = 0;
  std::int32_t free_ = 0;  // one more than the first
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_GHOSTS_H_
