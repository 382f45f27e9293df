// XXH3-64 with seed 0 and the default secret: what checks that stored bytes are those that were
// written. Not a defence against who means to deceive.
// https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
#ifndef KVCACHE_SRC_BASE_XXH3_H_
#define KVCACHE_SRC_BASE_XXH3_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvcache::internal {

std::uint64_t xxh3(std::span<const std::byte> bytes) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_XXH3_H_
