#include "cache/contiguous/history.h"

#include <utility>

#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

KeyValueView first_rows(KeyValueView rows, Layout layout, std::int64_t length) noexcept {
  const int seq = axes_of(layout).seq;
  rows.key.shape[seq] = rows.value.shape[seq] = length;
  return rows;
}

}  // namespace

KeyValueView History::rows(const Layer& layer) const noexcept {
  const LayerShape& s = options_.shape;
  if (layer.buffer != nullptr) return first_rows(layer.buffer->all, s.layout, layer.length);
  const auto empty = [&](DType dtype, std::int64_t dim) {
    return kv_tensor(static_cast<const void*>(nullptr), dtype, s.layout, {s.batch, s.heads, 0, dim},
                     {s.heads * dim, dim, dim, 1});
  };
  return {empty(s.k_dtype, s.k_dim), empty(s.v_dtype, s.v_dim)};
}

bool History::take_over() noexcept {
  if (live_.load(std::memory_order_acquire) != 0) return false;
  std::int64_t reserved = 0;
  for (auto& buffers : buffers_) {
    if (buffers.empty()) continue;
    buffers.resize(1);
    buffers.front()->claimed = 0;
    reserved += buffers.front()->rows.committed_bytes();
  }
  reserved_.store(reserved, std::memory_order_relaxed);
  copied_.store(0, std::memory_order_relaxed);
  return true;
}

Result<std::unique_ptr<History::Buffer>> History::make_buffer() const {
  auto buffer = std::make_unique<Buffer>();
  Placement placement;
  placement.memory = options_.memory;
  placement.fixed_capacity = options_.max_seq_len;
  KVC_RETURN_IF_ERROR(buffer->rows.populate(options_.shape, options_.max_seq_len, placement));
  buffer->rows.set_length(options_.max_seq_len);
  buffer->all = buffer->rows.rows();
  return buffer;
}

Result<History::Appended> History::append(std::int64_t layer_idx, const Layer& from,
                                          const TensorView& k, const TensorView& v,
                                          const ExecContext& context) {
  const LayerShape& s = options_.shape;
  auto& buffers = buffers_[static_cast<std::size_t>(layer_idx)];
  Buffer* target = from.buffer;
  // An empty layer may begin in memory that take_over() left.
  if (target == nullptr && !buffers.empty()) target = buffers.front().get();
  Appended appended;
  appended.layer_idx = layer_idx;
  appended.branched = target == nullptr || target->claimed != from.length;
  if (appended.branched) {
    buffers.reserve(buffers.size() + 1);
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Buffer> fresh, make_buffer());
    target = fresh.get();
    if (from.length > 0) {
      const KeyValueView old = rows(from);
      target->rows.write(old.key, old.value, {0, s.batch, 0, from.length, 0}, context);
      appended.copied = s.batch * s.heads * from.length *
                        (s.k_dim * size_of(s.k_dtype) + s.v_dim * size_of(s.v_dtype));
    }
    reserved_.fetch_add(target->rows.committed_bytes(), std::memory_order_relaxed);
    copied_.fetch_add(appended.copied, std::memory_order_relaxed);
    buffers.push_back(std::move(fresh));
  }
  const std::int64_t count = kv_extents(k, s.layout).length;
  target->rows.write(k, v, {0, s.batch, 0, count, from.length}, context);
  appended.before = target->claimed;
  appended.layer = {target, from.length + count};
  target->claimed = appended.layer.length;
  return appended;
}

void History::take_back(const Appended& appended) noexcept {
  auto& buffers = buffers_[static_cast<std::size_t>(appended.layer_idx)];
  Buffer* buffer = appended.layer.buffer;
  if (!appended.branched) {
    buffer->claimed = appended.before;
    return;
  }
  reserved_.fetch_sub(buffer->rows.committed_bytes(), std::memory_order_relaxed);
  copied_.fetch_sub(appended.copied, std::memory_order_relaxed);
  buffers.pop_back();
}

}  // namespace kvcache::internal
