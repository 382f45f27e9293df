// The header of a file: written from a sequence, and read back with all checks of docs/formats.md
// that need no cache.
#ifndef KVCACHE_SRC_FORMATS_HEADER_H_
#define KVCACHE_SRC_FORMATS_HEADER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/file.h"
#include "formats/stored_sequence.h"
#include "kvcache/status.h"

namespace kvcache::internal {

inline constexpr std::uint32_t kFormatVersion = 1;

struct FileHeader {
  StoredSequence seq;
  std::vector<std::uint64_t> sums;    // [num_blocks]
  std::vector<std::int64_t> offsets;  // [num_blocks + 1] where each block begins; the file's end

  std::int64_t header_bytes() const noexcept { return offsets.front(); }
  std::int64_t file_bytes() const noexcept { return offsets.back(); }
  std::int64_t most_block_bytes() const noexcept;
};

// Of a sequence that a cache has; sums are 0. May throw bad_alloc, as the others.
FileHeader make_header(StoredSequence seq);

std::vector<std::byte> encode_header(const FileHeader& header);

// Errors: kCorrupt, kUnsupported for an unknown version or kind, those of the file; each names the
// field.
Result<FileHeader> read_header(const File& file);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_FORMATS_HEADER_H_
