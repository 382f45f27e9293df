// What a life keeps: rows of a sequence by position, and the pages they make. Pure arithmetic, the
// only place that knows windows and chunks.
#ifndef KVCACHE_SRC_CACHE_PAGED_LIFE_H_
#define KVCACHE_SRC_CACHE_PAGED_LIFE_H_

#include <algorithm>
#include <cstdint>

#include "base/checked_math.h"
#include "kvcache/layer_spec.h"

namespace kvcache::internal {

// How much of a sequence is coded where the newest rows stay plain, in whole pages.
struct TailRule {
  std::int64_t tokens = 0;  // that stay plain at the least; 0: no rows do
  std::int64_t page_size = 1;

  // Coded rows of n, where there were not more before.
  std::int64_t coded(std::int64_t n) const noexcept {
    return std::max<std::int64_t>(0, n - tokens) / page_size * page_size;
  }
};

// Of a sequence of n rows held are those before sink_tokens, and those from first(n) on.
struct KeepRule {
  Life life;
  std::int64_t rewind_tokens = 0;
  TailRule tail;  // of a group that holds the plain tails of coded rows

  bool is_tail() const noexcept { return tail.tokens > 0; }
  bool keeps_all() const noexcept { return life.window == 0 && life.chunk == 0 && !is_tail(); }

  // The oldest row, beside the sinks, that a query at position n sees, and that is nowhere else.
  std::int64_t seen(std::int64_t n) const noexcept {
    if (is_tail()) return n;
    if (life.window > 0) return std::max<std::int64_t>(0, n + 1 - life.window);
    return life.chunk > 0 ? n / life.chunk * life.chunk : 0;
  }

  // first(n), where nothing more was dropped before.
  std::int64_t first(std::int64_t n) const noexcept {
    if (is_tail()) return tail.coded(n);
    return seen(std::max<std::int64_t>(0, n - rewind_tokens));
  }
};

// Pages 0 .. sinks and begin .. end of a sequence. Those between are its hole.
struct LivePages {
  std::int64_t sinks = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;

  std::int64_t count() const noexcept { return sinks + end - begin; }
};

// The pages in which `length` rows leave one that is held, of those before `sink_tokens` and those
// from `first` on. REQUIRES: first <= length.
inline LivePages live_pages(std::int64_t first, std::int64_t length, std::int64_t sink_tokens,
                            std::int64_t page_size) noexcept {
  LivePages pages;
  pages.sinks = ceil_div(std::min(sink_tokens, length), page_size);
  pages.begin = std::max(first / page_size, pages.sinks);
  pages.end = first == length ? pages.begin : std::max(ceil_div(length, page_size), pages.begin);
  return pages;
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_LIFE_H_
