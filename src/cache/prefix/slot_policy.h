// A policy that keeps what it knows of an entry in a place of its own, in memory that becomes its
// own entry by entry.
#ifndef KVCACHE_SRC_CACHE_PREFIX_SLOT_POLICY_H_
#define KVCACHE_SRC_CACHE_PREFIX_SLOT_POLICY_H_

#include <cstdint>
#include <vector>

#include "kvcache/eviction.h"

namespace kvcache::internal {

class SlotPolicy : public EvictionPolicy {
 public:
  // Entries 0 .. entries - 1 may come from now on: no fewer than before, and no more than begin()
  // said. What lies in the places of others was never written.
  virtual void grow(std::int32_t entries) noexcept = 0;

  // Its entries but for those set aside, about in the order in which they would leave. May throw
  // bad_alloc.
  virtual void list(std::vector<std::int32_t>& out) const = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_SLOT_POLICY_H_
