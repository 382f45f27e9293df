#include "cache/contiguous/layer.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"
#include "base/memory_kinds.h"
#include "base/parallel.h"
#include "cache/contiguous/copy.h"
#include "tensor/codecs/coded_block.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

std::size_t to_size(std::int64_t bytes) noexcept { return static_cast<std::size_t>(bytes); }

// A smaller wish between `needed` and `wish`; `needed` in the end.
std::int64_t halfway(std::int64_t needed, std::int64_t wish) noexcept {
  return needed + (wish - needed) / 2;
}

// Whether a growing layer may take this much address space; what it cannot do without may be all
// that is left, a wish only half of it.
bool fits(const ContiguousGeometry& geometry, bool needed, const Placement& placement) noexcept {
  return geometry.region_bytes <= (needed ? placement.address_bytes : placement.address_bytes / 2);
}

// Finds the largest capacity between `needed` and `wish` that `attempt(geometry)` grants.
template <typename Attempt>
Status largest_granted(const LayerShape& shape, std::int64_t needed, std::int64_t wish,
                       const Placement& placement, Attempt&& attempt) {
  for (std::int64_t capacity = std::max(needed, wish);; capacity = halfway(needed, capacity)) {
    ContiguousGeometry geometry;
    const bool last = capacity == needed;
    if (growing_geometry(shape, capacity, &geometry) && fits(geometry, last, placement)) {
      const Status status = attempt(geometry);
      if (status.ok() || last) return status;
    } else if (last) {
      return at_door([needed]() -> Status {
        return refusal(StatusCode::kOutOfMemory, "length", std::to_string(needed) + " tokens",
                       "rows of all layers within 1 TiB of address space");
      });
    }
  }
}

// One part of a layer, K or V, as the target of a copy.
RowCopy copy_of(const TensorView& source, Layout layout, const ContiguousLayer::Slice& slice,
                std::byte* base, DType dtype, const ByteStrides& strides) noexcept {
  const KvAxes axes = axes_of(layout);
  RowCopy copy;
  copy.src_dtype = source.dtype;
  copy.dst_dtype = dtype;
  for (int axis = 0; axis < 4; ++axis) {
    copy.shape[axis] = source.shape[axis];
    copy.src_strides[axis] = source.strides[axis] * size_of(source.dtype);
  }
  copy.shape[axes.batch] = slice.num_batch;
  copy.shape[axes.seq] = slice.count;
  copy.src = static_cast<const std::byte*>(source.data) +
             slice.batch * copy.src_strides[axes.batch] + slice.first * copy.src_strides[axes.seq];
  copy.dst_strides[axes.batch] = strides.batch;
  copy.dst_strides[axes.head] = strides.head;
  copy.dst_strides[axes.seq] = strides.token;
  copy.dst_strides[axes.dim] = size_of(dtype);
  copy.dst = base + slice.batch * strides.batch + slice.row * strides.token;
  return copy;
}

KvExtents in_elements(const ByteStrides& strides, DType dtype) noexcept {
  const std::int64_t size = size_of(dtype);
  return {strides.batch / size, strides.head / size, strides.token / size, 1};
}

}  // namespace

KeyValueView ContiguousLayer::rows() const noexcept {
  if (!populated_) return {};
  const LayerShape& s = geometry_.shape;
  const auto rows_of = [&](std::int32_t buffer) {
    const BufferSpec& spec = s.spec.buffers[buffer];
    if (spec.format.is_coded()) return TensorView();
    const DType dtype = spec.format.dtype;
    const void* data = mapping_ ? at(geometry_.strips[buffer].offset) : nullptr;
    return kv_tensor(data, dtype, s.layout, {s.batch, spec.heads, length_, spec.dim},
                     in_elements(geometry_.strides(buffer), dtype));
  };
  return {rows_of(0), rows_of(1)};
}

