#include "cache/paged/pool.h"

namespace kvcache::internal {

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
