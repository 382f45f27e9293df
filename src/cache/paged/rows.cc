#include "cache/paged/rows.h"

#include <algorithm>
#include <cstring>

#include "base/parallel.h"
#include "tensor/convert.h"

namespace kvcache::internal {
namespace {

// K or V of one layer: where its pages are and how rows lie in them. Strides in bytes.
struct PagedRows {
  std::byte* data = nullptr;
  DType dtype = DType::kF32;
  Layout layout = Layout::kHND;
  std::int64_t heads = 0, dim = 0;
  std::int64_t page = 0, head = 0, token = 0, element = 0;

  std::byte* at(std::int32_t page_id, std::int64_t slot) const noexcept {
    return data + page_id * page + slot * token;
  }
};

// Rows of the caller, [tokens, heads, dim] by named axes. Strides in bytes.
struct DenseRows {
  std::byte* data = nullptr;
  DType dtype = DType::kF32;
  std::int64_t token = 0, head = 0, element = 0;
};

PagedRows paged_rows(const PagedStore& store, std::int64_t layer, bool keys) noexcept {
  const PagedGroup& group = store.group_of(layer);
  const PageStrides& strides = keys ? group.k_strides : group.v_strides;
  PagedRows rows;
  rows.data = keys ? store.k_rows(layer) : store.v_rows(layer);
  rows.dtype = keys ? group.spec.k_format.dtype : group.spec.v_format.dtype;
  rows.layout = store.layout().layout;
  rows.heads = group.spec.num_kv_heads;
  rows.dim = keys ? group.spec.k_head_dim : group.spec.v_head_dim;
  rows.element = size_of(rows.dtype);
  rows.page = strides.page * rows.element;
  rows.head = strides.head * rows.element;
  rows.token = strides.token * rows.element;
  return rows;
}

// `bytes` of a tensor whose axes are as told. The caller's const is put back by the direction of
// the copy.
DenseRows dense_rows(const void* data, const TensorView& view, int token_axis,
                     int head_axis) noexcept {
  DenseRows rows;
  rows.data = static_cast<std::byte*>(const_cast<void*>(data));
  rows.dtype = view.dtype;
  rows.element = view.strides[2] * size_of(view.dtype);
  rows.token = view.strides[token_axis] * size_of(view.dtype);
  rows.head = view.strides[head_axis] * size_of(view.dtype);
  return rows;
}

// The copy of `count` rows starting at dense row `row`, from or to `slot` of `page`: heads outside
// in HND, inside in NHD, which is how rows are dense in a page.
RowCopy page_copy(const PagedRows& paged, std::int32_t page, std::int64_t slot,
                  const DenseRows& dense, std::int64_t row, std::int64_t count,
                  bool into_pages) noexcept {
  const bool head_first = paged.layout == Layout::kHND;
  const int token_axis = head_first ? 2 : 1;
  const int head_axis = head_first ? 1 : 2;
  RowCopy copy;
  copy.shape[0] = 1;
  copy.shape[token_axis] = count;
  copy.shape[head_axis] = paged.heads;
  copy.shape[3] = paged.dim;
  std::byte* const stored = paged.at(page, slot);
  std::byte* const given = dense.data + row * dense.token;
  copy.src = into_pages ? given : stored;
  copy.dst = into_pages ? stored : given;
  copy.src_dtype = into_pages ? dense.dtype : paged.dtype;
  copy.dst_dtype = into_pages ? paged.dtype : dense.dtype;
  std::int64_t* const stored_strides = into_pages ? copy.dst_strides : copy.src_strides;
  std::int64_t* const given_strides = into_pages ? copy.src_strides : copy.dst_strides;
  stored_strides[token_axis] = paged.token;
  stored_strides[head_axis] = paged.head;
  stored_strides[3] = paged.element;
  given_strides[token_axis] = dense.token;
  given_strides[head_axis] = dense.head;
  given_strides[3] = dense.element;
  return copy;
}

// Committed rows of a shared tail, moved to the page that the step took for it.
void copy_tail(const PagedRows& rows, std::int32_t from, std::int32_t to,
               std::int64_t count) noexcept {
  if (rows.layout == Layout::kNHD) {
    std::memcpy(rows.at(to, 0), rows.at(from, 0), static_cast<std::size_t>(count * rows.token));
    return;
  }
  for (std::int64_t head = 0; head < rows.heads; ++head) {
    std::memcpy(rows.at(to, 0) + head * rows.head, rows.at(from, 0) + head * rows.head,
                static_cast<std::size_t>(count * rows.token));
  }
}

}  // namespace

void write_rows(PagedStore& store, PagedStep& step, std::int64_t layer, const TensorView& k,
                const TensorView& v, const ExecContext& context) noexcept {
  const std::size_t g = static_cast<std::size_t>(store.place(layer).group);
  StepGroup& group = step.groups[g];
  const PagedRows keys = paged_rows(store, layer, true);
  const PagedRows values = paged_rows(store, layer, false);
  unsigned char& written = step.written[static_cast<std::size_t>(layer)];
  if (written == 0) {
    for (std::size_t i = 0; i < step.seqs.size(); ++i) {
      if (!group.rooms[i].copies_tail) continue;
      const PagedSequence& seq = *step.seqs[i].seq;
      const std::int32_t from = seq.tables[g].back();
      const std::int32_t to = group.pages[static_cast<std::size_t>(group.rooms[i].begin)];
      copy_tail(keys, from, to, seq.length % store.page_size());
      copy_tail(values, from, to, seq.length % store.page_size());
    }
    store.count_copies(group, step);
    written = 1;
  }
  const DenseRows new_keys = dense_rows(k.data, k, 0, 1);
  const DenseRows new_values = dense_rows(v.data, v, 0, 1);
  const auto copy = [&](std::int64_t begin, std::int64_t end) noexcept {
    // The last run that starts at or before `begin`.
    auto run = std::upper_bound(group.runs.begin(), group.runs.end(), begin,
                                [](std::int64_t row, const StepRun& r) { return row < r.row; });
    for (--run; begin < end; ++run) {
      const std::int64_t slot = run->slot + (begin - run->row);
      const std::int64_t count = std::min(end, run->row + run->count) - begin;
      copy_rows(page_copy(keys, run->page, slot, new_keys, begin, count, true));
      copy_rows(page_copy(values, run->page, slot, new_values, begin, count, true));
      begin += count;
    }
  };
  if (step.num_new_tokens == 0) return;
  for_each_range(context, step.num_new_tokens,
                 step.num_new_tokens * bytes_per_token(store.group_of(layer).spec), copy);
}

void gather_rows(const PagedStore& store, const PagedSequence& seq, std::int64_t layer,
                 const MutableTensorView& key, const MutableTensorView& value,
                 const ExecContext& context) noexcept {
  if (seq.length == 0) return;
  const std::int64_t page_size = store.page_size();
  const std::vector<std::int32_t>& table =
      seq.tables[static_cast<std::size_t>(store.place(layer).group)];
  const PagedRows keys = paged_rows(store, layer, true);
  const PagedRows values = paged_rows(store, layer, false);
  const bool head_first = store.layout().layout == Layout::kHND;
  const DenseRows to_keys = dense_rows(key.data, key, head_first ? 1 : 0, head_first ? 0 : 1);
  const DenseRows to_values = dense_rows(value.data, value, head_first ? 1 : 0, head_first ? 0 : 1);
  const auto copy = [&](std::int64_t begin, std::int64_t end) noexcept {
    while (begin < end) {
      const std::int32_t page = table[static_cast<std::size_t>(begin / page_size)];
      const std::int64_t slot = begin % page_size;
      const std::int64_t count = std::min(page_size - slot, end - begin);
      copy_rows(page_copy(keys, page, slot, to_keys, begin, count, false));
      copy_rows(page_copy(values, page, slot, to_values, begin, count, false));
      begin += count;
    }
  };
  for_each_range(context, seq.length, seq.length * bytes_per_token(store.group_of(layer).spec),
                 copy);
}

}  // namespace kvcache::internal
