#include "cache/contiguous/slots.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/expect.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

// "[1, 8, *, 64] f32".
std::string describe(const LayerShape& s, bool key) {
  const std::int64_t dim = key ? s.k_dim : s.v_dim;
  std::int64_t shape[4] = {s.batch, s.heads, kAnyExtent, dim};
  if (s.layout == Layout::kNHD) std::swap(shape[1], shape[2]);
  return describe_shape(shape, 4) + " " + name_of(key ? s.k_dtype : s.v_dtype);
}

// Row b of a batch: [1, ...].
TensorView batch_row(TensorView tensor, std::int64_t b) noexcept {
  tensor.data = element_at(tensor, b);
  tensor.shape[0] = 1;
  return tensor;
}

}  // namespace

BatchingSlots::BatchingSlots(std::int64_t num_slots, const BatchingOptions& options)
    : layout_(options.layout),
      max_seq_len_(options.max_seq_len),
      num_layers_(options.num_layers.value_or(0)),
      dtype_(options.dtype),
      slots_(static_cast<std::size_t>(num_slots)),
      marks_(static_cast<std::size_t>(num_slots)),
      layers_(static_cast<std::size_t>(num_slots)) {}

std::int64_t BatchingSlots::active() const noexcept {
  return std::count_if(slots_.begin(), slots_.end(), [](const auto& slot) { return bool(slot); });
}

const LayerShape* BatchingSlots::known_shape(std::int64_t layer) const noexcept {
  if (layer >= static_cast<std::int64_t>(shapes_.size())) return nullptr;
  const auto& shape = shapes_[static_cast<std::size_t>(layer)];
  return shape ? &*shape : nullptr;
}

Status BatchingSlots::check_id(std::int64_t id) const { return expect_index("id", id, size()); }

Status BatchingSlots::check_occupied(std::int64_t id) const {
  KVC_RETURN_IF_ERROR(check_id(id));
  if (find(id) != nullptr) return {};
  return refusal(StatusCode::kNotFound, "id", "slot " + std::to_string(id) + " empty", "a request");
}

Status BatchingSlots::check_layer(std::int64_t layer) const {
  return expect_index("layer", layer, num_layers_ > 0 ? num_layers_ : kMaxLayers);
}

Status BatchingSlots::check_request(const LayeredStorage& request) const {
  constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
  const StorageOptions& options = request.options();
  if (options.layout != layout_) {
    return refusal(kInvalid, "cache", std::string("layout ") + name_of(options.layout),
                   std::string(name_of(layout_)) + " as the batch");
  }
  const std::int64_t num_layers = request.num_layers();
  if (num_layers > 0) {
    std::int64_t seen = static_cast<std::int64_t>(shapes_.size());
    while (seen > 0 && known_shape(seen - 1) == nullptr) --seen;
    if (num_layers_ > 0 ? num_layers != num_layers_ : num_layers < seen) {
      return refusal(kInvalid, "cache", std::to_string(num_layers) + " layers",
                     num_layers_ > 0 ? std::to_string(num_layers_) + " as the batch"
                                     : "at least " + std::to_string(seen) + " as the batch");
    }
  }
  if (options.dtype) {
    const auto agrees = [&](DType dtype) { return dtype == *options.dtype; };
    bool all = !dtype_ || agrees(*dtype_);
    for (const auto& shape : shapes_) {
      all = all && (!shape || (agrees(shape->k_dtype) && agrees(shape->v_dtype)));
    }
    if (!all) {
      return refusal(kInvalid, "cache", std::string("dtype ") + name_of(*options.dtype),
                     "the element types of the batch");
    }
  }
  const auto length_of = [&](std::int64_t layer) {
    const ContiguousLayer* rows = request.find(layer);
    return rows != nullptr ? rows->length() : 0;
  };
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    if (length_of(layer) != length_of(0)) {
      return refusal(
          kInvalid, "cache",
          "length " + std::to_string(length_of(layer)) + " in layer " + std::to_string(layer),
          std::to_string(length_of(0)) + " as in layer 0");
    }
    if (const ContiguousLayer* rows = request.find(layer)) {
      KVC_RETURN_IF_ERROR(check_request_layer(layer, *rows));
    }
  }
  if (max_seq_len_ && num_layers > 0 && length_of(0) > *max_seq_len_) {
    return refusal(StatusCode::kOutOfRange, "cache", "length " + std::to_string(length_of(0)),
                   "at most max_seq_len " + std::to_string(*max_seq_len_));
  }
  return {};
}

Status BatchingSlots::check_request_layer(std::int64_t layer, const ContiguousLayer& rows) const {
  const LayerShape& found = rows.shape();
  LayerShape expected = found;
  expected.batch = 1;
  if (const LayerShape* known = known_shape(layer)) {
    expected = *known;
  } else if (dtype_) {
    expected.k_dtype = expected.v_dtype = *dtype_;
  }
  if (found == expected) return {};
  for (const bool key : {true, false}) {
    const std::string is = describe(found, key);
    const std::string should = describe(expected, key);
    if (is == should) continue;
    return refusal(
        StatusCode::kInvalidArgument, "cache",
        std::string(key ? "keys " : "values ") + is + " in layer " + std::to_string(layer), should);
  }
  return {};
}

