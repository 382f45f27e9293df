#include "cache/paged/rows.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "base/parallel.h"
#include "tensor/convert.h"

namespace kvcache::internal {
namespace {

// A buffer of one layer, and rows of the caller that go into it or come out of it.
struct BufferCopy {
  RowsView stored;
  std::int64_t heads = 0, dim = 0;
  Layout layout = Layout::kHND;

  std::byte* given = nullptr;  // [tokens, heads, dim] by named axes. Strides in bytes.
  DType dtype = DType::kF32;
  std::int64_t token = 0, head = 0, element = 0;

  std::byte* at(std::int32_t page, std::int64_t slot) const noexcept {
    return const_cast<std::byte*>(stored.row_at(page, 0, slot));
  }
};

// The buffers of a layer, and the caller's rows of each, whose axes are as told. Their const is put
// back by the direction of the copy.
struct LayerCopy {
  BufferCopy buffers[LayerSpec::kMaxBuffers];
  std::int32_t count = 0;

  LayerCopy(const PagedStore& store, std::int64_t layer) noexcept {
    store.group_of(layer).for_each_buffer(store.place(layer).index,
                                          [&](const RowsView& rows, const BufferLayout& shape) {
                                            BufferCopy& buffer = buffers[count++];
                                            buffer.stored = rows;
                                            buffer.heads = shape.spec.heads;
                                            buffer.dim = shape.spec.dim;
                                            buffer.layout = store.layout().layout;
                                          });
  }

  void give(std::int32_t buffer, const void* data, const TensorView& view, int token_axis,
            int head_axis) noexcept {
    BufferCopy& to = buffers[buffer];
    to.given = static_cast<std::byte*>(const_cast<void*>(data));
    to.dtype = view.dtype;
    to.element = view.strides[2] * size_of(view.dtype);
    to.token = view.strides[token_axis] * size_of(view.dtype);
    to.head = view.strides[head_axis] * size_of(view.dtype);
  }

  std::span<const BufferCopy> all() const noexcept {
    return {buffers, static_cast<std::size_t>(count)};
  }
};

// The copy of `count` rows starting at the caller's row `row`, from or to `slot` of `page`: heads
// outside in HND, inside in NHD, which is how rows are dense in a page.
RowCopy page_copy(const BufferCopy& buffer, std::int32_t page, std::int64_t slot, std::int64_t row,
                  std::int64_t count, bool into_pages) noexcept {
  const bool head_first = buffer.layout == Layout::kHND;
  const int token_axis = head_first ? 2 : 1;
  const int head_axis = head_first ? 1 : 2;
  const DType stored_dtype = buffer.stored.format.dtype;
  RowCopy copy;
  copy.shape[0] = 1;
  copy.shape[token_axis] = count;
  copy.shape[head_axis] = buffer.heads;
  copy.shape[3] = buffer.dim;
  std::byte* const stored = buffer.at(page, slot);
  std::byte* const given = buffer.given + row * buffer.token;
  copy.src = into_pages ? given : stored;
  copy.dst = into_pages ? stored : given;
  copy.src_dtype = into_pages ? buffer.dtype : stored_dtype;
  copy.dst_dtype = into_pages ? stored_dtype : buffer.dtype;
  std::int64_t* const stored_strides = into_pages ? copy.dst_strides : copy.src_strides;
  std::int64_t* const given_strides = into_pages ? copy.src_strides : copy.dst_strides;
  stored_strides[token_axis] = buffer.stored.token_stride;
  stored_strides[head_axis] = buffer.stored.head_stride;
  stored_strides[3] = size_of(stored_dtype);
  given_strides[token_axis] = buffer.token;
  given_strides[head_axis] = buffer.head;
  given_strides[3] = buffer.element;
  return copy;
}

// Committed rows of a shared tail, moved to the page that the step took for it.
void copy_tail(const BufferCopy& buffer, std::int32_t from, std::int32_t to,
               std::int64_t count) noexcept {
  const auto bytes = static_cast<std::size_t>(count * buffer.stored.token_stride);
  const std::int64_t pieces = buffer.layout == Layout::kNHD ? 1 : buffer.heads;
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    const std::int64_t offset = piece * buffer.stored.head_stride;
    std::memcpy(buffer.at(to, 0) + offset, buffer.at(from, 0) + offset, bytes);
  }
}

}  // namespace

void write_rows(PagedStore& store, PagedStep& step, std::int64_t layer, const TensorView& k,
                const TensorView& v, const ExecContext& context) noexcept {
  const std::size_t g = static_cast<std::size_t>(store.place(layer).group);
  GroupRoom& room = step.rooms[g];
  LayerCopy rows(store, layer);
  unsigned char& written = step.written[static_cast<std::size_t>(layer)];
  if (written == 0) {
    for (std::size_t i = 0; i < step.seqs.size(); ++i) {
      if (!room.seqs[i].copies_tail) continue;
      const PagedSequence& seq = *step.seqs[i].seq;
      const std::int32_t from = seq.tables[g].pages.back();
      const std::int32_t to = room.pages[static_cast<std::size_t>(room.seqs[i].begin)];
      for (const BufferCopy& buffer : rows.all()) {
        copy_tail(buffer, from, to, seq.length % store.page_size());
      }
    }
    store.count_copies(room, step);
    written = 1;
  }
  if (step.num_new_tokens == 0) return;
  rows.give(0, k.data, k, 0, 1);
  rows.give(1, v.data, v, 0, 1);
  const auto copy = [&](std::int64_t begin, std::int64_t end) noexcept {
    // The last run that starts at or before `begin`.
    auto run = std::upper_bound(room.runs.begin(), room.runs.end(), begin,
                                [](std::int64_t row, const StepRun& r) { return row < r.row; });
    for (--run; begin < end; ++run) {
      const std::int64_t slot = run->slot + (begin - run->row);
      const std::int64_t count = std::min(end, run->row + run->count) - begin;
      for (const BufferCopy& buffer : rows.all()) {
        copy_rows(page_copy(buffer, run->page, slot, begin, count, true));
      }
      begin += count;
    }
  };
  for_each_range(context, step.num_new_tokens,
                 step.num_new_tokens * bytes_per_token(store.spec_of(layer)), copy);
}

void gather_rows(const PagedStore& store, const PagedSequence& seq, std::int64_t layer,
                 const MutableTensorView& key, const MutableTensorView& value,
                 const ExecContext& context) noexcept {
  if (seq.length == 0) return;
  const std::int64_t page_size = store.page_size();
  const std::vector<std::int32_t>& pages =
      seq.tables[static_cast<std::size_t>(store.place(layer).group)].pages;
  const bool head_first = store.layout().layout == Layout::kHND;
  LayerCopy rows(store, layer);
  rows.give(0, key.data, key, head_first ? 1 : 0, head_first ? 0 : 1);
  rows.give(1, value.data, value, head_first ? 1 : 0, head_first ? 0 : 1);
  const auto copy = [&](std::int64_t begin, std::int64_t end) noexcept {
    while (begin < end) {
      const std::int32_t page = pages[static_cast<std::size_t>(begin / page_size)];
      const std::int64_t slot = begin % page_size;
      const std::int64_t count = std::min(page_size - slot, end - begin);
      for (const BufferCopy& buffer : rows.all()) {
        copy_rows(page_copy(buffer, page, slot, begin, count, false));
      }
      begin += count;
    }
  };
  for_each_range(context, seq.length, seq.length * bytes_per_token(store.spec_of(layer)), copy);
}

}  // namespace kvcache::internal
