#include "tensor/codecs/codec.h"

#include "tensor/codecs/fp8.h"
#include "tensor/codecs/ggml.h"
#include "tensor/codecs/int4.h"
#include "tensor/codecs/int8.h"
#include "tensor/codecs/lm4.h"
#include "tensor/codecs/rotate.h"
#include "tensor/codecs/scale.h"

namespace kvcache::internal {

const char* wanted_elements(const RowFormat& format, std::int64_t elements) noexcept {
  if (!format.is_coded()) return nullptr;
  if (elements < 1 || elements > kMaxCodedElements) return "1 .. 4096 in coded rows";
  const bool in_groups = format.kind == RowFormat::kInt4 || format.kind == RowFormat::kQ8_0 ||
                         format.kind == RowFormat::kQ4_0;
  if (in_groups && elements % RowFormat::kGroup != 0) return "a multiple of 32";
  if ((format.rotate || format.kind == RowFormat::kLm4) &&
      rotation_block(elements) < kLeastRotation) {
    return "a multiple of 16 in rotated rows";
  }
  return nullptr;
}

bool encode_row(const RowFormat& format, float* row, std::int64_t elements,
                const CodedRow& to) noexcept {
  if (format.rotate) {
    // Finite rows that a rotation takes past the floats would be NaN to fp8.
    const bool finite = largest_magnitude(row, elements) < kInfinityBits;
    rotate_row(row, elements);
    if (finite && largest_magnitude(row, elements) >= kInfinityBits) return false;
    if (!finite) drop_signs_of_nan(row, elements);
  }
  switch (format.kind) {
    case RowFormat::kInt8:
      return encode_int8(row, elements, to);
    case RowFormat::kFp8E4M3:
      return encode_fp8(row, elements, to);
    case RowFormat::kInt4:
      return encode_int4(row, elements, to);
    case RowFormat::kLm4:
      return encode_lm4(row, elements, to);
    case RowFormat::kQ8_0:
      return encode_q8_0(row, elements, to.codes);
    case RowFormat::kQ4_0:
      return encode_q4_0(row, elements, to.codes);
    case RowFormat::kStrided:
      break;
  }
  return false;
}

void decode_rotated(const RowFormat& format, const ConstCodedRow& from, std::int64_t elements,
                    float* row) noexcept {
  switch (format.kind) {
    case RowFormat::kInt8:
      return decode_int8(from, elements, row);
    case RowFormat::kFp8E4M3:
      return decode_fp8(from, elements, row);
    case RowFormat::kInt4:
      return decode_int4(from, elements, row);
    case RowFormat::kLm4:
      return decode_lm4(from, elements, row);
    case RowFormat::kQ8_0:
      return decode_q8_0(from.codes, elements, row);
    case RowFormat::kQ4_0:
      return decode_q4_0(from.codes, elements, row);
    case RowFormat::kStrided:
      break;
  }
}

void decode_row(const RowFormat& format, const ConstCodedRow& from, std::int64_t elements,
                float* row) noexcept {
  decode_rotated(format, from, elements, row);
  if (format.rotate) rotate_row(row, elements);
}

ConstCodedRow coded_row_at(const RowsView& rows, std::int64_t page, std::int64_t head,
                           std::int64_t slot) noexcept {
  ConstCodedRow row;
  row.codes = rows.row_at(page, head, slot);
  if (rows.scale_page_stride == 0) return row;
  row.scales = rows.scales_at(page, head) + slot * 2;
  row.zeros = rows.zeros_at(page, head) + slot;
  row.scale_stride = rows.scale_group_stride;
  return row;
}

}  // namespace kvcache::internal
