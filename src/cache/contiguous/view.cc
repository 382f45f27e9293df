#include "cache/contiguous/view.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/expect.h"

namespace kvcache::internal {
namespace {

RowsView rows_of(const TensorView& tensor, Layout layout) noexcept {
  const KvExtents strides = kv_strides(tensor, layout);
  return strided_rows(tensor.data, tensor.dtype, strides.batch, strides.heads, strides.length);
}

// The part with its tables; `k` are the sizes of keys.
Result<OwnedKvView> one_part(const KvPart& rows, const KvExtents& k, std::int64_t v_dim,
                             std::int64_t first_position) {
  struct Tables {
    KvPart part;
    std::vector<std::int32_t> lengths, first_position;
  };
  for (const std::int64_t size : {k.batch, k.heads, k.dim, v_dim, first_position + k.length}) {
    KVC_RETURN_IF_ERROR(check_view_size(size));
  }
  const auto batch = static_cast<std::size_t>(k.batch);
  const auto tables = std::make_shared<Tables>();
  tables->lengths.assign(batch, static_cast<std::int32_t>(k.length));
  tables->first_position.assign(batch, static_cast<std::int32_t>(first_position));
  KvPart& part = tables->part;
  part = rows;
  part.lengths = tables->lengths.data();
  part.first_position = tables->first_position.data();

  KvView view;
  view.num_seqs = static_cast<std::int32_t>(k.batch);
  view.num_kv_heads = static_cast<std::int32_t>(k.heads);
  view.k_head_dim = static_cast<std::int32_t>(k.dim);
  view.v_head_dim = static_cast<std::int32_t>(v_dim);
  view.num_parts = 1;
  view.parts = &part;
  return OwnedKvView(view, tables);
}

}  // namespace

KvPart part_of(const KeyValueView& rows, Layout layout) noexcept {
  KvPart part;
  part.k = rows_of(rows.key, layout);
  part.v = rows_of(rows.value, layout);
  part.page_size =
      static_cast<std::int32_t>(std::max<std::int64_t>(kv_extents(rows.key, layout).length, 1));
  return part;
}

Status check_view_size(std::int64_t size) {
  constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
  if (size <= kMaxInt32) return {};
  return refusal(StatusCode::kOutOfRange, "view", std::to_string(size) + " as a size or position",
                 "at most " + std::to_string(kMaxInt32));
}

Result<OwnedKvView> view_of(const KeyValueView& rows, Layout layout, std::int64_t first_position) {
  const KvExtents k = kv_extents(rows.key, layout);
  return one_part(part_of(rows, layout), k, kv_extents(rows.value, layout).dim, first_position);
}

Result<OwnedKvView> view_of(const ContiguousLayer& layer) {
  const LayerShape& shape = layer.shape();
  KvPart part;
  part.k = layer.rows_view(0);
  part.v = layer.rows_view(1);
  part.page_size = static_cast<std::int32_t>(std::max<std::int64_t>(layer.length(), 1));
  const KvExtents k{shape.batch, shape.heads(), layer.length(), shape.key().dim};
  return one_part(part, k, shape.value().dim, layer.first_position());
}

}  // namespace kvcache::internal