RowsView ContiguousLayer::rows_view(std::int32_t buffer) const noexcept {
  RowsView view;
  view.format = geometry_.shape.spec.buffers[buffer].format;
  view.data = mapping_ ? mapping_->region.data : nullptr;
  view.offset = geometry_.strips[buffer].offset;
  const ByteStrides strides = geometry_.strides(buffer);
  view.page_stride = strides.batch;
  view.head_stride = strides.head;
  view.token_stride = strides.token;
  const BufferSpec& spec = geometry_.shape.spec.buffers[buffer];
  if (const std::int32_t s = geometry_.scales[buffer]; s >= 0) {
    const StripGeometry& strip = geometry_.strips[s];
    view.scale_offset = strip.offset;
    view.scale_page_stride = strip.batch_stride;
    view.scale_head_stride = spec.format.num_scales(spec.dim) * strip.row_stride;
    view.scale_group_stride = strip.row_stride;
  }
  if (const std::int32_t s = geometry_.zeros[buffer]; s >= 0) {
    view.zero_offset = geometry_.strips[s].offset;
  }
  return view;
}

void ContiguousLayer::decode(std::int32_t buffer, const MutableTensorView& rows,
                             const ExecContext& context) const noexcept {
  const RowsView view = rows_view(buffer);
  for (std::int64_t b = 0; b < geometry_.shape.batch; ++b) {
    CodedBlock block = coded_block(rows, geometry_.shape.layout, view.format, b);
    set_codes(view, b, 0, &block);
    decode_block_on(context, block);
  }
}

Status ContiguousLayer::populate(const LayerShape& shape, std::int64_t length,
                                 const Placement& placement) {
  if (mapping_ && geometry_.shape == shape) {
    std::int64_t copied = 0;  // none: there are no rows
    KVC_RETURN_IF_ERROR(make_room(length, placement, &copied));
  } else {
    // The layer holds no rows, and what reset() kept may be what the new rows need.
    *this = ContiguousLayer();
    KVC_RETURN_IF_ERROR(allocate(shape, length, placement));
  }
  populated_ = true;
  return {};
}

// Takes new memory into an empty layer without any.
Status ContiguousLayer::allocate(const LayerShape& shape, std::int64_t length,
                                 const Placement& placement) {
  auto mapping = std::make_shared<Mapping>();
  ContiguousGeometry geometry;
  const auto reserve = [&](const ContiguousGeometry& wanted) -> Status {
    Result<Region> region = placement.memory->reserve(wanted.region_bytes);
    if (!region.ok()) return region.status();
    mapping->memory = placement.memory;
    mapping->region = *region;
    geometry = wanted;
    return {};
  };
  if (placement.fixed_capacity > 0) {
    ContiguousGeometry wanted;
    if (!fixed_geometry(shape, placement.fixed_capacity, &wanted)) return out_of_memory();
    KVC_RETURN_IF_ERROR(reserve(wanted));
  } else {
    KVC_RETURN_IF_ERROR(largest_granted(shape, std::max<std::int64_t>(length, 1),
                                        placement.reserve_tokens, placement, reserve));
  }
  const std::int64_t committed = geometry.committed_bytes(length);
  if (committed > 0) KVC_RETURN_IF_ERROR(mapping->memory->commit(mapping->region, committed));
  mapping->committed = committed;
  mapping_ = std::move(mapping);
  geometry_ = geometry;
  committed_length_ = length;
  ready_length_ = geometry_.covered_length(length);
  touched_ = 0;
  return {};
}

