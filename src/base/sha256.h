// SHA-256 (FIPS 180-4): names for what lies outside of memory, where equal names must mean equal
// contents.
#ifndef KVCACHE_SRC_BASE_SHA256_H_
#define KVCACHE_SRC_BASE_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvcache::internal {

using Sha256Digest = std::array<std::byte, 32>;

// The digest of all that is added, in order.
class Sha256 {
 public:
  void add(std::span<const std::byte> bytes) noexcept;
  // REQUIRES: called once, and nothing is added behind it.
  Sha256Digest finish() noexcept;

 private:
  void compress(const std::byte* block) noexcept;

  std::uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::uint64_t size_ = 0;  // bytes added
  std::byte rest_[64];      // of them, those that fill no block yet
};

Sha256Digest sha256(std::span<const std::byte> bytes) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_SHA256_H_
