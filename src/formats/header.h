// The header of a file of a sequence or of a layered cache: written from a sequence, and read back
// with all checks of docs/formats.md that need no cache.
#ifndef KVCACHE_SRC_FORMATS_HEADER_H_
#define KVCACHE_SRC_FORMATS_HEADER_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/file.h"
#include "formats/block_table.h"
#include "formats/stored_sequence.h"
#include "kvcache/status.h"

namespace kvcache::internal {

struct FileHeader {
  StoredSequence seq;
  BlockTable blocks;
};

// Of a sequence that a cache has; sums are 0. May throw bad_alloc, as the others.
FileHeader make_header(StoredSequence seq);

std::vector<std::byte> encode_header(const FileHeader& header);

// Errors: kCorrupt, kUnsupported for an unknown version or kind, those of the file; each names the
// field.
Result<FileHeader> read_header(const HeaderBytes& start);
Result<FileHeader> read_header(const File& file);

// Writes all of a file: fill(piece, array, bytes of the block) puts rows where they belong.
template <typename Fill>
Status write_sequence(File& file, FileHeader& header, Fill&& fill) {
  KVC_RETURN_IF_ERROR(
      write_blocks(file, header.blocks, [&](std::int64_t block, std::span<std::byte> bytes) {
        walk_block(header.seq, block, [&](const RowPiece& piece, const RowArray& array) {
          fill(piece, array, bytes.data());
        });
      }));
  return file.write_at(0, encode_header(header));
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_FORMATS_HEADER_H_