Status ContiguousLayer::make_room(std::int64_t length, const Placement& placement,
                                  std::int64_t* copied) {
  if (has_room(length)) return {};
  if (!mapping_) {
    const LayerShape shape = geometry_.shape;
    return allocate(shape, length, placement);
  }
  ContiguousGeometry geometry;  // of exactly this length: checks the size before it is computed
  if (!growing_geometry(geometry_.shape, length, &geometry)) return out_of_memory();
  const std::int64_t more =
      std::max<std::int64_t>(geometry.committed_bytes(length) - mapping_->committed, 0);
  std::shared_ptr<Mapping> grown;
  if (length > geometry_.capacity) grown = std::make_shared<Mapping>();
  // Committing is asked first, of the old region; growth carries the account over. The other way
  // round, a refusal would come after the rows had moved away from the caller's views.
  if (more > 0) KVC_RETURN_IF_ERROR(mapping_->memory->commit(mapping_->region, more));
  mapping_->committed += more;
  if (grown) {
    const Status status = grow(length, placement, grown, copied);
    if (!status.ok()) {
      mapping_->committed -= more;
      if (more > 0) mapping_->memory->decommit(mapping_->region, more, 0, 0);
      return status;
    }
  }
  committed_length_ = std::max(committed_length_, length);
  ready_length_ = geometry_.covered_length(committed_length_);
  return {};
}

// Moves the rows to a larger reservation, which `grown` will hold.
Status ContiguousLayer::grow(std::int64_t length, const Placement& placement,
                             std::shared_ptr<Mapping> grown, std::int64_t* copied) {
  const std::int64_t used = length_ * geometry_.most_token_bytes();
  RowSpan from;
  from.row_stride = geometry_.strips[0].row_stride;
  from.num_rows = geometry_.region_bytes / from.row_stride;
  from.used_bytes = used;
  from.last_rows = from.num_rows - geometry_.code_rows();
  from.last_used_bytes = length_ * geometry_.most_scale_bytes();
  const auto attempt = [&](const ContiguousGeometry& wanted) -> Status {
    RowSpan to = from;
    to.row_stride = wanted.strips[0].row_stride;
    std::int64_t bytes = 0;
    Result<Region> region =
        mapping_->memory->grow(mapping_->region, from, to, wanted.region_bytes, &bytes);
    if (!region.ok()) return region.status();
    *copied += bytes;
    grown->memory = mapping_->memory;
    grown->region = *region;
    grown->committed = mapping_->committed;
    mapping_->committed = 0;  // the account has moved with the rows
    geometry_ = wanted;
    return {};
  };
  KVC_RETURN_IF_ERROR(
      largest_granted(geometry_.shape, length, 2 * geometry_.capacity, placement, attempt));
  mapping_ = std::move(grown);
  // Rows move in whole pages: up to one page behind the last row may have come along.
  touched_ = std::min(touched_, ceil_div(used + page_bytes(), geometry_.least_token_bytes()));
  return {};
}

void ContiguousLayer::write(const TensorView& key, const TensorView& value, const Slice& slice,
                            const ExecContext& context) noexcept {
  const LayerShape& s = geometry_.shape;
  const TensorView* given[] = {&key, &value};
  for (std::int32_t b = 0; b < s.spec.num_buffers; ++b) {
    const RowFormat& format = s.spec.buffers[b].format;
    if (!format.is_coded()) {
      store_rows_on(context, copy_of(*given[b], s.layout, slice, at(geometry_.strips[b].offset),
                                     format.dtype, geometry_.strides(b)));
      continue;
    }
    const RowsView view = rows_view(b);
    for (std::int64_t i = slice.batch; i < slice.batch + slice.num_batch; ++i) {
      CodedBlock block = coded_block(*given[b], s.layout, format, i);
      block.rows = block.row(slice.first, 0);
      block.tokens = slice.count;
      set_codes(view, i, slice.row, &block);
      encode_block_on(context, block);
    }
  }
}

void ContiguousLayer::set_length(std::int64_t length) noexcept {
  length_ = length;
  touched_ = std::max(touched_, length);
}

void ContiguousLayer::zero_rows(std::int64_t end, const ExecContext& context) noexcept {
  const std::int64_t begin = length_;
  const std::int64_t count = std::min(end, touched_) - begin;
  if (count <= 0) return;
  for_each_range(context, geometry_.rows, geometry_.stored_bytes(count),
                 [&](std::int64_t first, std::int64_t last) noexcept {
                   for_each_row(first, last, [&](std::byte* row, std::int64_t bytes) {
                     std::memset(row + begin * bytes, 0, to_size(count * bytes));
                   });
                 });
}

