// ggml's blocks of 32 elements, byte for byte (ggml-quants.c, quantize_row_q8_0_ref and
// quantize_row_q4_0_ref; MIT licence; written here from the format, tested against the `gguf`
// package):
//
//   q8_0, 34 bytes: d as f16, then 32 bytes.  d = max |x| / 127, q = x (1 / d) to the nearest, ties
//         away from 0, x' = d q
//   q4_0, 18 bytes: d as f16, then 32 codes of 4 bits.  d = m / -8, where m is the element of the
//         largest |x|, the first of these; q = fma(x, 1 / d, 8.5) without its fraction, at most 15;
//         x' = d (q - 8). The fma is what compilers make of ggml's own lines
//
// Codes are made with d in float, and d is rounded to f16 to be stored. A block whose 1 / d is no
// float any more (ggml leaves it undefined) is one of zeros.
#ifndef KVCACHE_SRC_TENSOR_CODECS_GGML_H_
#define KVCACHE_SRC_TENSOR_CODECS_GGML_H_

#include <cstddef>
#include <cstdint>

namespace kvcache::internal {

inline constexpr std::int64_t kQ8_0Bytes = 34;
inline constexpr std::int64_t kQ4_0Bytes = 18;

// False, with nothing written, where an element is not finite or d does not fit f16.
// REQUIRES: a multiple of 32 elements.
bool encode_q8_0(const float* row, std::int64_t elements, std::byte* blocks) noexcept;
bool encode_q4_0(const float* row, std::int64_t elements, std::byte* blocks) noexcept;
void decode_q8_0(const std::byte* blocks, std::int64_t elements, float* row) noexcept;
void decode_q4_0(const std::byte* blocks, std::int64_t elements, float* row) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_GGML_H_
