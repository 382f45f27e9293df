#include "cache/contiguous/dense.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"
#include "base/memory_kinds.h"
#include "base/parallel.h"
#include "cache/contiguous/copy.h"
#include "kernels/select.h"
#include "tensor/convert.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

constexpr float kUnseen = -std::numeric_limits<float>::infinity();
constexpr std::int64_t kAlignment = 64;

// Where K, V and the mask lie in the memory; bytes.
struct Offsets {
  std::int64_t v = 0, mask = 0, end = 0;
};

// False on overflow.
bool find_offsets(const DenseShape& shape, Offsets* out) noexcept {
  const LayerShape& s = shape.layer;
  std::int64_t k = 0, v = 0, mask = 0;
  if (!checked_product(
          {shape.slots, s.heads(), shape.length, s.key().dim, size_of(s.key().format.dtype)}, &k) ||
      !checked_product(
          {shape.slots, s.heads(), shape.length, s.value().dim, size_of(s.value().format.dtype)},
          &v) ||
      !checked_product({shape.slots, shape.new_tokens, shape.length, size_of(DType::kF32)},
                       &mask) ||
      !checked_add(k, kAlignment - 1, &k) || !checked_add(v, kAlignment - 1, &v)) {
    return false;
  }
  out->v = round_down(k, kAlignment);
  return checked_add(out->v, round_down(v, kAlignment), &out->mask) &&
         checked_add(out->mask, mask, &out->end);
}

MutableTensorView dense_tensor(std::byte* data, DType dtype, Layout layout,
                               const KvExtents& extents) noexcept {
  const bool by_head = layout == Layout::kHND;
  const std::int64_t token = by_head ? extents.dim : extents.heads * extents.dim;
  const std::int64_t head = by_head ? extents.length * extents.dim : extents.dim;
  return kv_tensor(static_cast<void*>(data), dtype, layout, extents,
                   {extents.heads * extents.length * extents.dim, head, token, 1});
}

// Zeros, then the rows of one slot. `source` is undefined or [1, H, length, D] in the layout.
void fill_slot(const TensorView& source, const MutableTensorView& dense, Layout layout,
               std::int64_t slot) noexcept {
  const KvAxes axes = axes_of(layout);
  MutableTensorView rows = dense;  // of this slot
  rows.shape[axes.batch] = 1;
  rows.data = element_at(dense, slot);
  const std::int64_t length = source.defined() ? source.shape[axes.seq] : 0;
  const std::int64_t zeros = dense.shape[axes.seq] - length;
  // What lies together: the tokens of one head, or of all heads.
  const std::int64_t runs = layout == Layout::kHND ? dense.shape[axes.head] : 1;
  const std::int64_t bytes = zeros * dense.strides[axes.seq] * size_of(dense.dtype);
  for (std::int64_t run = 0; run < runs; ++run) {
    std::memset(element_at(rows, 0, run), 0, static_cast<std::size_t>(bytes));
  }
  if (length == 0) return;
  rows.data = static_cast<std::byte*>(rows.data) + bytes;
  rows.shape[axes.seq] = length;
  selected_rows().load(row_copy(source, rows));
}

// [slots, 1, L, S_max]: bottom-right causal in the right-aligned frame, plus `added`.
void fill_mask(std::span<const ContiguousLayer* const> slots, const DenseShape& shape,
               const TensorView& added, float* to) noexcept {
  // Strides of `added` over slot, query and key; 0 where it is broadcast.
  std::int64_t strides[4] = {0, 0, 0, 0};
  for (int axis = 0; axis < added.rank; ++axis) {
    if (added.shape[axis] > 1) strides[4 - added.rank + axis] = added.strides[axis];
  }
  const auto* terms = static_cast<const float*>(added.data);
  for (std::int64_t s = 0; s < shape.slots; ++s) {
    const ContiguousLayer* slot = slots[static_cast<std::size_t>(s)];
    const std::int64_t begin = shape.length - (slot != nullptr ? slot->length() : 0);
    for (std::int64_t i = 0; i < shape.new_tokens; ++i) {
      const std::int64_t end = slot != nullptr ? i + shape.length - shape.new_tokens + 1 : 0;
      for (std::int64_t j = 0; j < shape.length; ++j) {
        float value = kUnseen;
        if (j >= begin && j < end) {
          value = terms != nullptr ? terms[s * strides[0] + i * strides[2] + j * strides[3]] : 0;
        }
        *to++ = value;
      }
    }
  }
}

}  // namespace

