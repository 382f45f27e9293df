// Entries leave by what they are worth: the chance to be used again within some time, by that time,
// for the time at which this is largest (a Gittins index). What the chance is at which age is
// learned from entries and from those that are gone (ghosts), by class: never used again, behind a
// text that was gone on with, used again itself. In each class the least recently used entry is
// next, so that only the heads of a few queues are compared; with one class it would be lru.
//
// A ghost of lru decides how far that goes. The policy counts what it finds that lru would not, and
// the other way round: while it is ahead it may evict what lru would keep, more of it the further
// it is, and where it is behind by more than a small share of all uses it does what lru does.
#ifndef KVCACHE_SRC_CACHE_PREFIX_ADAPTIVE_H_
#define KVCACHE_SRC_CACHE_PREFIX_ADAPTIVE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cache/prefix/ghosts.h"
#include "cache/prefix/lru_shadow.h"
#include "cache/prefix/queue.h"
#include "cache/prefix/slot_policy.h"

namespace kvcache::internal {

class AdaptivePolicy final : public SlotPolicy {
 public:
  explicit AdaptivePolicy(std::byte* memory) noexcept : memory_(memory) {}

  void begin(std::int32_t num_entries) noexcept override;
  void grow(std::int32_t entries) noexcept override;
  void inserted(std::int32_t entry, std::int32_t parent, std::uint64_t key,
                std::int64_t position) noexcept override;
  void used(std::int32_t entry) noexcept override;
  void released(std::int32_t entry) noexcept override;
  void removed(std::int32_t entry, bool evicted) noexcept override;
  std::int32_t victim() noexcept override;
  void set_aside(std::int32_t entry) noexcept override;
  void put_back(std::int32_t entry) noexcept override;
  void list(std::vector<std::int32_t>& out) const override {
    for (const EntryQueue<Entry>& queue : queues_) queue.list(entries_, out);
  }

 private:
  static constexpr int kClasses = 3;
  static constexpr std::int32_t kGhosts = 2;  // for each entry
  static constexpr int kAges = 40;            // two for each doubling

  struct Entry {
    QueueLink link;
    std::uint64_t key;
    std::uint32_t last;  // entries touched before its last use, as are the ages
    std::uint8_t uses;   // those of the text before it, where it has none of its own
    bool is_used;        // again, itself
    std::uint8_t in_class;
    bool aside;
  };
  static_assert(sizeof(Entry) + kGhosts * GhostTable::kBytes <= 96);

  // When that was: `last` tells the newest 2^32 apart.
  std::int64_t time_of(std::uint32_t last) const noexcept {
    return now_ - static_cast<std::uint32_t>(static_cast<std::uint32_t>(now_) - last);
  }
  int age_of(std::uint32_t last) const noexcept;
  double worth_of(std::int32_t entry) const noexcept {
    return worth_[entries_[entry].in_class][age_of(entries_[entry].last)];
  }
  void classify(std::int32_t entry) noexcept;
  void forget(std::int32_t ghost) noexcept;
  void learn() noexcept;

  std::byte* memory_;
  Entry* entries_ = nullptr;
  std::int64_t capacity_ = 0;
  EntryQueue<Entry> queues_[kClasses];
  EntryQueue<Ghost> gone_;
  GhostTable ghosts_;
  LruShadow lru_;
  std::int64_t lead_ = 0;  // entries found that lru would not have found, less the other way round
  std::int64_t now_ = 0;   // entries touched so far
  std::int64_t next_look_ = 0;
  double used_[kClasses][kAges] = {};   // entries used again at an age
  double ended_[kClasses][kAges] = {};  // and those of which this was never seen
  double worth_[kClasses][kAges] = {};
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_ADAPTIVE_H_
