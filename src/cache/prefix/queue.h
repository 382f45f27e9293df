// What the built-in policies are made of: queues of entries, and of keys of entries that are gone.
#ifndef KVCACHE_SRC_CACHE_PREFIX_QUEUE_H_
#define KVCACHE_SRC_CACHE_PREFIX_QUEUE_H_

#include <cstdint>
#include <vector>

namespace kvcache::internal {

// A place in a queue. Numbers are one more than the entry's, so that zeros are an empty queue.
struct QueueLink {
  std::int32_t older = 0, newer = 0;
};

// Entries in the order in which they leave.
template <typename Entry>
class EntryQueue {
 public:
  std::int64_t size() const noexcept { return size_; }
  std::int32_t oldest() const noexcept { return oldest_ - 1; }

  void push_newest(Entry* entries, std::int32_t entry) noexcept {
    entries[entry].link = {newest_, 0};
    (newest_ == 0 ? oldest_ : entries[newest_ - 1].link.newer) = entry + 1;
    newest_ = entry + 1;
    ++size_;
  }
  void push_oldest(Entry* entries, std::int32_t entry) noexcept {
    entries[entry].link = {0, oldest_};
    (oldest_ == 0 ? newest_ : entries[oldest_ - 1].link.older) = entry + 1;
    oldest_ = entry + 1;
    ++size_;
  }
  void erase(Entry* entries, std::int32_t entry) noexcept {
    const QueueLink at = entries[entry].link;
    (at.older == 0 ? oldest_ : entries[at.older - 1].link.newer) = at.newer;
    (at.newer == 0 ? newest_ : entries[at.newer - 1].link.older) = at.older;
    --size_;
  }
  // The entries behind those that are there, the oldest first.
  void list(const Entry* entries, std::vector<std::int32_t>& out) const {
    for (std::int32_t at = oldest_; at != 0; at = entries[at - 1].link.newer) out.push_back(at - 1);
  }

 private:
  std::int32_t oldest_ = 0, newest_ = 0;
  std::int64_t size_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_QUEUE_H_
