#include "cache/contiguous/storage.h"

#include <algorithm>
#include <limits>
#include <string>

#include "base/checked_math.h"
#include "base/door.h"
#include "base/expect.h"
#include "cache/contiguous/copy.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

// Address space that one cache reserves at most (ThreadSanitizer maps no more at once).
constexpr std::int64_t kMaxAddressBytes = std::int64_t{1} << 40;

// Tokens [first, end) that go to consecutive rows.
std::int64_t run_end(const std::int64_t* rows, std::int64_t first, std::int64_t count) noexcept {
  std::int64_t end = first + 1;
  while (end < count && rows[end] == rows[end - 1] + 1) ++end;
  return end;
}

}  // namespace

const ContiguousLayer* LayeredStorage::find(std::int64_t layer) const noexcept {
  if (layer >= num_layers()) return nullptr;
  const ContiguousLayer& found = layers_[static_cast<std::size_t>(layer)];
  return found.populated() ? &found : nullptr;
}

std::int64_t LayeredStorage::length_after(std::int64_t layer, std::int64_t count,
                                          const RowTargets& targets) const noexcept {
  const ContiguousLayer* found = find(layer);
  const std::int64_t length = found != nullptr ? found->length() : 0;
  std::int64_t after = 0;
  const bool fits = targets.kind == RowTargets::kAppend ? checked_add(length, count, &after)
                                                        : checked_add(targets.max_row, 1, &after);
  return fits ? std::max(length, after) : std::numeric_limits<std::int64_t>::max();
}

Placement LayeredStorage::placement(std::int64_t address_in_use) const noexcept {
  Placement result;
  result.memory = options_.memory;
  result.fixed_capacity = options_.fixed_capacity;
  result.reserve_tokens = options_.reserve_tokens;
  result.address_bytes = std::max<std::int64_t>(kMaxAddressBytes - address_in_use, 0);
  return result;
}

std::int64_t LayeredStorage::address_in_use() const noexcept {
  std::int64_t bytes = 0;
  for (const ContiguousLayer& layer : layers_) bytes += layer.address_bytes();
  return bytes;
}

LayerShape LayeredStorage::shape_of(const TensorView& key, const TensorView& value) const noexcept {
  const KvExtents k = kv_extents(key, options_.layout);
  RowFormat keys = options_.keys, values = options_.values;
  keys.dtype = options_.dtype.value_or(key.dtype);
  values.dtype = options_.dtype.value_or(value.dtype);
  return {k.batch,
          LayerSpec::kv(k.heads, k.dim, kv_extents(value, options_.layout).dim, keys, values),
          options_.layout};
}

Status LayeredStorage::check_codes(const TensorView& key, const TensorView& value,
                                   const ExecContext& context) const {
  const auto check = [&](const char* name, const TensorView& rows,
                         const RowFormat& form) -> Status {
    if (!form.is_coded()) return {};
    for (std::int64_t b = 0; b < kv_extents(rows, options_.layout).batch; ++b) {
      const std::int64_t token =
          first_refused_on(context, coded_block(rows, options_.layout, form, b));
      if (token < 0) continue;
      return refusal(std::string(name) + ", batch row " + std::to_string(b) + ", token " +
                         std::to_string(token),
                     "elements that are not finite, or too large for a scale of 16 bits",
                     std::string("what ") + name_of(form.kind) + " can store");
    }
    return {};
  };
  KVC_RETURN_IF_ERROR(check("key", key, options_.keys));
  return check("value", value, options_.values);
}

Status LayeredStorage::update(std::int64_t layer, const TensorView& key, const TensorView& value,
                              const RowTargets& targets, const ExecContext& context) {
  const std::int64_t length = length_after(layer, kv_extents(key, options_.layout).length, targets);
  KVC_RETURN_IF_ERROR(make_room(layer, shape_of(key, value), length));
  ContiguousLayer& target = layers_[static_cast<std::size_t>(layer)];
  write(&target, key, value, targets, context);
  target.set_length(length);
  return {};
}

Status LayeredStorage::make_room(std::int64_t layer, const LayerShape& shape, std::int64_t length) {
  if (find(layer) != nullptr) {
    ContiguousLayer& target = layers_[static_cast<std::size_t>(layer)];
    if (target.has_room(length)) return {};
    const std::int64_t others = address_in_use() - target.address_bytes();
    return target.make_room(length, placement(others), &copied_bytes_);
  }
  // Make room in the list first: resizing it afterwards cannot fail.
  const std::size_t slots = std::max(layers_.size(), static_cast<std::size_t>(layer) + 1);
  if (slots > layers_.capacity()) layers_.reserve(std::max(slots, 2 * layers_.capacity()));
  ContiguousLayer fresh;
  ContiguousLayer& kept = layer < num_layers() ? layers_[static_cast<std::size_t>(layer)] : fresh;
  const std::int64_t others = address_in_use() - kept.address_bytes();
  KVC_RETURN_IF_ERROR(kept.populate(shape, length, placement(others)));
  if (&kept == &fresh) {
    layers_.resize(slots);
    layers_.back() = std::move(fresh);
  }
  return {};
}

