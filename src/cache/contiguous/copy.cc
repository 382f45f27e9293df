#include "cache/contiguous/copy.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/parallel.h"
#include "kernels/select.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

// Rows [begin, end) of the flattened outer axes.
void store_range(const RowCopy& copy, std::int64_t begin, std::int64_t end) noexcept {
  while (begin < end) {
    const std::int64_t outer = begin / copy.shape[2];
    const std::int64_t at[3] = {outer / copy.shape[1], outer % copy.shape[1],
                                begin % copy.shape[2]};
    RowCopy piece = copy;
    piece.shape[0] = piece.shape[1] = 1;
    piece.shape[2] = std::min(end - begin, copy.shape[2] - at[2]);
    std::int64_t src = 0;
    std::int64_t dst = 0;
    for (int axis = 0; axis < 3; ++axis) {
      src += at[axis] * copy.src_strides[axis];
      dst += at[axis] * copy.dst_strides[axis];
    }
    piece.src = static_cast<const char*>(copy.src) + src;
    piece.dst = static_cast<char*>(copy.dst) + dst;
    selected_rows().store(piece);
    begin += piece.shape[2];
  }
}

// fn(begin, block of the tokens begin .. end) noexcept, in pieces.
template <typename Fn>
void for_each_piece(const ExecContext& context, const CodedBlock& block, Fn&& fn) noexcept {
  const std::int64_t bytes = block.tokens * block.heads * block.elements * size_of(block.dtype);
  for_each_range(context, block.tokens, bytes, [&](std::int64_t begin, std::int64_t end) noexcept {
    CodedBlock piece = block;
    piece.tokens = end - begin;
    piece.rows = block.row(begin, 0);
    piece.codes += begin * block.code_token_stride;
    piece.scales += begin * 2;
    piece.zeros += begin;
    fn(begin, piece);
  });
}

}  // namespace

CodedBlock coded_block(const TensorView& rows, Layout layout, const RowFormat& format,
                       std::int64_t batch) noexcept {
  const KvExtents extents = kv_extents(rows, layout);
  const KvExtents strides = kv_strides(rows, layout);
  const std::int64_t size = size_of(rows.dtype);
  CodedBlock block;
  block.format = format;
  block.tokens = extents.length;
  block.heads = extents.heads;
  block.elements = extents.dim;
  block.rows = static_cast<std::byte*>(const_cast<void*>(rows.data)) + batch * strides.batch * size;
  block.dtype = rows.dtype;
  block.token_stride = strides.length * size;
  block.head_stride = strides.heads * size;
  block.element_stride = strides.dim * size;
  return block;
}

void encode_block_on(const ExecContext& context, const CodedBlock& block) noexcept {
  for_each_piece(context, block, [](std::int64_t, const CodedBlock& piece) noexcept {
    selected_rows().encode(piece);
  });
}

void decode_block_on(const ExecContext& context, const CodedBlock& block) noexcept {
  for_each_piece(context, block, [](std::int64_t, const CodedBlock& piece) noexcept {
    selected_rows().decode(piece);
  });
}

std::int64_t first_refused_on(const ExecContext& context, const CodedBlock& block) noexcept {
  std::atomic<std::int64_t> first = block.tokens;
  for_each_piece(context, block, [&](std::int64_t begin, const CodedBlock& piece) noexcept {
    const std::int64_t at = selected_rows().refused(piece);
    if (at < 0) return;
    std::int64_t known = first;
    while (begin + at < known && !first.compare_exchange_weak(known, begin + at)) {
    }
  });
  return first < block.tokens ? first.load() : -1;
}

void store_rows_on(const ExecContext& context, const RowCopy& copy) noexcept {
  const std::int64_t rows = copy.shape[0] * copy.shape[1] * copy.shape[2];
  const std::int64_t bytes = rows * copy.shape[3] * size_of(copy.dst_dtype);
  if (bytes < kParallelBytes) return selected_rows().store(copy);
  for_each_range(context, rows, bytes, [&copy](std::int64_t begin, std::int64_t end) noexcept {
    store_range(copy, begin, end);
  });
}

}  // namespace kvcache::internal
