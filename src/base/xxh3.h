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

// The same of bytes that come in pieces, of any sizes.
class Xxh3 {
 public:
  Xxh3() noexcept;
  void add(std::span<const std::byte> piece) noexcept;
  std::uint64_t sum() const noexcept;

 private:
  static constexpr std::size_t kBlock = 1024;  // bytes that lanes take at once
  static constexpr std::size_t kStripe = 64;

  alignas(64) std::uint64_t lanes_[8];
  // The last stripe of what lanes took, and what they have not taken: 1 .. kBlock bytes, once there
  // are any.
  std::byte pending_[kStripe + kBlock];
  std::size_t count_ = 0;
  std::size_t size_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_XXH3_H_
