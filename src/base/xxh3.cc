#include "base/xxh3.h"

#include <bit>
#include <cstring>

#if KVC_X86_64
#include <immintrin.h>
#elif KVC_ARM64
#include <arm_neon.h>
#endif

namespace kvcache::internal {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read as they lie");

constexpr std::uint64_t kPrime32[] = {0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D};
constexpr std::uint64_t kPrime64[] = {0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
                                      0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5};
constexpr std::uint64_t kMix1 = 0x165667919E3779F9;
constexpr std::uint64_t kMix2 = 0x9FB21C651E98DF25;

// The default secret, 192 bytes.
alignas(64) constexpr std::uint64_t kSecret[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
    0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
    0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
    0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
};
const auto* const kSecretBytes = reinterpret_cast<const std::byte*>(kSecret);

constexpr std::size_t kStripe = 64;
constexpr std::size_t kStripesPerBlock = (sizeof(kSecret) - kStripe) / 8;
constexpr std::size_t kBlock = kStripe * kStripesPerBlock;

template <typename Word>
Word read(const std::byte* from) noexcept {
  Word word;
  std::memcpy(&word, from, sizeof word);
  return word;
}
std::uint64_t word64(const std::byte* from) noexcept { return read<std::uint64_t>(from); }
std::uint64_t word32(const std::byte* from) noexcept { return read<std::uint32_t>(from); }

std::uint64_t avalanche(std::uint64_t x) noexcept {
  x = (x ^ (x >> 37)) * kMix1;
  return x ^ (x >> 32);
}

std::uint64_t avalanche64(std::uint64_t x) noexcept {
  x = (x ^ (x >> 33)) * kPrime64[1];
  x = (x ^ (x >> 29)) * kPrime64[2];
  return x ^ (x >> 32);
}

// Both halves of the product, one upon the other.
std::uint64_t folded_product(std::uint64_t a, std::uint64_t b) noexcept {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

std::uint64_t mix(const std::byte* data, const std::byte* secret) noexcept {
  return folded_product(word64(data) ^ word64(secret), word64(data + 8) ^ word64(secret + 8));
}

std::uint64_t hash_short(const std::byte* data, std::size_t size) noexcept {
  if (size == 0) return avalanche64(kSecret[7] ^ kSecret[8]);
  if (size <= 3) {
    const std::uint64_t combined = read<std::uint8_t>(data + size - 1) | (size << 8) |
                                   (std::uint64_t{read<std::uint8_t>(data)} << 16) |
                                   (std::uint64_t{read<std::uint8_t>(data + size / 2)} << 24);
    return avalanche64((word32(kSecretBytes) ^ word32(kSecretBytes + 4)) ^ combined);
  }
  if (size <= 8) {
    const std::uint64_t combined = word32(data + size - 4) | (word32(data) << 32);
    std::uint64_t value = (kSecret[1] ^ kSecret[2]) ^ combined;
    value ^= std::rotl(value, 49) ^ std::rotl(value, 24);
    value *= kMix2;
    value = (value ^ ((value >> 35) + size)) * kMix2;
    return value ^ (value >> 28);
  }
  const std::uint64_t low = (kSecret[3] ^ kSecret[4]) ^ word64(data);
  const std::uint64_t high = (kSecret[5] ^ kSecret[6]) ^ word64(data + size - 8);
  return avalanche(size + __builtin_bswap64(low) + high + folded_product(low, high));
}

std::uint64_t hash_medium(const std::byte* data, std::size_t size) noexcept {
  std::uint64_t sum = size * kPrime64[0];
  if (size <= 128) {
    for (std::size_t i = (size - 1) / 32 + 1; i-- > 0;) {
      sum += mix(data + i * 16, kSecretBytes + i * 32);
      sum += mix(data + size - i * 16 - 16, kSecretBytes + i * 32 + 16);
    }
    return avalanche(sum);
  }
  for (std::size_t i = 0; i < 8; ++i) sum += mix(data + i * 16, kSecretBytes + i * 16);
  sum = avalanche(sum);
  for (std::size_t i = 8; i < size / 16; ++i) {
    sum += mix(data + i * 16, kSecretBytes + (i - 8) * 16 + 3);
  }
  return avalanche(sum + mix(data + size - 16, kSecretBytes + 119));
}

// --- Long inputs: eight lanes, in the vectors that every machine of the platform has. ---

// `stripes` stripes of 64 bytes, each against the secret 8 bytes further on.
#if KVC_X86_64
void accumulate(std::uint64_t* lanes, const std::byte* data, const std::byte* secret,
                std::size_t stripes) noexcept {
  __m128i sums[4];
  std::memcpy(sums, lanes, sizeof sums);
  for (std::size_t s = 0; s < stripes; ++s, data += kStripe, secret += 8) {
    for (int i = 0; i < 4; ++i) {
      const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i);
      const __m128i key = _mm_loadu_si128(reinterpret_cast<const __m128i*>(secret) + i);
      const __m128i value = _mm_xor_si128(word, key);
      const __m128i high = _mm_shuffle_epi32(value, 0x31);
      const __m128i other = _mm_shuffle_epi32(word, 0x4E);
      sums[i] = _mm_add_epi64(_mm_add_epi64(sums[i], other), _mm_mul_epu32(value, high));
    }
  }
  std::memcpy(lanes, sums, sizeof sums);
}
#elif KVC_ARM64
void accumulate(std::uint64_t* lanes, const std::byte* data, const std::byte* secret,
                std::size_t stripes) noexcept {
  uint64x2_t sums[4];
  std::memcpy(sums, lanes, sizeof sums);
  for (std::size_t s = 0; s < stripes; ++s, data += kStripe, secret += 8) {
    for (int i = 0; i < 4; ++i) {
      const auto at = static_cast<std::size_t>(i) * 16;
      const uint64x2_t word =
          vreinterpretq_u64_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(data + at)));
      const uint64x2_t key =
          vreinterpretq_u64_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(secret + at)));
      const uint64x2_t value = veorq_u64(word, key);
      sums[i] = vaddq_u64(sums[i], vextq_u64(word, word, 1));
      sums[i] = vmlal_u32(sums[i], vmovn_u64(value), vshrn_n_u64(value, 32));
    }
  }
  std::memcpy(lanes, sums, sizeof sums);
}
#else
void accumulate(std::uint64_t* lanes, const std::byte* data, const std::byte* secret,
                std::size_t stripes) noexcept {
  for (std::size_t s = 0; s < stripes; ++s, data += kStripe, secret += 8) {
    for (std::size_t i = 0; i < 8; ++i) {
      const std::uint64_t word = word64(data + 8 * i);
      const std::uint64_t value = word ^ word64(secret + 8 * i);
      lanes[i ^ 1] += word;
      lanes[i] += (value & 0xFFFFFFFF) * (value >> 32);
    }
  }
}
#endif

