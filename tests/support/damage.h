// Cache files that are damaged, or forged with sums that fit.
#ifndef KVCACHE_TESTS_SUPPORT_DAMAGE_H_
#define KVCACHE_TESTS_SUPPORT_DAMAGE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/xxh3.h"
#include "formats/header.h"

namespace kvcache::testing {

using Bytes = std::vector<std::byte>;

// A file of such a sequence, its rows all zeros.
inline Bytes forged(internal::StoredSequence seq) {
  internal::FileHeader header = internal::make_header(std::move(seq));
  internal::MemoryFile file;
  const Status status = internal::write_sequence(
      file, header, [](const internal::RowPiece&, const internal::RowArray&, std::byte*) {});
  return status.ok() ? std::move(file.bytes()) : Bytes();
}

// The sum of the header as its bytes are now, where there is one.
inline void fix_sum(Bytes& bytes) {
  std::uint64_t size = 0;
  if (bytes.size() < 4096) return;
  std::memcpy(&size, bytes.data() + 16, 8);
  if (size < 4096 || size > bytes.size()) return;
  const std::uint64_t sum = internal::xxh3(std::span(bytes).first(size - 8));
  std::memcpy(bytes.data() + size - 8, &sum, 8);
}

// Numbers that tend to hurt, written over a field.
inline void hurt(Bytes& bytes, std::mt19937_64& random) {
  static constexpr std::uint64_t kHurtful[] = {0,
                                               1,
                                               2,
                                               127,
                                               4096,
                                               65535,
                                               65537,
                                               0x7FFFFFFF,
                                               0x80000000,
                                               0xFFFFFFFF,
                                               std::uint64_t{1} << 44,
                                               0x7FFFFFFFFFFFFFFF,
                                               0xFFFFFFFFFFFFFFFF};
  static constexpr std::size_t kSizes[] = {1, 4, 8};
  const std::size_t size = kSizes[random() % 3];
  if (bytes.size() < 512) return;
  // Mostly in what says what is there.
  const std::size_t at = (random() % 8 == 0 ? random() % (bytes.size() - 8) : random() % 384);
  const std::uint64_t number =
      random() % 2 == 0 ? kHurtful[random() % std::size(kHurtful)] : random();
  std::memcpy(bytes.data() + at, &number, size);
}

// One to four edits: a bit or byte changed, a stretch removed, doubled or swapped with another, the
// end cut off, a field overwritten; in half of all cases with a header's sum that fits again.
inline Bytes damaged(Bytes bytes, std::mt19937_64& random, bool* sum_fits = nullptr) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const std::size_t edits = 1 + below(4);
  for (std::size_t i = 0; i < edits && !bytes.empty(); ++i) {
    const std::size_t at = below(bytes.size());
    const std::size_t length =
        std::min(1 + below(random() % 4 == 0 ? 4096 : 16), bytes.size() - at);
    const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = begin + static_cast<std::ptrdiff_t>(length);
    switch (below(7)) {
      case 0:
        bytes[at] ^= static_cast<std::byte>(1U << below(8));
        break;
      case 1:
        bytes.erase(begin, end);
        break;
      case 2: {
        const Bytes doubled(begin, end);
        bytes.insert(begin, doubled.begin(), doubled.end());
        break;
      }
      case 3: {
        const std::size_t other = below(bytes.size() - length + 1);
        if (other + length <= at || at + length <= other) {
          std::swap_ranges(begin, end, bytes.begin() + static_cast<std::ptrdiff_t>(other));
        }
        break;
      }
      case 4:
        bytes.resize(at);
        break;
      default:
        hurt(bytes, random);
    }
  }
  const bool fix = random() % 2 == 0;
  if (fix) fix_sum(bytes);
  if (sum_fits != nullptr) *sum_fits = fix;
  return bytes;
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_DAMAGE_H_
