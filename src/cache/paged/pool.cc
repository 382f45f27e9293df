#include "cache/paged/pool.h"

#include <cstring>

namespace kvcache::internal {
namespace {

// Pages of a text mostly follow one another, as they were taken: so many are looked at together, in
// vectors of four.
constexpr int kStretch = 16;
using Four = std::int32_t __attribute__((vector_size(16)));

Four load(const std::int32_t* from) noexcept {
  Four x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
std::int32_t any_bits(Four x) noexcept { return (x[0] | x[1]) | (x[2] | x[3]); }

}  // namespace

std::int32_t PagePool::take() noexcept {
  ++reserved_;
  if (num_free_ > 0) return free_[--num_free_];
  if (num_bare_ > 0) return free_[num_pages_ - num_bare_--];
  references_[touched_] = 0;
  return static_cast<std::int32_t>(touched_++);
}

void PagePool::give_back(std::int32_t page) noexcept {
  --reserved_;
  free_[num_free_++] = page;
}

void PagePool::hold(std::int32_t page) noexcept {
  std::int32_t& references = references_[page];
  if (references > 0) {
    ++references;
    return;
  }
  --(references == kCached ? cached_ : reserved_);
  references = 1;
  ++held_;
}

// Holds kStretch pages if they follow one another and all are held already; else does nothing.
bool PagePool::hold_stretch(const std::int32_t* pages) noexcept {
  std::int32_t* const references = references_ + pages[0];
  Four wanted = Four{0, 1, 2, 3} + pages[0];
  Four strays = {};
  for (int i = 0; i < kStretch; i += 4, wanted += 4) strays |= load(pages + i) ^ wanted;
  if (any_bits(strays) != 0) return false;
  Four more[kStretch / 4];
  Four spare = {};  // negative: a count was 0 or kCached
  const std::int32_t* from = references;
  for (Four& counts : more) {
    counts = load(from);
    from += 4;
    spare |= counts - 1;
    counts += 1;
  }
  if (any_bits(spare) < 0) return false;
  std::memcpy(references, more, sizeof(more));
  return true;
}

void PagePool::hold_all(std::span<const std::int32_t> pages) noexcept {
  for (; pages.size() >= kStretch; pages = pages.subspan(kStretch)) {
    if (hold_stretch(pages.data())) continue;
    for (const std::int32_t page : pages.first(kStretch)) hold(page);
  }
  for (const std::int32_t page : pages) hold(page);
}

bool PagePool::drop(std::int32_t page) noexcept {
  if (--references_[page] > 0) return false;
  references_[page] = kCached;
  --held_;
  ++cached_;
  return true;
}

void PagePool::evict(std::int32_t page) noexcept {
  references_[page] = 0;
  --cached_;
  free_[num_free_++] = page;
}

std::int32_t PagePool::strip() noexcept {
  const std::int32_t page = free_[--num_free_];
  free_[num_pages_ - ++num_bare_] = page;
  return page;
}

}  // namespace kvcache::internal
