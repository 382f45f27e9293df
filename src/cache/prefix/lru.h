// The least recently used leaves first.
#ifndef KVCACHE_SRC_CACHE_PREFIX_LRU_H_
#define KVCACHE_SRC_CACHE_PREFIX_LRU_H_

#include <cstddef>
#include <cstdint>

#include "cache/prefix/queue.h"
#include "cache/prefix/slot_policy.h"

namespace kvcache::internal {

class LruPolicy final : public SlotPolicy {
 public:
  explicit LruPolicy(std::byte* memory) noexcept : entries_(reinterpret_cast<Entry*>(memory)) {}

  void begin(std::int32_t) noexcept override {}
  void grow(std::int32_t) noexcept override {}
  void inserted(std::int32_t entry, std::int32_t, std::uint64_t, std::int64_t) noexcept override {
    entries_[entry].aside = false;
    queue_.push_newest(entries_, entry);
  }
  void used(std::int32_t entry) noexcept override {
    if (entries_[entry].aside) return;
    queue_.erase(entries_, entry);
    queue_.push_newest(entries_, entry);
  }
  void released(std::int32_t entry) noexcept override { used(entry); }
  void removed(std::int32_t entry, bool) noexcept override {
    if (!entries_[entry].aside) queue_.erase(entries_, entry);
  }
  std::int32_t victim() noexcept override { return queue_.oldest(); }
  void set_aside(std::int32_t entry) noexcept override {
    entries_[entry].aside = true;
    queue_.erase(entries_, entry);
  }
  void put_back(std::int32_t entry) noexcept override {
    entries_[entry].aside = false;
    queue_.push_oldest(entries_, entry);
  }
  void list(std::vector<std::int32_t>& out) const override { queue_.list(entries_, out); }

 private:
  struct Entry {
    QueueLink link;
    bool aside;
  };

  Entry* entries_;
  EntryQueue<Entry> queue_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_LRU_H_
