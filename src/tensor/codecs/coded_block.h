// A block of rows and what stands for them in coded form: what the row kernels of a backend encode
// and decode (kernels/backend.h), and the definition of that in plain loops.
#ifndef KVCACHE_SRC_TENSOR_CODECS_CODED_BLOCK_H_
#define KVCACHE_SRC_TENSOR_CODECS_CODED_BLOCK_H_

#include <cstddef>
#include <cstdint>

#include "kvcache/row_format.h"
#include "kvcache/types.h"
#include "tensor/codecs/coded_row.h"

namespace kvcache::internal {

// Rows [tokens, heads, elements] of a caller, and their codes in consecutive slots of one page.
// Strides in bytes; see RowsView for those of codes, scales and zeros. No alignment is needed.
struct CodedBlock {
  RowFormat format;
  std::int64_t tokens = 0, heads = 0, elements = 0;

  void* rows = nullptr;  // read by encode, written by decode
  DType dtype = DType::kF32;
  std::int64_t token_stride = 0, head_stride = 0, element_stride = 0;
  bool stays_rotated = false;  // decode leaves rows turned, which is what attention reads

  std::byte* codes = nullptr;
  std::byte* scales = nullptr;
  std::byte* zeros = nullptr;
  std::int64_t code_token_stride = 0, code_head_stride = 0;
  std::int64_t scale_head_stride = 0, scale_group_stride = 0;

  CodedRow coded(std::int64_t token, std::int64_t head) const noexcept {
    return {codes + token * code_token_stride + head * code_head_stride,
            scales + token * 2 + head * scale_head_stride,
            zeros + token + head * (scale_head_stride / 2), scale_group_stride};
  }
  char* row(std::int64_t token, std::int64_t head) const noexcept {
    return static_cast<char*>(rows) + token * token_stride + head * head_stride;
  }
};

// The codes of a block in slots `slot` .. of a page of a view; `block` gets where they are.
void set_codes(const RowsView& view, std::int64_t page, std::int64_t slot,
               CodedBlock* block) noexcept;

// The first token of which a row cannot be encoded; -1: all can.
std::int64_t first_refused(const CodedBlock& block) noexcept;

// REQUIRES: none is refused.
void encode_block(const CodedBlock& block) noexcept;
void decode_block(const CodedBlock& block) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_CODED_BLOCK_H_
