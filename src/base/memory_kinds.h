// The two memories of the system behind system_memory(), by name, so that tests cover both.
#ifndef KVCACHE_SRC_BASE_MEMORY_KINDS_H_
#define KVCACHE_SRC_BASE_MEMORY_KINDS_H_

#include <cstdint>

#include "kvcache/memory.h"

// Set by the build option KVCACHE_PORTABLE_MEMORY.
#ifndef KVC_PORTABLE_MEMORY
#define KVC_PORTABLE_MEMORY 0
#endif

namespace kvcache::internal {

// Size of a page of the system in bytes.
std::int64_t page_bytes() noexcept;

// calloc, and memcpy on growth: works anywhere.
MemoryResource& portable_memory() noexcept;

#if !KVC_PORTABLE_MEMORY
// mmap, and mremap on growth: moves pages instead of copying them. Linux only.
MemoryResource& mapped_memory() noexcept;
#endif

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_MEMORY_KINDS_H_
