// Rows of every coded form, by their RowFormat: the scalar definition, which is what tests compare
// every faster version with. A file for each form has its formula.
#ifndef KVCACHE_SRC_TENSOR_CODECS_CODEC_H_
#define KVCACHE_SRC_TENSOR_CODECS_CODEC_H_

#include <cstdint>

#include "kvcache/row_format.h"
#include "tensor/codecs/coded_row.h"

namespace kvcache::internal {

// What rows of `format` must be of instead of so many elements, "a multiple of 32"; null where
// these will do.
const char* wanted_elements(const RowFormat& format, std::int64_t elements) noexcept;

// Encodes a row, rotated first where the format says so, in `row` itself. False, with nothing but
// `row` written, where an element is not finite (but for fp8_e4m3, which keeps NaN) or a scale does
// not fit f16. REQUIRES: a coded format, for which these elements will do.
bool encode_row(const RowFormat& format, float* row, std::int64_t elements,
                const CodedRow& to) noexcept;

// The row that codes stand for, still rotated where the format says so: what attention works on.
void decode_rotated(const RowFormat& format, const ConstCodedRow& from, std::int64_t elements,
                    float* row) noexcept;

// The same, turned back: the row that was given, but for the error of its codes.
void decode_row(const RowFormat& format, const ConstCodedRow& from, std::int64_t elements,
                float* row) noexcept;

// Where a row of a view lies.
ConstCodedRow coded_row_at(const RowsView& rows, std::int64_t page, std::int64_t head,
                           std::int64_t slot) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_CODEC_H_