Status BatchingSlots::check_rows(std::int64_t layer, const TensorView& key, const TensorView& value,
                                 LayerShape* shape) const {
  const LayerShape* known = known_shape(layer);
  const auto extent = [known](std::int64_t LayerShape::*member) {
    return known != nullptr ? known->*member : kAnyExtent;
  };
  const std::int64_t heads = extent(&LayerShape::heads);
  KVC_RETURN_IF_ERROR(
      expect_kv("key", key, layout_, {size(), heads, kAnyExtent, extent(&LayerShape::k_dim)}));
  const KvExtents k = kv_extents(key, layout_);
  KVC_RETURN_IF_ERROR(
      expect_kv("value", value, layout_, {size(), k.heads, k.length, extent(&LayerShape::v_dim)}));
  const KvExtents v = kv_extents(value, layout_);
  if (k.heads < 1 || k.dim < 1 || v.dim < 1) {
    return refusal(StatusCode::kInvalidArgument, "key",
                   internal::describe(key) + " with value " + internal::describe(value),
                   "heads and head sizes of at least 1");
  }
  for (std::int64_t id = 0; id < size(); ++id) {
    const ContiguousLayer* rows = find(id) != nullptr ? find(id)->find(layer) : nullptr;
    if (rows == nullptr) continue;
    if (rows->owns(key.data) || rows->owns(value.data)) {
      return refusal(StatusCode::kInvalidArgument, rows->owns(key.data) ? "key" : "value",
                     "rows of this layer itself", "memory outside of it");
    }
  }
  *shape = known != nullptr ? *known : LayerShape{1,
                                                  k.heads,
                                                  k.dim,
                                                  v.dim,
                                                  dtype_.value_or(key.dtype),
                                                  dtype_.value_or(value.dtype),
                                                  layout_};
  return {};
}

Status BatchingSlots::check_bounds(std::int64_t layer, std::int64_t count) const {
  for (std::int64_t id = 0; id < size(); ++id) {
    const LayeredStorage* slot = find(id);
    if (slot == nullptr) continue;
    const std::int64_t after = slot->length_after(layer, count, RowTargets());
    const std::int64_t capacity = slot->options().fixed_capacity;
    const char* bound = nullptr;
    std::int64_t most = 0;
    if (max_seq_len_ && after > *max_seq_len_) {
      bound = "max_seq_len";
      most = *max_seq_len_;
    } else if (capacity > 0 && after > capacity) {
      bound = "the capacity of";
      most = capacity;
    }
    if (bound == nullptr) continue;
    const ContiguousLayer* rows = slot->find(layer);
    return refusal(StatusCode::kOutOfRange, "key",
                   std::to_string(count) + " new tokens after a length of " +
                       std::to_string(rows != nullptr ? rows->length() : 0) + " in slot " +
                       std::to_string(id),
                   "at most " + std::string(bound) + " " + std::to_string(most));
  }
  return {};
}

void BatchingSlots::add(std::int64_t id, LayeredStorage* request, LayeredStorage empty) {
  const std::int64_t num_layers = request->num_layers();
  if (num_layers > static_cast<std::int64_t>(shapes_.size())) {
    shapes_.resize(static_cast<std::size_t>(num_layers));
  }
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    auto& shape = shapes_[static_cast<std::size_t>(layer)];
    const ContiguousLayer* rows = request->find(layer);
    if (rows != nullptr) shape = rows->shape();
  }
  if (num_layers_ == 0) num_layers_ = num_layers;
  if (!dtype_) dtype_ = request->options().dtype;
  slots_[static_cast<std::size_t>(id)].emplace(std::move(*request));
  *request = std::move(empty);
}

Status BatchingSlots::append(std::int64_t layer, const LayerShape& shape, const TensorView& key,
                             const TensorView& value, const ExecContext& context) {
  const std::int64_t count = kv_extents(key, layout_).length;
  if (layer >= static_cast<std::int64_t>(shapes_.size())) {
    shapes_.resize(static_cast<std::size_t>(layer) + 1);
  }
  for (std::int64_t id = 0; id < size(); ++id) {
    if (find(id) != nullptr) marks_[static_cast<std::size_t>(id)] = find(id)->mark(layer);
  }
  Status status;
  try {
    for (std::int64_t id = 0; id < size() && status.ok(); ++id) {
      LayeredStorage* slot = find(id);
      if (slot == nullptr) continue;
      const std::int64_t copied = slot->copied_bytes();
      status = slot->make_room(layer, shape, slot->length_after(layer, count, RowTargets()));
      copied_bytes_ += slot->copied_bytes() - copied;
    }
  } catch (...) {
    take_back(layer);
    throw;
  }
  if (!status.ok()) {
    take_back(layer);
    return status;
  }
  for (std::int64_t id = 0; id < size(); ++id) {
    LayeredStorage* slot = find(id);
    if (slot != nullptr) slot->append(layer, batch_row(key, id), batch_row(value, id), context);
  }
  return {};
}

void BatchingSlots::keep(std::int64_t layer, const LayerShape& shape) noexcept {
  shapes_[static_cast<std::size_t>(layer)] = shape;
}

void BatchingSlots::take_back(std::int64_t layer) noexcept {
  for (std::int64_t id = 0; id < size(); ++id) {
    LayeredStorage* slot = find(id);
    if (slot != nullptr) slot->take_back(layer, marks_[static_cast<std::size_t>(id)]);
  }
}

std::span<const ContiguousLayer* const> BatchingSlots::layers(std::int64_t layer) noexcept {
  for (std::int64_t id = 0; id < size(); ++id) {
    const LayeredStorage* slot = find(id);
    layers_[static_cast<std::size_t>(id)] = slot != nullptr ? slot->find(layer) : nullptr;
  }
  return layers_;
}

}  // namespace kvcache::internal
