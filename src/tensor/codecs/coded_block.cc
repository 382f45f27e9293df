#include "tensor/codecs/coded_block.h"

#include "tensor/codecs/codec.h"
#include "tensor/codecs/rotate.h"
#include "tensor/codecs/scale.h"
#include "tensor/convert.h"

namespace kvcache::internal {
namespace {

// Rows of no larger elements than this are coded by every form; a rotation makes an element at most
// sqrt(block) times the largest.
constexpr float kSurelyCoded = 16384.0f;

// A row as floats.
void read_row(const CodedBlock& block, std::int64_t token, std::int64_t head, float* row) noexcept {
  convert_row(block.row(token, head), block.dtype, block.element_stride / size_of(block.dtype), row,
              DType::kF32, block.elements);
}

bool is_refused(const CodedBlock& block, float* row) noexcept {
  const float most = std::bit_cast<float>(largest_magnitude(row, block.elements));
  const std::int64_t turned = block.format.rotate ? rotation_block(block.elements) : 1;
  if (most * most * static_cast<float>(turned) <= kSurelyCoded * kSurelyCoded) return false;
  std::byte codes[kMaxCodedElements / RowFormat::kGroup * 34];
  std::byte scales[kMaxCodedElements / RowFormat::kGroup * 2];
  std::byte zeros[kMaxCodedElements / RowFormat::kGroup];
  return !encode_row(block.format, row, block.elements, {codes, scales, zeros, 2});
}

}  // namespace

void set_codes(const RowsView& view, std::int64_t page, std::int64_t slot,
               CodedBlock* block) noexcept {
  block->format = view.format;
  block->codes = const_cast<std::byte*>(view.row_at(page, 0, slot));
  block->code_token_stride = view.token_stride;
  block->code_head_stride = view.head_stride;
  block->scales = const_cast<std::byte*>(view.scales_at(page, 0)) + slot * 2;
  block->zeros = const_cast<std::byte*>(view.zeros_at(page, 0)) + slot;
  block->scale_head_stride = view.scale_head_stride;
  block->scale_group_stride = view.scale_group_stride;
}

std::int64_t first_refused(const CodedBlock& block) noexcept {
  float row[kMaxCodedElements];
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    for (std::int64_t head = 0; head < block.heads; ++head) {
      read_row(block, token, head, row);
      if (is_refused(block, row)) return token;
    }
  }
  return -1;
}

void encode_block(const CodedBlock& block) noexcept {
  float row[kMaxCodedElements];
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    for (std::int64_t head = 0; head < block.heads; ++head) {
      read_row(block, token, head, row);
      encode_row(block.format, row, block.elements, block.coded(token, head));
    }
  }
}

void decode_block(const CodedBlock& block) noexcept {
  float row[kMaxCodedElements];
  const std::int64_t size = size_of(block.dtype);
  for (std::int64_t token = 0; token < block.tokens; ++token) {
    for (std::int64_t head = 0; head < block.heads; ++head) {
      const CodedRow at = block.coded(token, head);
      const ConstCodedRow from = {at.codes, at.scales, at.zeros, at.scale_stride};
      decode_rotated(block.format, from, block.elements, row);
      if (block.format.rotate && !block.stays_rotated) rotate_row(row, block.elements);
      char* to = block.row(token, head);
      if (block.element_stride == size) {
        convert_row(row, DType::kF32, 1, to, block.dtype, block.elements);
        continue;
      }
      for (std::int64_t i = 0; i < block.elements; ++i, to += block.element_stride) {
        convert_row(row + i, DType::kF32, 1, to, block.dtype, 1);
      }
    }
  }
}

}  // namespace kvcache::internal