void scramble(std::uint64_t* lanes) noexcept {
  for (std::size_t i = 0; i < 8; ++i) {
    lanes[i] = (lanes[i] ^ (lanes[i] >> 47) ^ kSecret[16 + i]) * kPrime32[0];
  }
}

constexpr std::uint64_t kLanes[8] = {kPrime32[2], kPrime64[0], kPrime64[1], kPrime64[2],
                                     kPrime64[3], kPrime32[1], kPrime64[4], kPrime32[0]};

void add_blocks(std::uint64_t* lanes, const std::byte* data, std::size_t blocks) noexcept {
  for (std::size_t b = 0; b < blocks; ++b, data += kBlock) {
    accumulate(lanes, data, kSecretBytes, kStripesPerBlock);
    scramble(lanes);
  }
}

// The sum of `size` bytes, of which lanes have all but the last `count`; `end` is behind these, and
// a stripe before it can be read.
std::uint64_t finish_long(std::uint64_t* lanes, const std::byte* end, std::size_t count,
                          std::size_t size) noexcept {
  accumulate(lanes, end - count, kSecretBytes, (count - 1) / kStripe);
  accumulate(lanes, end - kStripe, kSecretBytes + sizeof(kSecret) - kStripe - 7, 1);
  std::uint64_t sum = size * kPrime64[0];
  for (std::size_t i = 0; i < 4; ++i) {
    const std::byte* const secret = kSecretBytes + 11 + 16 * i;
    sum += folded_product(lanes[2 * i] ^ word64(secret), lanes[2 * i + 1] ^ word64(secret + 8));
  }
  return avalanche(sum);
}

std::uint64_t hash_long(const std::byte* data, std::size_t size) noexcept {
  alignas(64) std::uint64_t lanes[8];
  std::memcpy(lanes, kLanes, sizeof lanes);
  const std::size_t blocks = (size - 1) / kBlock;  // the last one is left, though it be whole
  add_blocks(lanes, data, blocks);
  return finish_long(lanes, data + size, size - blocks * kBlock, size);
}

}  // namespace

std::uint64_t xxh3(std::span<const std::byte> bytes) noexcept {
  if (bytes.size() <= 16) return hash_short(bytes.data(), bytes.size());
  if (bytes.size() <= 240) return hash_medium(bytes.data(), bytes.size());
  return hash_long(bytes.data(), bytes.size());
}

Xxh3::Xxh3() noexcept {
  static_assert(kBlock == internal::kBlock && kStripe == internal::kStripe);
  std::memcpy(lanes_, kLanes, sizeof lanes_);
}

void Xxh3::add(std::span<const std::byte> piece) noexcept {
  size_ += piece.size();
  std::byte* const pending = pending_ + kStripe;
  if (count_ + piece.size() > kBlock) {
    if (count_ > 0) {
      const std::size_t missing = kBlock - count_;
      std::memcpy(pending + count_, piece.data(), missing);
      piece = piece.subspan(missing);
      add_blocks(lanes_, pending, 1);
      std::memcpy(pending_, pending + kBlock - kStripe, kStripe);
      count_ = 0;
    }
    if (const std::size_t blocks = (piece.size() - 1) / kBlock; blocks > 0) {
      add_blocks(lanes_, piece.data(), blocks);
      piece = piece.subspan(blocks * kBlock - kStripe);
      std::memcpy(pending_, piece.data(), kStripe);
      piece = piece.subspan(kStripe);
    }
  }
  if (!piece.empty()) std::memcpy(pending + count_, piece.data(), piece.size());
  count_ += piece.size();
}

std::uint64_t Xxh3::sum() const noexcept {
  const std::byte* const pending = pending_ + kStripe;
  if (size_ <= kBlock) return xxh3({pending, size_});
  std::uint64_t lanes[8];
  std::memcpy(lanes, lanes_, sizeof lanes);
  return finish_long(lanes, pending + count_, count_, size_);
}

}  // namespace kvcache::internal
