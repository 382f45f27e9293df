// What a file says of a sequence, and where its rows lie in blocks: docs/formats.md in code.
#ifndef KVCACHE_SRC_FORMATS_STORED_SEQUENCE_H_
#define KVCACHE_SRC_FORMATS_STORED_SEQUENCE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/checked_math.h"
#include "formats/fields.h"
#include "kvcache/layer_spec.h"
#include "kvcache/prefix.h"

namespace kvcache::internal {

inline constexpr std::int64_t kSectionAlignment = 64;
inline constexpr std::int64_t kMostBlockTokens = 65536;
inline constexpr std::int64_t kMostLayerBlocks = std::int64_t{1} << 28;  // layers x blocks

struct StoredLayer {
  LayerSpec spec;
  std::int64_t first = 0;                      // the oldest row that is there beside the sinks
  LayerExtents extents{.length = kMostInt32};  // of a layered cache; else the sequence's
};

// A sequence, or the layers of a layered cache, which differ in batch and length.
struct StoredSequence {
  FileKind kind = FileKind::kSequence;
  PrefixNamespace space;
  std::int64_t length = 0;
  std::int64_t coded = 0;  // rows of coded buffers that are codes; those behind them are plain
  std::vector<StoredLayer> layers;
  std::vector<std::int32_t> tokens;  // ids of leading tokens
  std::int64_t block_tokens = 0;

  std::int64_t num_blocks() const noexcept { return ceil_div(length, block_tokens); }
};

// The rows of one buffer in a block that are stored alike: [heads, rows, ...] of each, at these
// offsets in the block. `heads` are those of all rows of a batch.
struct RowArray {
  RowFormat format;  // of plain rows the plain one
  std::int64_t heads = 0, dim = 0, rows = 0;
  std::int64_t codes = 0, scales = 0, zeros = 0;

  // Puts it at `offset`; returns its end.
  std::int64_t place(std::int64_t offset) noexcept {
    codes = offset;
    scales = codes + heads * rows * format.code_bytes(dim);
    const std::int64_t count = heads * rows * format.num_scales(dim);
    zeros = scales + 2 * count;
    return zeros + (format.has_zeros() ? count : 0);
  }
};

// Rows of positions begin .. end, one after the other: rows `at` .. of an array.
struct RowPiece {
  std::int64_t layer = 0;
  std::int32_t buffer = 0;
  std::int64_t begin = 0, end = 0, at = 0;
};

// Calls fn(const RowPiece&, const RowArray&) for the rows of block `block`, in the order in which
// they lie there; pieces end where a layer's rows become plain. Returns the bytes of the block, a
// multiple of kFileAlignment. REQUIRES: a sequence that was checked (header.h), or that a cache
// has.
template <typename Fn>
std::int64_t walk_block(const StoredSequence& seq, std::int64_t block, Fn&& fn) {
  const std::int64_t begin = block * seq.block_tokens;
  std::int64_t offset = 0;
  for (std::size_t layer = 0; layer < seq.layers.size(); ++layer) {
    const StoredLayer& stored = seq.layers[layer];
    const std::int64_t end =
        std::min({begin + seq.block_tokens, seq.length, stored.extents.length});
    const std::int64_t sinks = std::min<std::int64_t>(stored.spec.life.sink_tokens, stored.first);
    // What is there: sinks, and the newest; each again in those that are codes and those that are
    // not.
    const std::int64_t cuts[4][2] = {{begin, std::min({end, sinks, seq.coded})},
                                     {std::max(begin, seq.coded), std::min(end, sinks)},
                                     {std::max(begin, stored.first), std::min(end, seq.coded)},
                                     {std::max({begin, stored.first, seq.coded}), end}};
    for (std::int32_t b = 0; b < stored.spec.num_buffers; ++b) {
      const BufferSpec& buffer = stored.spec.buffers[b];
      RowArray coded{buffer.format, stored.extents.batch * buffer.heads, buffer.dim};
      RowArray plain = coded;
      plain.format.kind = RowFormat::kStrided;
      const auto array_of = [&](int cut) -> RowArray& {
        return buffer.format.is_coded() && cut % 2 == 0 ? coded : plain;
      };
      for (int cut = 0; cut < 4; ++cut) {
        array_of(cut).rows += std::max<std::int64_t>(0, cuts[cut][1] - cuts[cut][0]);
      }
      const std::int64_t section_end = plain.place(coded.place(offset));
      std::int64_t coded_at = 0, plain_at = 0;
      for (int cut = 0; cut < 4; ++cut) {
        const std::int64_t rows = cuts[cut][1] - cuts[cut][0];
        if (rows <= 0) continue;
        RowArray& array = array_of(cut);
        std::int64_t& at = &array == &coded ? coded_at : plain_at;
        fn(RowPiece{static_cast<std::int64_t>(layer), b, cuts[cut][0], cuts[cut][1], at}, array);
        at += rows;
      }
      offset = round_up(section_end, kSectionAlignment);
    }
  }
  return round_up(offset, kFileAlignment);
}

inline std::int64_t block_bytes(const StoredSequence& seq, std::int64_t block) {
  return walk_block(seq, block, [](const RowPiece&, const RowArray&) {});
}

// The block_tokens that a writer takes for layers like these.
std::int64_t usual_block_tokens(const StoredSequence& seq);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_FORMATS_STORED_SEQUENCE_H_
