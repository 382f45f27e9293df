// Whether tensors share memory, decided exactly: two slices of one buffer whose rows interleave, as
// q, k and v of one projection do, share none.
#ifndef KVCACHE_SRC_TENSOR_OVERLAP_H_
#define KVCACHE_SRC_TENSOR_OVERLAP_H_

#include <cstdint>

#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

// Where a tensor's bytes begin, and how far it is from there to the end of its last one; 0 for a
// tensor without elements.
struct ByteSpan {
  std::uintptr_t begin = 0;
  std::uint64_t bytes = 0;
};

// REQUIRES (of every tensor here): expect_tensor() passed.
ByteSpan byte_span(const TensorView& view) noexcept;

// Differences of unsigned addresses: one that is negative is larger than any span.
inline bool intersect(const ByteSpan& a, const ByteSpan& b) noexcept {
  if (a.bytes == 0 || b.bytes == 0) return false;
  return b.begin - a.begin < a.bytes || a.begin - b.begin < b.bytes;
}

// Whether a byte belongs to an element of `a` and to one of `b`. Strides so contrived that this
// takes too long to tell count as overlapping.
bool overlap(const TensorView& a, const TensorView& b) noexcept;

// Whether a byte belongs to two elements of one tensor, as in a broadcast one.
bool overlaps_itself(const TensorView& view) noexcept;

// Two tensors that are written to: each element of both in memory of its own. Errors:
// kInvalidArgument. May throw bad_alloc while it builds a message.
Status expect_apart(const char* first_name, const TensorView& first, const char* second_name,
                    const TensorView& second);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_OVERLAP_H_
