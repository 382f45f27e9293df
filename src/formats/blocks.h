// Blocks of a file: written from rows, read back against their sums.
#ifndef KVCACHE_SRC_FORMATS_BLOCKS_H_
#define KVCACHE_SRC_FORMATS_BLOCKS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/expect.h"
#include "base/file.h"
#include "base/xxh3.h"
#include "formats/header.h"

namespace kvcache::internal {

// Writes all of a file: fill(piece, array, bytes of the block) puts rows where they belong. May
// throw bad_alloc.
template <typename Fill>
Status write_sequence(File& file, FileHeader& header, Fill&& fill) {
  std::vector<std::byte> block(static_cast<std::size_t>(header.most_block_bytes()));
  for (std::size_t b = 0; b < header.sums.size(); ++b) {
    const std::span<std::byte> bytes(
        block.data(), static_cast<std::size_t>(header.offsets[b + 1] - header.offsets[b]));
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    walk_block(
        header.seq, static_cast<std::int64_t>(b),
        [&](const RowPiece& piece, const RowArray& array) { fill(piece, array, bytes.data()); });
    header.sums[b] = xxh3(bytes);
    KVC_RETURN_IF_ERROR(file.write_at(header.offsets[b], bytes));
  }
  return file.write_at(0, encode_header(header));
}

// Reads block `b` into `room` and returns its bytes. Errors: kCorrupt for another sum, those of the
// file. REQUIRES: room for it.
inline Result<std::span<const std::byte>> read_block(const File& file, const FileHeader& header,
                                                     std::int64_t b, std::span<std::byte> room) {
  const auto i = static_cast<std::size_t>(b);
  const auto size = static_cast<std::size_t>(header.offsets[i + 1] - header.offsets[i]);
  const std::span<std::byte> bytes = room.first(size);
  KVC_RETURN_IF_ERROR(file.read_at(header.offsets[i], bytes));
  if (xxh3(bytes) != header.sums[i]) {
    return refusal(StatusCode::kCorrupt, "sum of block " + std::to_string(b), "another",
                   "that of its bytes");
  }
  return std::span<const std::byte>(bytes);
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_FORMATS_BLOCKS_H_