void LayeredStorage::append(std::int64_t layer, const TensorView& key, const TensorView& value,
                            const ExecContext& context) noexcept {
  ContiguousLayer& target = layers_[static_cast<std::size_t>(layer)];
  write(&target, key, value, RowTargets(), context);
  target.set_length(target.length() + kv_extents(key, options_.layout).length);
}

ContiguousLayer::Mark LayeredStorage::mark(std::int64_t layer) const noexcept {
  if (layer >= num_layers()) return {};
  return layers_[static_cast<std::size_t>(layer)].mark();
}

void LayeredStorage::take_back(std::int64_t layer, const ContiguousLayer::Mark& mark) noexcept {
  if (layer >= num_layers()) return;
  layers_[static_cast<std::size_t>(layer)].take_back(mark);
}

void LayeredStorage::write(ContiguousLayer* layer, const TensorView& key, const TensorView& value,
                           const RowTargets& targets, const ExecContext& context) noexcept {
  const KvExtents extents = kv_extents(key, options_.layout);
  const std::int64_t count = extents.length;
  for (const BufferSpec& buffer : layer->shape().spec.used()) {
    if (buffer.format.is_coded()) rows_encoded_ += extents.batch * count;
  }
  if (targets.kind == RowTargets::kAppend) {
    layer->write(key, value, {0, extents.batch, 0, count, layer->length()}, context);
    return;
  }
  layer->zero_rows(targets.max_row + 1, context);
  const bool shared = targets.kind == RowTargets::kShared;
  const std::int64_t batch_step = shared ? extents.batch : 1;
  for (std::int64_t b = 0; b < extents.batch; b += batch_step) {
    const std::int64_t* rows = shared ? targets.rows : targets.rows + b * count;
    // In order, so that the last of duplicates wins.
    for (std::int64_t first = 0; first < count;) {
      const std::int64_t end = run_end(rows, first, count);
      layer->write(key, value, {b, batch_step, first, end - first, rows[first]}, context);
      first = end;
    }
  }
}

// New layers with room for the gathered rows, unpopulated where ours are.
Result<std::vector<ContiguousLayer>> LayeredStorage::prepare(const BatchGather& gather) const {
  std::vector<ContiguousLayer> fresh(layers_.size());
  std::int64_t address = 0;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const ContiguousLayer& layer = layers_[i];
    if (!layer.populated()) continue;
    LayerShape shape = layer.shape();
    if (gather.indices != nullptr) {
      shape.batch = gather.count;
    } else if (!checked_mul(shape.batch, gather.repeat, &shape.batch)) {
      return out_of_memory();
    }
    KVC_RETURN_IF_ERROR(fresh[i].populate(shape, layer.length(), placement(address)));
    address += fresh[i].address_bytes();
  }
  return fresh;
}

Status LayeredStorage::gather_batch(const BatchGather& gather, const ExecContext& context) {
  KVC_ASSIGN_OR_RETURN(std::vector<ContiguousLayer> fresh, prepare(gather));
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (!fresh[i].populated()) continue;
    copied_bytes_ += fresh[i].copy_batch(layers_[i], gather, context);
    layers_[i] = std::move(fresh[i]);
  }
  return {};
}

Result<std::unique_ptr<LayeredStorage>> LayeredStorage::clone(const ExecContext& context) const {
  auto copy = std::make_unique<LayeredStorage>(options_, 0);
  const BatchGather same;  // every row once
  KVC_ASSIGN_OR_RETURN(copy->layers_, prepare(same));
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (layers_[i].populated()) copy->layers_[i].copy_batch(layers_[i], same, context);
  }
  return copy;
}

void LayeredStorage::crop(std::int64_t n, const ExecContext& context) noexcept {
  for (ContiguousLayer& layer : layers_) {
    if (layer.populated()) copied_bytes_ += layer.crop(n, context);
  }
}

void LayeredStorage::truncate(std::int64_t n) noexcept {
  for (ContiguousLayer& layer : layers_) layer.set_length(std::min(layer.length(), n));
}

void LayeredStorage::rewind(std::int64_t n) noexcept {
  for (ContiguousLayer& layer : layers_) {
    if (layer.populated()) layer.set_length(layer.length() - n);
  }
}

void LayeredStorage::reset() noexcept {
  for (ContiguousLayer& layer : layers_) layer.reset();
}

void LayeredStorage::shrink() noexcept {
  for (ContiguousLayer& layer : layers_) layer.shrink();
}

std::int64_t LayeredStorage::shortest_length() const noexcept {
  std::int64_t shortest = std::numeric_limits<std::int64_t>::max();
  bool any = false;
  for (const ContiguousLayer& layer : layers_) {
    if (!layer.populated()) continue;
    any = true;
    shortest = std::min(shortest, layer.length());
  }
  return any ? shortest : 0;
}

std::int64_t LayeredStorage::stored_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const ContiguousLayer& layer : layers_) bytes += layer.stored_bytes();
  return bytes;
}

std::int64_t LayeredStorage::committed_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const ContiguousLayer& layer : layers_) bytes += layer.committed_bytes();
  return bytes;
}

}  // namespace kvcache::internal
