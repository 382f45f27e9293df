// The policies that are built in. Each keeps what it knows of entry e at place e of memory that it
// is given, so that nothing of it allocates, and touches no place before its entry was grown to.
#ifndef KVCACHE_SRC_CACHE_PREFIX_POLICIES_H_
#define KVCACHE_SRC_CACHE_PREFIX_POLICIES_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cache/prefix/slot_policy.h"
#include "kvcache/eviction.h"

namespace kvcache::internal {

// Of memory, for each entry.
inline constexpr std::size_t kPolicyBytes = 96;

// `memory`: num_entries * kPolicyBytes at a multiple of 64, which live as long as the policy. May
// throw bad_alloc.
std::unique_ptr<SlotPolicy> make_policy(Eviction eviction, std::byte* memory);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_POLICIES_H_
