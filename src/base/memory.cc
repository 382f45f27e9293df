#include "kvcache/memory.h"

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>

#include "base/door.h"
#include "base/memory_kinds.h"

namespace kvcache {

namespace internal {

std::int64_t page_bytes() noexcept {
  static const std::int64_t bytes = [] {
    const long reported = sysconf(_SC_PAGESIZE);
    return reported > 0 ? static_cast<std::int64_t>(reported) : std::int64_t{4096};
  }();
  return bytes;
}

}  // namespace internal

inline namespace v1 {

MemoryResource::~MemoryResource() = default;
void MemoryResource::will_fill(const Region&, std::int64_t, std::int64_t) noexcept {}

MemoryResource& system_memory() noexcept {
#if KVC_PORTABLE_MEMORY
  return internal::portable_memory();
#else
  return internal::mapped_memory();
#endif
}

struct LimitedMemory::Impl {
  std::int64_t limit = 0;
  MemoryResource* upstream = nullptr;
  std::atomic<std::int64_t> committed{0};

  // Adds to the account if the limit allows it. REQUIRES: bytes >= 0.
  Status take(std::int64_t bytes) noexcept {
    std::int64_t now = committed.load(std::memory_order_relaxed);
    do {
      if (bytes > limit - now) {
        return internal::make_status(StatusCode::kOutOfMemory, [&] {
          return "memory: asked " + std::to_string(bytes) + " bytes more with " +
                 std::to_string(now) + " of " + std::to_string(limit) + " committed";
        });
      }
    } while (!committed.compare_exchange_weak(now, now + bytes, std::memory_order_relaxed));
    return {};
  }

  void give_back(std::int64_t bytes) noexcept {
    committed.fetch_sub(bytes, std::memory_order_relaxed);
  }

  // Counts bytes that growth copied out of `from` and that are there twice until it is released.
  Status keep_copied(const Region& from, std::int64_t bytes, bool may_refuse) {
    const std::lock_guard<std::mutex> lock(mutex);
    std::int64_t& kept = copied[from.data];
    if (may_refuse) {
      Status status = take(bytes);
      if (!status.ok()) {
        if (kept == 0) copied.erase(from.data);
        return status;
      }
    } else {
      committed.fetch_add(bytes, std::memory_order_relaxed);
    }
    kept += bytes;
    return {};
  }

  void forget_copied(const Region& region) noexcept {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = copied.find(region.data);
    if (found == copied.end()) return;
    give_back(found->second);
    copied.erase(found);
  }

  std::mutex mutex;                                           // guards `copied`
  std::unordered_map<const std::byte*, std::int64_t> copied;  // by regions that were grown from
};

// Without memory for the account, every call refuses.
LimitedMemory::LimitedMemory(std::int64_t limit_bytes, MemoryResource& upstream)
    : impl_(new (std::nothrow) Impl) {
  if (impl_ == nullptr) return;
  impl_->limit = limit_bytes;
  impl_->upstream = &upstream;
}

LimitedMemory::~LimitedMemory() = default;

std::int64_t LimitedMemory::committed_bytes() const noexcept {
  return impl_ == nullptr ? 0 : impl_->committed.load(std::memory_order_relaxed);
}

Device LimitedMemory::device() const noexcept {
  return impl_ == nullptr ? Device{} : impl_->upstream->device();
}

Result<Region> LimitedMemory::reserve(std::int64_t bytes) noexcept {
  if (impl_ == nullptr) return internal::out_of_memory();
  return impl_->upstream->reserve(bytes);
}

Status LimitedMemory::commit(const Region& region, std::int64_t bytes) noexcept {
  if (impl_ == nullptr) return internal::out_of_memory();
  Status status = impl_->take(bytes);
  if (!status.ok()) return status;
  status = impl_->upstream->commit(region, bytes);
  if (!status.ok()) impl_->give_back(bytes);
  return status;
}

void LimitedMemory::decommit(const Region& region, std::int64_t bytes, std::int64_t offset,
                             std::int64_t length) noexcept {
  if (impl_ == nullptr) return;
  impl_->upstream->decommit(region, bytes, offset, length);
  impl_->give_back(bytes);
}

Result<Region> LimitedMemory::grow(const Region& region, const RowSpan& from, const RowSpan& to,
                                   std::int64_t bytes, std::int64_t* copied) noexcept {
  if (impl_ == nullptr) return internal::out_of_memory();
  return internal::at_door([&]() -> Result<Region> {
    KVC_ASSIGN_OR_RETURN(const Region grown,
                         impl_->upstream->grow(region, from, to, bytes, copied));
    if (*copied == 0) return grown;
    // Where every row was copied, all of them are still in their place and growth can be undone;
    // where some were moved, the limit is passed by what could not be.
    const bool can_undo = *copied == from.total_bytes();
    const Status kept =
        internal::at_door([&] { return impl_->keep_copied(region, *copied, can_undo); });
    if (kept.ok()) return grown;
    if (!can_undo) return grown;
    impl_->upstream->release(grown, 0);
    *copied = 0;
    return kept;
  });
}

void LimitedMemory::release(const Region& region, std::int64_t committed) noexcept {
  if (impl_ == nullptr) return;
  impl_->forget_copied(region);  // before another region can have its address
  impl_->upstream->release(region, committed);
  impl_->give_back(committed);
}

void LimitedMemory::will_fill(const Region& region, std::int64_t offset,
                              std::int64_t length) noexcept {
  if (impl_ != nullptr) impl_->upstream->will_fill(region, offset, length);
}

}  // namespace v1
}  // namespace kvcache
