// Where the codes of one row of one head lie, and what the codecs share. Codes are packed in the
// order of elements; 4 bits by groups of 32 elements (the last may be of 16): byte i of a group of
// n holds element i in its low half and element i + n / 2 in its high half, as ggml's q4_0 does. So
// 16 bytes unpack, by an and and a shift, to two runs of 16 elements.
#ifndef KVCACHE_SRC_TENSOR_CODECS_CODED_ROW_H_
#define KVCACHE_SRC_TENSOR_CODECS_CODED_ROW_H_

#include <cstddef>
#include <cstdint>

namespace kvcache::internal {

// Scale `g` lies at scales + g * scale_stride, an f16; zero `g` at zeros + g * scale_stride / 2. No
// alignment. Forms without scales or zeros ignore them. `Byte` is std::byte, or const to read.
template <typename Byte>
struct CodedRowOf {
  Byte* codes = nullptr;
  Byte* scales = nullptr;
  Byte* zeros = nullptr;
  std::int64_t scale_stride = 2;  // bytes
};
using CodedRow = CodedRowOf<std::byte>;
using ConstCodedRow = CodedRowOf<const std::byte>;

// Coded rows have at most so many elements: their scratch is on the stack.
inline constexpr std::int64_t kMaxCodedElements = 4096;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_CODECS_CODED_ROW_H_
