// ARC (Megiddo and Modha, FAST 2003): entries used once and entries used again, each the least
// recently used first. What comes back of those that were evicted from either says how much of the
// room that one should have.
#ifndef KVCACHE_SRC_CACHE_PREFIX_ARC_H_
#define KVCACHE_SRC_CACHE_PREFIX_ARC_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cache/prefix/ghosts.h"
#include "cache/prefix/queue.h"
#include "cache/prefix/slot_policy.h"

namespace kvcache::internal {

class ArcPolicy final : public SlotPolicy {
 public:
  explicit ArcPolicy(std::byte* memory) noexcept : memory_(memory) {}

  void begin(std::int32_t num_entries) noexcept override {
    const auto count = static_cast<std::size_t>(num_entries);
    entries_ = reinterpret_cast<Entry*>(memory_);
    auto* const ghosts = reinterpret_cast<Ghost*>(memory_ + count * sizeof(Entry));
    ghosts_.begin(ghosts, reinterpret_cast<std::int32_t*>(ghosts + count));
  }
  void grow(std::int32_t entries) noexcept override {
    capacity_ = entries;
    ghosts_.grow(entries);
  }

  void inserted(std::int32_t entry, std::int32_t, std::uint64_t key,
                std::int64_t) noexcept override {
    const std::int32_t ghost = ghosts_.find(key);
    bool again = false;
    if (ghost >= 0) {
      again = true;
      const bool was_again = ghosts_.all()[ghost].note != 0;
      const auto mine = static_cast<double>(gone_[was_again].size());
      const auto other = static_cast<double>(gone_[!was_again].size());
      const double step = std::max(1.0, other / mine);
      goal_ = was_again ? std::max(0.0, goal_ - step)
                        : std::min(static_cast<double>(capacity_), goal_ + step);
      forget(ghost);
    }
    entries_[entry] = {{}, key, again, false};
    queues_[again].push_newest(entries_, entry);
  }
  void used(std::int32_t entry) noexcept override {
    Entry& mine = entries_[entry];
    if (!mine.aside) queues_[mine.again].erase(entries_, entry);
    mine.again = true;
    if (!mine.aside) queues_[mine.again].push_newest(entries_, entry);
  }
  // As recent as at its last use, of what was held as long.
  void released(std::int32_t entry) noexcept override {
    Entry& mine = entries_[entry];
    if (mine.aside) return;
    queues_[mine.again].erase(entries_, entry);
    queues_[mine.again].push_newest(entries_, entry);
  }
  void removed(std::int32_t entry, bool evicted) noexcept override {
    const Entry& gone = entries_[entry];
    if (!gone.aside) queues_[gone.again].erase(entries_, entry);
    if (!evicted || ghosts_.find(gone.key) >= 0) return;
    if (ghosts_.is_full()) {
      // Of both lists together there are as many as entries: the once used ones yield while they
      // and their ghosts are more than that.
      const bool once = gone_[0].size() > 0 &&
                        (gone_[1].size() == 0 || queues_[0].size() + gone_[0].size() > capacity_);
      forget(gone_[!once].oldest());
    }
    const std::int32_t ghost = ghosts_.add(gone.key);
    ghosts_.all()[ghost].note = gone.again ? 1 : 0;
    gone_[gone.again].push_newest(ghosts_.all(), ghost);
  }
  std::int32_t victim() noexcept override {
    const auto once = static_cast<double>(queues_[0].size());
    const bool from_once = once > 0 && (once > goal_ || queues_[1].size() == 0);
    return queues_[!from_once].oldest();
  }
  void set_aside(std::int32_t entry) noexcept override {
    queues_[entries_[entry].again].erase(entries_, entry);
    entries_[entry].aside = true;
  }
  void put_back(std::int32_t entry) noexcept override {
    entries_[entry].aside = false;
    queues_[entries_[entry].again].push_oldest(entries_, entry);
  }
  void list(std::vector<std::int32_t>& out) const override {
    for (const EntryQueue<Entry>& queue : queues_) queue.list(entries_, out);
  }

 private:
  struct Entry {
    QueueLink link;
    std::uint64_t key;
    bool again, aside;
  };
  static_assert(sizeof(Entry) + GhostTable::kBytes <= 64);

  void forget(std::int32_t ghost) noexcept {
    gone_[ghosts_.all()[ghost].note].erase(ghosts_.all(), ghost);
    ghosts_.remove(ghost);
  }

  std::byte* memory_;
  Entry* entries_ = nullptr;
  EntryQueue<Entry> queues_[2];  // used once, used again
  EntryQueue<Ghost> gone_[2];    // from either
  GhostTable ghosts_;
  double goal_ = 0;  // entries that were used once
  std::int64_t capacity_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_ARC_H_
