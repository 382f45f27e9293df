// The C door to PrefixCache.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/expect.h"
#include "c/door.h"
#include "c/paged.h"
#include "c/prefix.h"
#include "kvcache/prefix.h"

using kvcache::PagedCache;
using kvcache::PrefixCache;
using kvcache::PrefixEvent;
using kvcache::PrefixHandle;
using kvcache::PrefixMiss;
using kvcache::PrefixNamespace;
using kvcache::Result;
using kvcache::Status;
using kvcache::internal::c_call;
using kvcache::internal::expect_array;
using kvcache::internal::expect_not_null;
using kvcache::internal::read_struct;
using kvcache::internal::refusal;
using kvcache::internal::space_of;
using kvcache::internal::write_struct;

struct kvc_prefix_handle {
  std::shared_ptr<PagedCache> cache;
  PrefixHandle handle;
};

namespace {

static_assert(static_cast<int>(PrefixMiss::kWindow) == KVC_MISS_WINDOW);
static_assert(static_cast<int>(kvcache::Eviction::kAdaptive) == KVC_ADAPTIVE);

// A call on a prefix cache: fn(prefixes).
template <typename Prefix, typename Fn>
kvc_status with(Prefix* prefix, Fn&& fn) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("prefix", prefix));
    return fn(prefix->prefixes);
  });
}

// One about a handle: fn(prefixes, handle).
template <typename Fn>
kvc_status with_handle(kvc_prefix* prefix, const kvc_prefix_handle* handle, Fn&& fn) {
  return with(prefix, [&](PrefixCache& prefixes) -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("handle", handle));
    return fn(prefixes, handle->handle);
  });
}

std::span<const std::int32_t> span_of(const std::int32_t* tokens, std::int64_t count) {
  return {tokens, static_cast<std::size_t>(count)};
}

}  // namespace

Result<PrefixNamespace> kvcache::internal::space_of(const kvc_prefix_namespace* space) {
  PrefixNamespace name;
  if (space == nullptr) return name;
  kvc_prefix_namespace from;
  KVC_RETURN_IF_ERROR(read_struct("space", space, &from));
  KVC_RETURN_IF_ERROR(kvcache::internal::expect_unused("space.reserved", from.reserved));
  static_assert(sizeof from.bits == sizeof name.bits);
  std::memcpy(name.bits.data(), from.bits, sizeof from.bits);
  name.tenant = from.tenant;
  return name;
}

kvc_status kvc_prefix_create(kvc_paged* cache, const kvc_prefix_options* options,
                             kvc_prefix** prefix) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_not_null("prefix", prefix));
    kvcache::PrefixOptions wanted;
    if (options != nullptr) {
      kvc_prefix_options from;
      KVC_RETURN_IF_ERROR(read_struct("options", options, &from));
      if (from.eviction < KVC_LRU || from.eviction > KVC_ADAPTIVE) {
        return refusal("options.eviction", from.eviction, "0 .. 3");
      }
      wanted.eviction = static_cast<kvcache::Eviction>(from.eviction);
      wanted.ttl = from.ttl;
      wanted.event_capacity = from.event_capacity;
    }
    KVC_ASSIGN_OR_RETURN(PrefixCache made, PrefixCache::create(*cache->cache, wanted));
    *prefix = new kvc_prefix{cache->cache, std::move(made)};
    return {};
  });
}

void kvc_prefix_free(kvc_prefix* prefix) { delete prefix; }

kvc_status kvc_prefix_match(kvc_prefix* prefix, const int32_t* tokens, int64_t num_tokens,
                            const kvc_prefix_namespace* space, kvc_prefix_handle** handle) {
  return with(prefix, [&](PrefixCache& prefixes) -> Status {
    KVC_RETURN_IF_ERROR(expect_array("tokens", tokens, num_tokens));
    KVC_RETURN_IF_ERROR(expect_not_null("handle", handle));
    KVC_ASSIGN_OR_RETURN(const PrefixNamespace name, space_of(space));
    KVC_ASSIGN_OR_RETURN(PrefixHandle found, prefixes.match(span_of(tokens, num_tokens), name));
    *handle = new kvc_prefix_handle{prefix->cache, std::move(found)};
    return {};
  });
}

int64_t kvc_prefix_handle_length(const kvc_prefix_handle* handle) {
  return handle == nullptr ? 0 : handle->handle.length();
}
int32_t kvc_prefix_handle_reason(const kvc_prefix_handle* handle) {
  return handle == nullptr ? KVC_MISS_NONE : static_cast<std::int32_t>(handle->handle.reason());
}
void kvc_prefix_handle_free(kvc_prefix_handle* handle) { delete handle; }

kvc_status kvc_prefix_open(kvc_prefix* prefix, const kvc_prefix_handle* handle, int64_t* seq) {
  return with_handle(prefix, handle,
                     [&](PrefixCache& prefixes, const PrefixHandle& found) -> Status {
                       KVC_RETURN_IF_ERROR(expect_not_null("seq", seq));
                       KVC_ASSIGN_OR_RETURN(const kvcache::SequenceId opened, prefixes.open(found));
                       *seq = static_cast<std::int64_t>(opened);
                       return {};
                     });
}

