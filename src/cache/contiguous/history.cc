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
    return kv_tensor(static_cast<const void*>(nullptr), dtype, s.layout,
                     {s.batch, s.heads(), 0, dim}, {s.heads() * dim, dim, dim, 1});
  };
  return {empty(s.key().format.dtype, s.key().dim), empty(s.value().format.dtype, s.value().dim)};
}

bool History::take_over(const std::vector<Layer>& layers) noexcept {
  if (live_.load(std::memory_order_acquire) != 0) return false;
  for (const Layer& layer : layers) {
    if (layer.buffer != nullptr) layer.buffer->claimed = 0;
  }
  copied_.store(0, std::memory_order_relaxed);
  return true;
}

Result<std::shared_ptr<History::Buffer>> History::make_buffer() {
  auto buffer = std::make_shared<Buffer>(*this);
  Placement placement;
  placement.memory = options_.memory;
  placement.fixed_capacity = options_.max_seq_len;
  KVC_RETURN_IF_ERROR(buffer->rows.populate(options_.shape, options_.max_seq_len, placement));
  reserved_.fetch_add(buffer->rows.committed_bytes(), std::memory_order_relaxed);
  buffer->rows.set_length(options_.max_seq_len);
  buffer->all = buffer->rows.rows();
  return buffer;
}

Result<History::Appended> History::append(const Layer& from, const TensorView& k,
                                          const TensorView& v, const ExecContext& context) {
  const LayerShape& s = options_.shape;
  Appended appended;
  appended.branched = from.buffer == nullptr || from.buffer->claimed != from.length;
  appended.layer.buffer = from.buffer;
  if (appended.branched) {
    KVC_ASSIGN_OR_RETURN(appended.layer.buffer, make_buffer());
    if (from.length > 0) {
      const KeyValueView old = rows(from);
      appended.layer.buffer->rows.write(old.key, old.value, {0, s.batch, 0, from.length, 0},
                                        context);
      appended.copied = s.batch * from.length * bytes_per_token(s.spec);
    }
    copied_.fetch_add(appended.copied, std::memory_order_relaxed);
  }
  Buffer& target = *appended.layer.buffer;
  const std::int64_t count = kv_extents(k, s.layout).length;
  target.rows.write(k, v, {0, s.batch, 0, count, from.length}, context);
  appended.before = target.claimed;
  appended.layer.length = from.length + count;
  target.claimed = appended.layer.length;
  return appended;
}

void History::take_back(const Appended& appended) noexcept {
  if (appended.branched) {  // the buffer goes with its states
    copied_.fetch_sub(appended.copied, std::memory_order_relaxed);
  } else {
    appended.layer.buffer->claimed = appended.before;
  }
}

}  // namespace kvcache::internal