Status check_fetch_mask(const Mask& mask, const DenseShape& shape) {
  if (mask.kind == MaskKind::kNone || mask.kind == MaskKind::kCausal) return {};
  if (mask.kind != MaskKind::kAdditive) {
    return refusal("mask", "kind " + std::to_string(static_cast<int>(mask.kind)),
                   "none, causal or additive");
  }
  KVC_RETURN_IF_ERROR(expect_tensor("mask", mask.tensor));
  KVC_RETURN_IF_ERROR(expect_dtype("mask", mask.tensor, DType::kF32));
  const std::int64_t full[4] = {shape.slots, 1, shape.new_tokens, shape.length};
  for (int axis = 0; axis < mask.tensor.rank; ++axis) {
    const std::int64_t extent = mask.tensor.shape[axis];
    if (extent == 1 || extent == full[4 - mask.tensor.rank + axis]) continue;
    return refusal("mask", describe(mask.tensor),
                   "one that broadcasts to " + describe_shape(full, 4));
  }
  return {};
}

Status BatchingDense::make_room(const DenseShape& shape) {
  Offsets offsets;
  if (!find_offsets(shape, &offsets) ||
      offsets.end > std::numeric_limits<std::int64_t>::max() / 4) {
    return out_of_memory();
  }
  if (offsets.end <= committed_bytes()) return {};
  const std::int64_t needed = round_up(offsets.end, page_bytes());
  if (mapping_ && needed <= mapping_->region.bytes) {
    const std::int64_t more = needed - mapping_->committed;
    KVC_RETURN_IF_ERROR(mapping_->memory->commit(mapping_->region, more));
    mapping_->committed = needed;
    return {};
  }
  auto mapping = std::make_shared<Mapping>();
  // Twice the address space: a batch grows by a token at a time.
  KVC_ASSIGN_OR_RETURN(mapping->region, memory_->reserve(2 * needed));
  mapping->memory = memory_;
  KVC_RETURN_IF_ERROR(memory_->commit(mapping->region, needed));
  mapping->committed = needed;
  mapping_ = std::move(mapping);
  return {};
}

BatchFetch BatchingDense::fill(std::span<const ContiguousLayer* const> slots,
                               const DenseShape& shape, const Mask& mask,
                               const ExecContext& context, std::int64_t* copied) noexcept {
  const LayerShape& s = shape.layer;
  Offsets offsets;
  (void)find_offsets(shape, &offsets);  // as in make_room
  std::byte* base = mapping_ ? mapping_->region.data : nullptr;
  const auto at = [&](std::int64_t offset) { return shape.length > 0 ? base + offset : nullptr; };
  const MutableTensorView key = dense_tensor(at(0), s.key().format.dtype, s.layout,
                                             {shape.slots, s.heads(), shape.length, s.key().dim});
  const MutableTensorView value =
      dense_tensor(at(offsets.v), s.value().format.dtype, s.layout,
                   {shape.slots, s.heads(), shape.length, s.value().dim});
  auto* seen = reinterpret_cast<float*>(at(offsets.mask));
  if (shape.length > 0) {
    for_each_range(context, shape.slots, offsets.mask,
                   [&](std::int64_t slot, std::int64_t end) noexcept {
                     for (; slot < end; ++slot) {
                       const ContiguousLayer* rows = slots[static_cast<std::size_t>(slot)];
                       const KeyValueView source = rows != nullptr ? rows->rows() : KeyValueView{};
                       fill_slot(source.key, key, s.layout, slot);
                       fill_slot(source.value, value, s.layout, slot);
                     }
                   });
    fill_mask(slots, shape, mask.kind == MaskKind::kAdditive ? mask.tensor : TensorView(), seen);
  }
  for (const ContiguousLayer* slot : slots) {
    if (slot != nullptr) *copied += slot->stored_bytes();
  }
  BatchFetch fetch;
  fetch.key = key;
  fetch.value = value;
  fetch.length = shape.length;
  fetch.mask = TensorView(seen, DType::kF32, {shape.slots, 1, shape.new_tokens, shape.length});
  fetch.storage = mapping_;
  return fetch;
}

bool BatchingDense::owns(const void* pointer) const noexcept {
  if (!mapping_) return false;
  const auto* at = static_cast<const std::byte*>(pointer);
  const std::less<const std::byte*> before;
  return !before(at, mapping_->region.data) &&
         before(at, mapping_->region.data + mapping_->region.bytes);
}

}  // namespace kvcache::internal