kvc_status kvc_prefix_explain(const kvc_prefix* prefix, const int32_t* tokens, int64_t num_tokens,
                              const kvc_prefix_namespace* space,
                              kvc_prefix_explanation* explanation) {
  return with(prefix, [&](const PrefixCache& prefixes) -> Status {
    KVC_RETURN_IF_ERROR(expect_array("tokens", tokens, num_tokens));
    KVC_ASSIGN_OR_RETURN(const PrefixNamespace name, space_of(space));
    KVC_ASSIGN_OR_RETURN(const kvcache::PrefixExplanation said,
                         prefixes.explain(span_of(tokens, num_tokens), name));
    kvc_prefix_explanation ours = {};
    ours.reason = static_cast<std::int32_t>(said.reason);
    ours.length = said.length;
    ours.stored = said.stored;
    ours.layer = said.layer;
    return write_struct("explanation", ours, explanation);
  });
}

kvc_status kvc_prefix_pin(kvc_prefix* prefix, const kvc_prefix_handle* handle) {
  return with_handle(prefix, handle,
                     [](PrefixCache& p, const PrefixHandle& h) { return p.pin(h); });
}

kvc_status kvc_prefix_unpin(kvc_prefix* prefix, const kvc_prefix_handle* handle) {
  return with_handle(prefix, handle,
                     [](PrefixCache& p, const PrefixHandle& h) { return p.unpin(h); });
}

kvc_status kvc_prefix_set_priority(kvc_prefix* prefix, const kvc_prefix_handle* handle,
                                   int64_t priority) {
  return with_handle(prefix, handle, [&](PrefixCache& p, const PrefixHandle& h) {
    return p.set_priority(h, priority);
  });
}

kvc_status kvc_prefix_set_ttl(kvc_prefix* prefix, const kvc_prefix_handle* handle,
                              int64_t milliseconds) {
  return with_handle(prefix, handle, [&](PrefixCache& p, const PrefixHandle& h) {
    return p.set_ttl(h, milliseconds);
  });
}

kvc_status kvc_prefix_set_quota(kvc_prefix* prefix, int64_t tenant, int64_t bytes) {
  return with(prefix, [&](PrefixCache& p) { return p.set_quota(tenant, bytes); });
}

int64_t kvc_prefix_tenant_bytes(const kvc_prefix* prefix, int64_t tenant) {
  return prefix == nullptr ? 0 : prefix->prefixes.tenant_bytes(tenant);
}

int64_t kvc_prefix_evict(kvc_prefix* prefix, int64_t pages) {
  return prefix == nullptr ? 0 : prefix->prefixes.evict(pages);
}

int64_t kvc_prefix_remove_expired(kvc_prefix* prefix) {
  return prefix == nullptr ? 0 : prefix->prefixes.remove_expired();
}

kvc_status kvc_prefix_get_stats(const kvc_prefix* prefix, kvc_prefix_stats* stats) {
  return with(prefix, [&](const PrefixCache& prefixes) -> Status {
    const kvcache::PrefixStats found = prefixes.stats();
    kvc_prefix_stats ours = {};
    ours.matches = found.matches;
    ours.hits = found.hits;
    ours.tokens_asked = found.tokens_asked;
    ours.tokens_found = found.tokens_found;
    ours.tokens_reused = found.tokens_reused;
    std::copy(std::begin(found.misses), std::end(found.misses), ours.misses);
    ours.pages_stored = found.pages_stored;
    ours.pages_evicted = found.pages_evicted;
    ours.pages_removed = found.pages_removed;
    ours.pages = found.pages;
    ours.pages_unheld = found.pages_unheld;
    ours.bytes = found.bytes;
    ours.namespaces = found.namespaces;
    return write_struct("stats", ours, stats);
  });
}

kvc_status kvc_prefix_take_events(kvc_prefix* prefix, kvc_prefix_event* events, int64_t capacity,
                                  int64_t* taken) {
  return with(prefix, [&](PrefixCache& prefixes) -> Status {
    KVC_RETURN_IF_ERROR(expect_array("events", events, capacity));
    KVC_RETURN_IF_ERROR(expect_not_null("taken", taken));
    // All are looked at before any is taken, so that a bad size loses none.
    KVC_RETURN_IF_ERROR(kvcache::internal::for_each_struct(
        "events", events, capacity,
        [](std::int64_t, const kvc_prefix_event&) -> Status { return {}; }));
    std::vector<PrefixEvent> found(static_cast<std::size_t>(capacity));
    *taken = prefixes.take_events(found);
    const std::size_t stride = capacity == 0 ? 0 : events->struct_size;
    auto* bytes = reinterpret_cast<std::byte*>(events);
    for (std::int64_t i = 0; i < *taken; ++i, bytes += stride) {
      const PrefixEvent& event = found[static_cast<std::size_t>(i)];
      kvc_prefix_event ours = {};
      ours.kind = static_cast<std::int32_t>(event.kind);
      ours.number = event.number;
      ours.lost = event.lost;
      ours.key = event.key;
      ours.parent = event.parent;
      ours.position = event.position;
      KVC_RETURN_IF_ERROR(write_struct("events", ours, reinterpret_cast<kvc_prefix_event*>(bytes)));
    }
    return {};
  });
}
