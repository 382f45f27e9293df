#include "cache/paged/pool.h"

namespace kvcache::internal {
namespace {

// Pages of a text mostly follow one another, as they were taken: so many are looked at together, in
// loops without a way out, which become vector instructions.
constexpr int kStretch = 16;

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
  std::int32_t strays = 0;
  for (int i = 0; i < kStretch; ++i) strays |= pages[i] ^ (pages[0] + i);
  if (strays != 0) return false;
  std::int32_t* const references = references_ + pages[0];
  std::int32_t spare = 0;  // negative: a count was 0 or kCached
  for (int i = 0; i < kStretch; ++i) spare |= references[i] - 1;
  if (spare < 0) return false;
  for (int i = 0; i < kStretch; ++i) ++references[i];
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
