#include "cache/contiguous/slots_view.h"

#include <algorithm>
#include <limits>

#include "base/memory_kinds.h"
#include "cache/contiguous/view.h"

namespace kvcache::internal {
namespace {

// Between rows of different mappings, in bytes. Through integers: they are no rows of one array.
std::int64_t distance(const void* from, const void* to) noexcept {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(to) -
                                   reinterpret_cast<std::uintptr_t>(from));
}

bool laid_out_alike(const RowsView& a, const RowsView& b) noexcept {
  return a.head_stride == b.head_stride && a.token_stride == b.token_stride;
}

bool laid_out_alike(const KvPart& a, const KvPart& b) noexcept {
  return laid_out_alike(a.k, b.k) && laid_out_alike(a.v, b.v) &&
         distance(a.k.data, a.v.data) == distance(b.k.data, b.v.data) &&
         distance(a.k.data, b.k.data) % page_bytes() == 0;
}

}  // namespace

// The part that a slot's rows may share, a new one if there is none.
std::int64_t BatchingView::find_part(const KvPart& rows) {
  // Page ids are int32.
  const std::int64_t reach = page_bytes() * std::numeric_limits<std::int32_t>::max();
  for (std::size_t p = 0; p < groups_.size(); ++p) {
    Group& group = groups_[p];
    if (!laid_out_alike(group.low, rows)) continue;
    const std::int64_t below = distance(rows.k.data, group.low.k.data);
    const std::int64_t above = distance(group.high.k.data, rows.k.data);
    const std::int64_t span = distance(group.low.k.data, group.high.k.data);
    if (span + std::max<std::int64_t>({below, above, 0}) > reach) continue;
    if (below > 0) group.low = rows;
    if (above > 0) group.high = rows;
    return static_cast<std::int64_t>(p);
  }
  groups_.push_back({rows, rows});
  return static_cast<std::int64_t>(groups_.size()) - 1;
}

Status BatchingView::build(std::span<const ContiguousLayer* const> slots, const LayerShape& shape) {
  const std::size_t num_slots = slots.size();
  groups_.clear();
  places_.assign(num_slots, {});
  std::int64_t longest = 1;
  for (std::size_t s = 0; s < num_slots; ++s) {
    const ContiguousLayer* slot = slots[s];
    if (slot == nullptr || slot->length() == 0) continue;
    KVC_RETURN_IF_ERROR(check_view_size(slot->first_position() + slot->length()));
    longest = std::max(longest, slot->length());
    places_[s].rows = part_of(slot->rows(), shape.layout);
    places_[s].part = find_part(places_[s].rows);
  }

  const std::size_t num_parts = groups_.size();
  lengths_.assign(num_parts * num_slots, 0);
  first_positions_.assign(num_parts * num_slots, 0);
  pages_.assign(num_parts * num_slots, -1);
  parts_.clear();
  for (std::size_t p = 0; p < num_parts; ++p) {
    KvPart part = groups_[p].low;
    part.k.page_stride = part.v.page_stride = page_bytes();
    part.page_size = static_cast<std::int32_t>(longest);
    part.block_table = pages_.data() + p * num_slots;
    part.block_table_stride = 1;
    part.lengths = lengths_.data() + p * num_slots;
    part.first_position = first_positions_.data() + p * num_slots;
    parts_.push_back(part);
  }
  for (std::size_t s = 0; s < num_slots; ++s) {
    const Place& place = places_[s];
    if (place.part < 0) continue;
    const auto part = static_cast<std::size_t>(place.part);
    const std::size_t at = part * num_slots + s;
    lengths_[at] = static_cast<std::int32_t>(slots[s]->length());
    first_positions_[at] = static_cast<std::int32_t>(slots[s]->first_position());
    pages_[at] =
        static_cast<std::int32_t>(distance(parts_[part].k.data, place.rows.k.data) / page_bytes());
  }

  view_ = KvView();
  view_.num_seqs = static_cast<std::int32_t>(num_slots);
  view_.num_kv_heads = static_cast<std::int32_t>(shape.heads());
  view_.k_head_dim = static_cast<std::int32_t>(shape.key().dim);
  view_.v_head_dim = static_cast<std::int32_t>(shape.value().dim);
  view_.num_parts = static_cast<std::int32_t>(num_parts);
  view_.parts = parts_.data();
  return {};
}

}  // namespace kvcache::internal
