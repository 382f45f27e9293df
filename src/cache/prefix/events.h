// A bounded queue of what happened to pages.
#ifndef KVCACHE_SRC_CACHE_PREFIX_EVENTS_H_
#define KVCACHE_SRC_CACHE_PREFIX_EVENTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcache/prefix.h"

namespace kvcache::internal {

class PrefixEvents {
 public:
  explicit PrefixEvents(std::int64_t capacity) : ring_(static_cast<std::size_t>(capacity)) {}

  // The oldest is lost where the queue is full.
  void add(PrefixEvent event) noexcept {
    if (ring_.empty()) return;
    event.number = ++last_;
    ring_[static_cast<std::size_t>(event.number) % ring_.size()] = event;
    first_ = std::max(first_, last_ - static_cast<std::int64_t>(ring_.size()) + 1);
  }

  // Moves the oldest ones to `out`, and returns how many. Those that were lost since the last call
  // come first, as one event.
  std::int64_t take(std::span<PrefixEvent> out) noexcept {
    std::int64_t count = 0;
    const auto room = static_cast<std::int64_t>(out.size());
    if (room > 0 && first_ > next_) {
      PrefixEvent lost;
      lost.kind = PrefixEvent::Kind::kLost;
      lost.number = first_ - 1;
      lost.lost = first_ - next_;
      out[static_cast<std::size_t>(count++)] = lost;
      next_ = first_;
    }
    for (; count < room && next_ <= last_; ++next_) {
      out[static_cast<std::size_t>(count++)] =
          ring_[static_cast<std::size_t>(next_) % ring_.size()];
    }
    return count;
  }

 private:
  std::vector<PrefixEvent> ring_;
  std::int64_t last_ = 0;   // numbers begin at 1
  std::int64_t first_ = 1;  // the oldest that is still there
  std::int64_t next_ = 1;   // the next to be taken
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_EVENTS_H_
