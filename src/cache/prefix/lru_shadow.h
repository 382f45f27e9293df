// What a cache that evicts the least recently used would hold: the `capacity` texts that were used
// last, counted by when that was. A bound in time divides them from the others, so that each entry
// and ghost needs no more than the time of its last use to say on which side it is.
#ifndef KVCACHE_SRC_CACHE_PREFIX_LRU_SHADOW_H_
#define KVCACHE_SRC_CACHE_PREFIX_LRU_SHADOW_H_

#include <cstdint>

namespace kvcache::internal {

class LruShadow {
 public:
  void grow(std::int64_t capacity) noexcept { capacity_ = capacity; }

  // Times never go back. Whether such a cache holds what was used last at `time`.
  bool holds(std::int64_t time) const noexcept { return time / width_ >= first_; }
  // Of those, how many are ghosts: what it holds and the real cache does not.
  std::int64_t ghosts() const noexcept { return ghosts_; }

  // Used at `time`, now; what that moves beyond the bound leaves.
  void add(std::int64_t time) noexcept {
    while (spans_[first_ % kSpans].all == 0 && first_ < time / width_) ++first_;
    while (time / width_ - first_ >= kSpans) widen();
    if (!holds(time)) return;  // so few are held that the newest span was too many
    ++at(time).all;
    ++count_;
    while (count_ > capacity_) drop_first();
  }
  // What was used last at `time` is used again, or forgotten.
  void remove(std::int64_t time, bool is_ghost) noexcept {
    if (!holds(time)) return;
    --at(time).all;
    --count_;
    if (is_ghost) count_ghost(time, -1);
  }
  // It was evicted; or, with -1, it comes back or is forgotten.
  void count_ghost(std::int64_t time, std::int32_t more) noexcept {
    if (!holds(time)) return;
    at(time).ghosts += more;
    ghosts_ += more;
  }

 private:
  static constexpr std::int64_t kSpans = 512;

  struct Span {
    std::int32_t all = 0, ghosts = 0;
  };

  Span& at(std::int64_t time) noexcept { return spans_[time / width_ % kSpans]; }
  void drop_first() noexcept {
    Span& span = spans_[first_++ % kSpans];
    count_ -= span.all;
    ghosts_ -= span.ghosts;
    span = {};
  }
  // Spans of twice the width, each of two.
  void widen() noexcept {
    if (first_ % 2 != 0) drop_first();
    Span wide[kSpans] = {};
    for (std::int64_t i = first_; i < first_ + kSpans; ++i) {
      const Span& span = spans_[i % kSpans];
      Span& to = wide[i / 2 % kSpans];
      to.all += span.all;
      to.ghosts += span.ghosts;
    }
    for (std::int64_t i = 0; i < kSpans; ++i) spans_[i] = wide[i];
    first_ /= 2;
    width_ *= 2;
  }

  std::int64_t capacity_ = 0;
  std::int64_t width_ = 1;  // of a span, in time
  std::int64_t first_ = 0;  // the first span that is held
  std::int64_t count_ = 0, ghosts_ = 0;
  Span spans_[kSpans];
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_LRU_SHADOW_H_
