// PrefixCache: arguments are checked here, the work is done in src/cache/prefix.
#include "kvcache/prefix.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "api/prefix_cache_impl.h"
#include "base/door.h"
#include "base/expect.h"
#include "base/sha256.h"

namespace kvcache {
inline namespace v1 {

using internal::at_door;
using internal::PagedSequence;
using internal::PrefixFound;
using internal::PrefixIndex;
using internal::refusal;

PrefixNamespace namespace_of(std::span<const std::string_view> parts,
                             std::int64_t tenant) noexcept {
  internal::Sha256 sum;
  for (const std::string_view part : parts) {
    const std::uint64_t length = part.size();
    sum.add(std::as_bytes(std::span(&length, 1)));
    sum.add(std::as_bytes(std::span(part)));
  }
  return {sum.finish(), tenant};
}

const char* name_of(PrefixMiss reason) noexcept {
  switch (reason) {
    case PrefixMiss::kNone:
      return "none";
    case PrefixMiss::kLastToken:
      return "last token";
    case PrefixMiss::kCold:
      return "cold";
    case PrefixMiss::kEvicted:
      return "evicted";
    case PrefixMiss::kExpired:
      return "expired";
    case PrefixMiss::kOtherNamespace:
      return "other namespace";
    case PrefixMiss::kWindow:
      return "window";
  }
  return "unknown";
}

PrefixHandle::PrefixHandle(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
PrefixHandle::PrefixHandle(PrefixHandle&&) noexcept = default;
PrefixHandle& PrefixHandle::operator=(PrefixHandle&&) noexcept = default;
PrefixHandle::~PrefixHandle() = default;
std::int64_t PrefixHandle::length() const noexcept { return impl_ == nullptr ? 0 : impl_->length; }
PrefixMiss PrefixHandle::reason() const noexcept {
  return impl_ == nullptr ? PrefixMiss::kNone : impl_->reason;
}

PrefixCache::PrefixCache(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
PrefixCache::PrefixCache(PrefixCache&&) noexcept = default;
PrefixCache& PrefixCache::operator=(PrefixCache&&) noexcept = default;
PrefixCache::~PrefixCache() = default;

Result<PrefixCache> PrefixCache::create(PagedCache& cache, const PrefixOptions& options) {
  return at_door([&]() -> Result<PrefixCache> {
    PagedCache::Impl& paged = *cache.impl_;
    if (paged.store->prefix_memory() == nullptr) {
      return refusal("CacheConfig::prefixes", "false", "true");
    }
    if (paged.index != nullptr) return refusal("cache", "one with a PrefixCache", "one without");
    if (options.eviction > Eviction::kAdaptive) {
      return refusal("eviction", static_cast<std::int64_t>(options.eviction), "0 .. 3");
    }
    KVC_RETURN_IF_ERROR(internal::expect_at_least("ttl", options.ttl, 0));
    KVC_RETURN_IF_ERROR(internal::expect_between("event_capacity", options.event_capacity, 0,
                                                 std::int64_t{1} << 31));
    auto impl = std::make_unique<Impl>();
    KVC_ASSIGN_OR_RETURN(paged.index,
                         PrefixIndex::create(*paged.store, options, internal::hash_tokens));
    impl->cache = cache.impl_;
    return PrefixCache(std::move(impl));
  });
}

Result<PrefixHandle> PrefixCache::match(std::span<const std::int32_t> tokens,
                                        const PrefixNamespace& name) {
  return at_door([&]() -> Result<PrefixHandle> {
    KVC_RETURN_IF_ERROR(impl_->check_cache());
    PrefixIndex& index = impl_->index();
    auto handle = std::make_unique<PrefixHandle::Impl>();
    const internal::PagedStore::SettleTables settle{*impl_->cache->store};
    KVC_ASSIGN_OR_RETURN(auto space, index.space(name));
    const PrefixFound found = index.find(name, tokens);
    KVC_ASSIGN_OR_RETURN(handle->seq, index.hold(found, std::move(space)));
    handle->owner = impl_->cache;
    handle->index = &index;
    handle->length = found.length;
    handle->reason = found.reason;
    index.use(found);
    PrefixStats& stats = index.stats();
    ++stats.matches;
    stats.hits += found.length > 0 ? 1 : 0;
    stats.tokens_asked += static_cast<std::int64_t>(tokens.size());
    stats.tokens_found += found.length;
    ++stats.misses[static_cast<std::size_t>(found.reason)];
    return PrefixHandle(std::move(handle));
  });
}

Result<SequenceId> PrefixCache::open(const PrefixHandle& handle) {
  return at_door([&]() -> Result<SequenceId> {
    KVC_RETURN_IF_ERROR(impl_->sequence(handle.impl_.get()).status());
    const std::int64_t length = handle.impl_->length;
    KVC_ASSIGN_OR_RETURN(const SequenceId seq,
                         impl_->cache->store->fork(handle.impl_->seq, length));
    impl_->index().stats().tokens_reused += length;
    return seq;
  });
}

Result<PrefixExplanation> PrefixCache::explain(std::span<const std::int32_t> tokens,
                                               const PrefixNamespace& name) const {
  return at_door([&]() -> Result<PrefixExplanation> {
    KVC_RETURN_IF_ERROR(impl_->check_cache());
    const PrefixIndex& index = impl_->index();
    const PrefixFound found = index.find(name, tokens);
    PrefixExplanation out;
    out.length = found.length;
    out.stored = found.stored;
    out.reason = found.reason;
    out.text = std::to_string(found.length) + " of " + std::to_string(tokens.size()) +
               " tokens found; no more: " + name_of(found.reason);
    if (found.group >= 0) {
      const auto& layout = impl_->cache->store->layout();
      out.layer = layout.groups[static_cast<std::size_t>(found.group)].layers.front().layer;
      out.text +=
          ", of " + std::to_string(found.stored) + " stored, in layer " + std::to_string(out.layer);
    }
    return out;
  });
}

Status PrefixCache::pin(const PrefixHandle& handle) {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(const PagedSequence* seq, impl_->sequence(handle.impl_.get()));
    if (seq->length == 0) return {};
    const std::int32_t last = seq->tables.back().pages.back();
    const std::int64_t length = seq->length;
    impl_->pins.reserve(impl_->pins.size() + 1);
    KVC_ASSIGN_OR_RETURN(const SequenceId pinned,
                         impl_->cache->store->fork(handle.impl_->seq, length, true));
    impl_->pins.push_back({pinned, last, length});
    return {};
  });
}

Status PrefixCache::unpin(const PrefixHandle& handle) {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(const PagedSequence* seq, impl_->sequence(handle.impl_.get()));
    if (seq->length == 0) return {};
    const std::int32_t last = seq->tables.back().pages.back();
    const auto pin = std::find_if(
        impl_->pins.begin(), impl_->pins.end(),
        [&](const Impl::Pin& each) { return each.last == last && each.length == seq->length; });
    if (pin == impl_->pins.end()) {
      return refusal(StatusCode::kNotFound, "handle", "one that is not pinned", "one that is");
    }
    KVC_RETURN_IF_ERROR(impl_->cache->store->release(pin->seq));
    impl_->pins.erase(pin);
    return {};
  });
}

