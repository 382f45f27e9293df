#include "cache/paged/pool.h"

#include <utility>

#include "base/door.h"
#include "kvcache/memory.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kIntBytes = sizeof(std::int32_t);

}  // namespace

void FreeInts::operator()(std::int32_t* data) const noexcept {
  system_memory().release({reinterpret_cast<std::byte*>(data), count * kIntBytes}, 0);
}

LazyInts make_lazy_ints(std::int64_t count) noexcept {
  const Result<Region> region = system_memory().reserve(count * kIntBytes);
  if (!region.ok()) return nullptr;
  return LazyInts(reinterpret_cast<std::int32_t*>(region->data), FreeInts{count});
}

Status PagePool::init(std::int64_t num_pages) noexcept {
  LazyInts references = make_lazy_ints(num_pages);
  LazyInts free = make_lazy_ints(num_pages);
  if (references == nullptr || free == nullptr) return out_of_memory();
  references_ = std::move(references);
  free_ = std::move(free);
  num_pages_ = num_pages;
  return {};
}

std::int32_t PagePool::take() noexcept {
  ++reserved_;
  if (num_free_ > 0) return free_[--num_free_];
  return static_cast<std::int32_t>(touched_++);
}

void PagePool::give_back(std::int32_t page) noexcept {
  --reserved_;
  free_[num_free_++] = page;
}

void PagePool::hold(std::int32_t page) noexcept {
  if (references_[page]++ == 0) {
    --reserved_;
    ++held_;
  }
}

void PagePool::drop(std::int32_t page) noexcept {
  if (--references_[page] == 0) {
    --held_;
    free_[num_free_++] = page;
  }
}

}  // namespace kvcache::internal
