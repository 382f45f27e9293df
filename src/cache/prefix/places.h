// Places of keys in a table that grows by one place at a time (linear hashing): so it has as many
// as pages were touched, and nothing is read or written before its page was.
#ifndef KVCACHE_SRC_CACHE_PREFIX_PLACES_H_
#define KVCACHE_SRC_CACHE_PREFIX_PLACES_H_

#include <bit>
#include <cstdint>

namespace kvcache::internal {

// Of 0 .. places - 1. REQUIRES: places > 0; the low bits of keys are mixed.
inline std::uint32_t place_of(std::uint64_t key, std::uint32_t places) noexcept {
  const std::uint64_t wide = std::bit_ceil(std::uint64_t{places});
  const std::uint64_t place = key & (wide - 1);
  return static_cast<std::uint32_t>(place < places ? place : place & (wide / 2 - 1));
}

// Where the keys of the place that is added as number `place` > 0 were before.
inline std::uint32_t place_before(std::uint32_t place) noexcept {
  return place - std::bit_floor(place);
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_PLACES_H_