Status PrefixCache::set_priority(const PrefixHandle& handle, std::int64_t priority) {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(const PagedSequence* seq, impl_->sequence(handle.impl_.get()));
    KVC_RETURN_IF_ERROR(
        internal::expect_between("priority", priority, 0, internal::kPriorities - 1));
    impl_->index().set_priority(*seq, static_cast<std::int32_t>(priority));
    return {};
  });
}

Status PrefixCache::set_ttl(const PrefixHandle& handle, std::int64_t milliseconds) {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(const PagedSequence* seq, impl_->sequence(handle.impl_.get()));
    KVC_RETURN_IF_ERROR(internal::expect_between("milliseconds", milliseconds, 0,
                                                 std::numeric_limits<std::int64_t>::max() / 4));
    PrefixIndex& index = impl_->index();
    index.set_deadline(*seq, milliseconds == 0 ? 0 : index.now() + milliseconds);
    return {};
  });
}

Status PrefixCache::set_quota(std::int64_t tenant, std::int64_t bytes) {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(impl_->check_cache());
    KVC_RETURN_IF_ERROR(internal::expect_at_least("bytes", bytes, -1));
    PrefixIndex& index = impl_->index();
    index.set_quota(tenant, bytes < 0 ? -1 : bytes / index.page_bytes());
    return {};
  });
}

std::int64_t PrefixCache::tenant_bytes(std::int64_t tenant) const noexcept {
  if (impl_->cache->index == nullptr) return 0;
  return impl_->index().tenant_pages(tenant) * impl_->index().page_bytes();
}

std::int64_t PrefixCache::evict(std::int64_t pages) noexcept {
  if (impl_->cache->index == nullptr) return 0;
  const internal::PagedStore::SettleTables settle{*impl_->cache->store};
  return impl_->index().evict(pages);
}

std::int64_t PrefixCache::remove_expired() noexcept {
  if (impl_->cache->index == nullptr) return 0;
  const internal::PagedStore::SettleTables settle{*impl_->cache->store};
  return impl_->index().remove_expired(impl_->index().now());
}

PrefixStats PrefixCache::stats() const noexcept {
  if (impl_->cache->index == nullptr) return {};
  PrefixStats stats = impl_->index().stats();
  stats.bytes = stats.pages * impl_->index().page_bytes();
  stats.namespaces = impl_->index().num_spaces();
  return stats;
}

std::int64_t PrefixCache::take_events(std::span<PrefixEvent> out) noexcept {
  return impl_->cache->index == nullptr ? 0 : impl_->index().events().take(out);
}

Status PrefixCache::check_invariants() const {
  return at_door([&]() -> Status {
    KVC_RETURN_IF_ERROR(impl_->check_cache());
    return impl_->index().check();
  });
}

}  // namespace v1
}  // namespace kvcache