std::int64_t ContiguousLayer::crop(std::int64_t n, const ExecContext& context) noexcept {
  if (n >= length_) return 0;
  const std::int64_t dropped = length_ - n;
  const std::int64_t bytes = geometry_.stored_bytes(n);
  if (n > 0) {
    for_each_range(context, geometry_.rows, bytes,
                   [&](std::int64_t first, std::int64_t last) noexcept {
                     for_each_row(first, last, [&](std::byte* row, std::int64_t token) {
                       std::memmove(row, row + dropped * token, to_size(n * token));
                     });
                   });
  }
  length_ = n;
  first_position_ += dropped;
  return bytes;
}

void ContiguousLayer::copy_row(const ContiguousLayer& from, std::int64_t source,
                               std::int64_t target) noexcept {
  geometry_.for_each_row(target, [&](std::int32_t s, std::int64_t i, std::int64_t offset) {
    std::memcpy(at(offset), from.at(from.geometry_.row_offset(s, source, i)),
                to_size(from.length_ * geometry_.strips[s].token_bytes));
  });
}

std::int64_t ContiguousLayer::copy_batch(const ContiguousLayer& from, const BatchGather& gather,
                                         const ExecContext& context) noexcept {
  set_length(from.length_);
  first_position_ = from.first_position_;
  if (length_ == 0) return 0;
  const std::int64_t per_batch = geometry_.rows_per_batch();
  const std::int64_t bytes = geometry_.stored_bytes(length_);
  for_each_range(context, geometry_.rows, bytes, [&](std::int64_t row, std::int64_t last) noexcept {
    for (; row < last; ++row) {
      copy_row(from, gather.source(row / per_batch) * per_batch + row % per_batch, row);
    }
  });
  return bytes;
}

void ContiguousLayer::reset() noexcept {
  populated_ = false;
  length_ = 0;
  first_position_ = 0;
}

void ContiguousLayer::shrink() noexcept {
  if (!mapping_) return;
  const bool empty = geometry_.growing ? length_ == 0 : !populated_;
  if (empty) {
    mapping_.reset();
    ready_length_ = committed_length_ = touched_ = 0;
    return;
  }
  decommit_behind(length_);
}

void ContiguousLayer::take_back(const Mark& mark) noexcept {
  if (!mark.mapped) {
    mapping_.reset();
    ready_length_ = committed_length_ = touched_ = 0;
  }
  populated_ = mark.populated;
  length_ = mark.length;
  if (mapping_) decommit_behind(mark.committed_length);
}

void ContiguousLayer::decommit_behind(std::int64_t length) noexcept {
  if (!geometry_.growing || committed_length_ <= length) return;
  const auto give_back = [this, length](std::int64_t row_offset, std::int64_t token_bytes) {
    // Whole pages between the rows that stay and the last byte ever written.
    const std::int64_t begin = row_offset + length * token_bytes;
    const std::int64_t end = round_up(row_offset + touched_ * token_bytes, page_bytes());
    const std::int64_t bytes =
        committed_row(committed_length_ * token_bytes) - committed_row(length * token_bytes);
    mapping_->memory->decommit(mapping_->region, bytes, begin,
                               std::max<std::int64_t>(end - begin, 0));
    mapping_->committed -= bytes;
  };
  for (std::int64_t r = 0; r < geometry_.rows; ++r) {
    geometry_.for_each_row(r, [&](std::int32_t s, std::int64_t, std::int64_t offset) {
      give_back(offset, geometry_.strips[s].token_bytes);
    });
  }
  committed_length_ = length;
  ready_length_ = geometry_.covered_length(length);
}

bool ContiguousLayer::owns(const void* pointer) const noexcept {
  if (!mapping_) return false;
  const auto* at = static_cast<const std::byte*>(pointer);
  const std::less<const std::byte*> before;
  return !before(at, mapping_->region.data) &&
         before(at, mapping_->region.data + mapping_->region.bytes);
}

}  // namespace kvcache::internal
