// S3-FIFO (Yang et al., SOSP 2023): new entries pass through a small queue, a tenth of all, and go
// on to the main one if they were used there, or if they come back while their key is remembered.
// Both are first-in first-out; the main one gives an entry another round for each use, up to three.
#ifndef KVCACHE_SRC_CACHE_PREFIX_S3FIFO_H_
#define KVCACHE_SRC_CACHE_PREFIX_S3FIFO_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cache/prefix/ghosts.h"
#include "cache/prefix/queue.h"
#include "cache/prefix/slot_policy.h"

namespace kvcache::internal {

class S3FifoPolicy final : public SlotPolicy {
 public:
  explicit S3FifoPolicy(std::byte* memory) noexcept : memory_(memory) {}

  void begin(std::int32_t num_entries) noexcept override {
    const auto count = static_cast<std::size_t>(num_entries);
    entries_ = reinterpret_cast<Entry*>(memory_);
    auto* const ghosts = reinterpret_cast<Ghost*>(memory_ + count * sizeof(Entry));
    ghosts_.begin(ghosts, reinterpret_cast<std::int32_t*>(ghosts + count));
  }
  void grow(std::int32_t entries) noexcept override { ghosts_.grow(entries); }

  void inserted(std::int32_t entry, std::int32_t, std::uint64_t key,
                std::int64_t) noexcept override {
    const std::int32_t ghost = ghosts_.find(key);
    if (ghost >= 0) forget(ghost);
    entries_[entry] = {{}, key, 0, ghost >= 0, false};
    queue_of(entry).push_newest(entries_, entry);
  }
  void used(std::int32_t entry) noexcept override {
    entries_[entry].uses = std::min<std::uint8_t>(kMostUses, entries_[entry].uses + 1);
  }
  void released(std::int32_t) noexcept override {}
  void removed(std::int32_t entry, bool evicted) noexcept override {
    const Entry& gone = entries_[entry];
    if (!gone.aside) queue_of(entry).erase(entries_, entry);
    if (!evicted || gone.is_main || ghosts_.find(gone.key) >= 0) return;
    if (ghosts_.is_full() || ghost_queue_.size() > size() + 1) forget(ghost_queue_.oldest());
    ghost_queue_.push_newest(ghosts_.all(), ghosts_.add(gone.key));
  }
  std::int32_t victim() noexcept override {
    for (;;) {
      const bool from_small =
          small_.size() > 0 && (small_.size() * 10 >= size() || main_.size() == 0);
      if (from_small) {
        const std::int32_t entry = small_.oldest();
        if (entries_[entry].uses == 0) return entry;
        small_.erase(entries_, entry);
        entries_[entry].uses = 0;
        entries_[entry].is_main = true;
        main_.push_newest(entries_, entry);
        continue;
      }
      const std::int32_t entry = main_.oldest();
      if (entry < 0 || entries_[entry].uses == 0) return entry;
      --entries_[entry].uses;
      main_.erase(entries_, entry);
      main_.push_newest(entries_, entry);
    }
  }
  void set_aside(std::int32_t entry) noexcept override {
    queue_of(entry).erase(entries_, entry);
    entries_[entry].aside = true;
  }
  void put_back(std::int32_t entry) noexcept override {
    entries_[entry].aside = false;
    queue_of(entry).push_oldest(entries_, entry);
  }
  void list(std::vector<std::int32_t>& out) const override {
    small_.list(entries_, out);
    main_.list(entries_, out);
  }

 private:
  static constexpr std::uint8_t kMostUses = 3;

  struct Entry {
    QueueLink link;
    std::uint64_t key;
    std::uint8_t uses;
    bool is_main, aside;
  };
  static_assert(sizeof(Entry) + GhostTable::kBytes <= 64);

  std::int64_t size() const noexcept { return small_.size() + main_.size(); }
  EntryQueue<Entry>& queue_of(std::int32_t entry) noexcept {
    return entries_[entry].is_main ? main_ : small_;
  }
  void forget(std::int32_t ghost) noexcept {
    ghost_queue_.erase(ghosts_.all(), ghost);
    ghosts_.remove(ghost);
  }

  std::byte* memory_;
  Entry* entries_ = nullptr;
  EntryQueue<Entry> small_, main_;
  EntryQueue<Ghost> ghost_queue_;
  GhostTable ghosts_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_S3FIFO_H_
