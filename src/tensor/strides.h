// What may be asked of a TensorView: its shape in words, checks at the public door, the axes of a
// layout, and the bytes behind an index.
#ifndef KVCACHE_SRC_TENSOR_STRIDES_H_
#define KVCACHE_SRC_TENSOR_STRIDES_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"

namespace kvcache::internal {

// --- The order of axes in HND and NHD. ---

// Which axis of a rank-4 K or V tensor is which.
struct KvAxes {
  int batch, head, seq, dim;
};

constexpr KvAxes axes_of(Layout layout) noexcept {
  return layout == Layout::kHND ? KvAxes{0, 1, 2, 3} : KvAxes{0, 2, 1, 3};
}

// Extents, or strides in elements, by name.
struct KvExtents {
  std::int64_t batch = 0, heads = 0, length = 0, dim = 0;

  friend constexpr bool operator==(const KvExtents&, const KvExtents&) = default;
};

// REQUIRES: view.rank == 4.
KvExtents kv_extents(const TensorView& view, Layout layout) noexcept;
KvExtents kv_strides(const TensorView& view, Layout layout) noexcept;

// A rank-4 view in the axis order of `layout`; strides in elements.
MutableTensorView kv_tensor(void* data, DType dtype, Layout layout, const KvExtents& extents,
                            const KvExtents& strides) noexcept;
TensorView kv_tensor(const void* data, DType dtype, Layout layout, const KvExtents& extents,
                     const KvExtents& strides) noexcept;

// --- Addresses. ---

// The element at (i0, i1, i2, i3); axes past the rank are ignored. Not bounds-checked.
const std::byte* element_at(const TensorView& view, std::int64_t i0, std::int64_t i1 = 0,
                            std::int64_t i2 = 0, std::int64_t i3 = 0) noexcept;
std::byte* element_at(const MutableTensorView& view, std::int64_t i0, std::int64_t i1 = 0,
                      std::int64_t i2 = 0, std::int64_t i3 = 0) noexcept;

// Dense and row-major (axes of extent 1 may have any stride; an empty tensor is contiguous).
bool is_contiguous(const TensorView& view) noexcept;

// --- Words. ---

// "[2, 8, 1, 64] f32"; "none" for an undefined view.
std::string describe(const TensorView& view);
// "cuda:0".
std::string describe(const Device& device);
// "[2, 8, *, 64]", kAnyExtent printed as a star; "[]" for a scalar.
std::string describe_shape(const std::int64_t* shape, int rank);

// --- Checks. Errors: kInvalidArgument "name: found X, expected Y", if not said otherwise. All may
// throw bad_alloc while they build a message: call them inside at_door. ---

inline constexpr std::int64_t kAnyExtent = -1;

// A usable tensor on the CPU: rank 0 .. 4, a known dtype, no negative extent, a number of bytes
// that fits int64, data unless empty. Errors: also kUnavailable for another device. To be called
// first: the other checks and copies rely on it.
Status expect_tensor(const char* name, const TensorView& view);

Status expect_rank(const char* name, const TensorView& view, int rank);
Status expect_dtype_floating(const char* name, const TensorView& view);
Status expect_dtype(const char* name, const TensorView& view, DType dtype);

// Rank and extents; kAnyExtent matches every extent.
Status expect_shape(const char* name, const TensorView& view,
                    std::initializer_list<std::int64_t> shape);
Status expect_shape(const char* name, const TensorView& view, const std::int64_t* shape, int rank);

// A tensor of K or V as the caches take it: usable, floating, rank 4 and of these extents in
// `layout` (kAnyExtent allowed in each).
Status expect_kv(const char* name, const TensorView& view, Layout layout, const KvExtents& extents);

// The values of an index tensor of rank 0, 1 or 2, kI32 or kI64, any strides, in row-major order.
// Their range is the caller's to check.
Result<std::vector<std::int64_t>> read_indices(const char* name, const TensorView& view);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_TENSOR_STRIDES_H_
