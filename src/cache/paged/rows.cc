#include "cache/paged/rows.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <span>
#include <string>

#include "base/expect.h"
#include "base/parallel.h"
#include "cache/layer_check.h"
#include "kernels/select.h"
#include "tensor/codecs/coded_block.h"
#include "tensor/codecs/rotate.h"
#include "tensor/convert.h"
#include "tensor/row_copy.h"

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

std::size_t group_index(const PagedStore& store, std::int64_t layer) noexcept {
  return static_cast<std::size_t>(store.place(layer).group);
}

// The group that rows are written to: that of the tails where there is one.
std::size_t written_group(const PagedStore& store, std::int64_t layer) noexcept {
  const std::int32_t tail = store.tail_group(layer);
  return tail < 0 ? group_index(store, layer) : static_cast<std::size_t>(tail);
}

// The buffers of a layer, and the caller's rows of each, whose axes are as told. Their const is put
// back by the direction of the copy.
struct LayerCopy {
  BufferCopy buffers[LayerSpec::kMaxBuffers];
  std::int32_t count = 0;

  // In that group of the layer's.
  LayerCopy(const PagedStore& store, std::size_t group, std::int64_t layer) noexcept {
    store.group(group).for_each_buffer(store.place(layer).index,
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

// The same for coded rows.
CodedBlock page_block(const BufferCopy& buffer, std::int32_t page, std::int64_t slot,
                      std::int64_t row, std::int64_t count) noexcept {
  CodedBlock block;
  set_codes(buffer.stored, page, slot, &block);
  block.tokens = count;
  block.heads = buffer.heads;
  block.elements = buffer.dim;
  block.rows = buffer.given + row * buffer.token;
  block.dtype = buffer.dtype;
  block.token_stride = buffer.token;
  block.head_stride = buffer.head;
  block.element_stride = buffer.element;
  return block;
}

// Calls fn(row of floats, token, head) for rows of the caller, turned, so that fn may change and
// return them.
template <typename Fn>
void for_each_turned(const RowKernels& kernels, const BufferCopy& buffer, std::int64_t row,
                     std::int64_t count, Fn&& fn) noexcept {
  alignas(64) float turned[kMaxCodedElements];
  for (std::int64_t token = 0; token < count; ++token) {
    for (std::int64_t head = 0; head < buffer.heads; ++head) {
      const std::byte* const given =
          buffer.given + (row + token) * buffer.token + head * buffer.head;
      convert_row(given, buffer.dtype, buffer.element / size_of(buffer.dtype), turned, DType::kF32,
                  buffer.dim);
      if (buffer.stored.format.rotate) {
        kernels.rotate(turned, 1, buffer.dim, buffer.dim);
        drop_signs_of_nan(turned, buffer.dim);
      }
      fn(turned, token, head);
    }
  }
}

void store(const RowKernels& kernels, const BufferCopy& buffer, std::int32_t page,
           std::int64_t slot, std::int64_t row, std::int64_t count) noexcept {
  if (buffer.stored.format.is_coded()) {
    kernels.encode(page_block(buffer, page, slot, row, count));
  } else if (buffer.stored.format.rotate) {
    for_each_turned(
        kernels, buffer, row, count,
        [&](const float* turned, std::int64_t token, std::int64_t head) {
          std::byte* const to = buffer.at(page, slot + token) + head * buffer.stored.head_stride;
          convert_row(turned, DType::kF32, 1, to, buffer.stored.format.dtype, buffer.dim);
        });
  } else {
    kernels.store(page_copy(buffer, page, slot, row, count, true));
  }
}

void load(const RowKernels& kernels, const BufferCopy& buffer, std::int32_t page, std::int64_t slot,
          std::int64_t row, std::int64_t count) noexcept {
  if (buffer.stored.format.is_coded()) {
    kernels.decode(page_block(buffer, page, slot, row, count));
  } else if (buffer.stored.format.rotate) {
    alignas(64) float turned[kMaxCodedElements];
    for (std::int64_t token = 0; token < count; ++token) {
      for (std::int64_t head = 0; head < buffer.heads; ++head) {
        convert_row(buffer.at(page, slot + token) + head * buffer.stored.head_stride,
                    buffer.stored.format.dtype, 1, turned, DType::kF32, buffer.dim);
        kernels.rotate(turned, 1, buffer.dim, buffer.dim);
        RowCopy back;
        back.shape[0] = back.shape[1] = back.shape[2] = 1;
        back.shape[3] = buffer.dim;
        back.src = turned;
        back.src_dtype = DType::kF32;
        back.src_strides[3] = sizeof(float);
        back.dst = buffer.given + (row + token) * buffer.token + head * buffer.head;
        back.dst_dtype = buffer.dtype;
        back.dst_strides[3] = buffer.element;
        kernels.load(back);
      }
    }
  } else {
    kernels.load(page_copy(buffer, page, slot, row, count, false));
  }
}

// The codes, scales and zeros of the first `count` rows of a page, as they are.
void copy_codes(const BufferCopy& buffer, std::int32_t from, std::int32_t to,
                std::int64_t count) noexcept {
  CodedBlock source, copy;
  set_codes(buffer.stored, from, 0, &source);
  set_codes(buffer.stored, to, 0, &copy);
  const RowFormat& format = source.format;
  const auto code_bytes = static_cast<std::size_t>(format.code_bytes(buffer.dim));
  const std::int64_t groups = format.num_scales(buffer.dim);
  const auto n = static_cast<std::size_t>(count);
  for (std::int64_t head = 0; head < buffer.heads; ++head) {
    for (std::int64_t token = 0; token < count; ++token) {
      std::memcpy(copy.coded(token, head).codes, source.coded(token, head).codes, code_bytes);
    }
    const CodedRow first = source.coded(0, head);
    const CodedRow to_first = copy.coded(0, head);
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t at = g * source.scale_group_stride;
      std::memcpy(to_first.scales + at, first.scales + at, n * 2);
      if (format.has_zeros()) std::memcpy(to_first.zeros + at / 2, first.zeros + at / 2, n);
    }
  }
}

// The copy of the first `count` rows of a page: those of a shared tail, to the page that the step
// took for it.
RowCopy tail_copy(const BufferCopy& buffer, std::int32_t from, std::int32_t to,
                  std::int64_t count) noexcept {
  BufferCopy source = buffer;
  source.given = buffer.at(from, 0);
  source.dtype = buffer.stored.format.dtype;
  source.token = buffer.stored.token_stride;
  source.head = buffer.stored.head_stride;
  source.element = size_of(source.dtype);
  return page_copy(source, to, 0, 0, count, true);
}

// Calls fn(first row, page, slot, count) for the rows begin .. end of a step, run by run.
template <typename Fn>
void for_each_run(const GroupRoom& room, std::int64_t begin, std::int64_t end, Fn&& fn) noexcept {
  // The last run that starts at or before `begin`.
  auto run = std::upper_bound(room.runs.begin(), room.runs.end(), begin,
                              [](std::int64_t row, const StepRun& r) { return row < r.row; });
  for (--run; begin < end; ++run) {
    const std::int64_t slot = run->slot + (begin - run->row);
    const std::int64_t count = std::min(end, run->row + run->count) - begin;
    fn(begin, run->page, slot, count);
    begin += count;
  }
}

// Calls fn(first row, page, slot, count) for the rows begin .. end of those that a group holds of a
// sequence, the sinks first.
template <typename Fn>
void for_each_held(const PagedStore& store, const PagedSequence& seq, std::size_t group,
                   std::int64_t begin, std::int64_t end, Fn&& fn) noexcept {
  const GroupTable& table = seq.tables[group];
  const std::int64_t sinks = store.group(group).sink_rows(table);
  const std::int64_t page_size = store.page_size();
  while (begin < end) {
    const bool is_sink = begin < sinks;
    const std::int64_t position = is_sink ? begin : table.first + begin - sinks;
    const std::int64_t slot = position % page_size;
    const std::int64_t here =
        std::min(page_size - slot, (is_sink ? std::min(sinks, end) : end) - begin);
    fn(begin, table.pages[table.entry(position / page_size)], slot, here);
    begin += here;
  }
}

// The first token of which a row could not be encoded once it has been stored plain: what is
// encoded then is rounded to the type of the tail. -1: all can.
std::int64_t refused_when_plain(const RowKernels& kernels, const BufferCopy& buffer,
                                std::int64_t row, std::int64_t count) noexcept {
  const DType stored = buffer.stored.format.dtype;
  std::int64_t first = -1;
  CodedBlock block;
  block.format = buffer.stored.format;
  block.format.rotate = false;  // it is
  block.tokens = block.heads = 1;
  block.elements = buffer.dim;
  block.dtype = stored;
  block.token_stride = block.head_stride = buffer.dim * size_of(stored);
  block.element_stride = size_of(stored);
  alignas(64) std::byte rounded[kMaxCodedElements * sizeof(float)];
  for_each_turned(kernels, buffer, row, count,
                  [&](const float* turned, std::int64_t token, std::int64_t) {
                    if (first >= 0) return;
                    convert_row(turned, DType::kF32, 1, rounded, stored, buffer.dim);
                    block.rows = rounded;
                    if (kernels.refused(block) >= 0) first = token;
                  });
  return first;
}

// "k: found ..., expected ..." for the row that cannot be encoded, the first of token `row`.
Status refused(const PagedStep& step, const char* name, const RowFormat& format, std::int64_t row) {
  std::size_t i = 0;
  while (row >= step.seqs[i].count) row -= step.seqs[i++].count;
  const PagedSequence& seq = *step.seqs[i].seq;
  return refusal(std::string(name) + ", sequence " +
                     std::to_string(static_cast<std::int64_t>(seq.id)) + ", token " +
                     std::to_string(seq.length + row),
                 "elements that are not finite, or too large for a scale of 16 bits",
                 std::string("what ") + name_of(format.kind) + " can store");
}

}  // namespace

Status check_rows(const PagedStore& store, const PagedStep& step, std::int64_t layer,
                  const TensorView& k, const TensorView& v, const ExecContext& context) {
  if (!is_coded(store.spec_of(layer))) return {};
  const RowKernels& kernels = selected_rows();
  LayerCopy rows(store, group_index(store, layer), layer);
  rows.give(0, k.data, k, 0, 1);
  rows.give(1, v.data, v, 0, 1);
  const bool stay_plain = store.tail_group(layer) >= 0;
  for (const BufferCopy& buffer : rows.all()) {
    if (!buffer.stored.format.is_coded() || step.num_new_tokens == 0) continue;
    std::atomic<std::int64_t> bad = step.num_new_tokens;
    const auto check = [&](std::int64_t begin, std::int64_t end) noexcept {
      const std::int64_t at = stay_plain
                                  ? refused_when_plain(kernels, buffer, begin, end - begin)
                                  : kernels.refused(page_block(buffer, 0, 0, begin, end - begin));
      if (at < 0) return;
      std::int64_t first = bad;
      while (begin + at < first && !bad.compare_exchange_weak(first, begin + at)) {
      }
    };
    for_each_range(context, step.num_new_tokens,
                   step.num_new_tokens * buffer.heads * buffer.dim * size_of(buffer.dtype), check);
    if (bad < step.num_new_tokens) {
      return refused(step, &buffer == rows.buffers ? "k" : "v", buffer.stored.format, bad);
    }
  }
  return {};
}

void write_rows(PagedStore& store, PagedStep& step, std::int64_t layer, const TensorView& k,
                const TensorView& v, const ExecContext& context) noexcept {
  const std::size_t g = written_group(store, layer);
  const GroupRoom& room = step.rooms[g];
  const RowKernels& kernels = selected_rows();
  LayerCopy rows(store, g, layer);
  unsigned char& written = step.written[static_cast<std::size_t>(layer)];
  if (written == 0) {
    for (std::size_t i = 0; i < step.seqs.size(); ++i) {
      if (!room.seqs[i].copies_tail) continue;
      const PagedSequence& seq = *step.seqs[i].seq;
      const std::int32_t from = seq.tables[g].pages.back();
      const std::int32_t to = room.pages[static_cast<std::size_t>(room.seqs[i].begin)];
      for (const BufferCopy& buffer : rows.all()) {
        const std::int64_t tail = seq.length % store.page_size();
        if (buffer.stored.format.is_coded()) {
          copy_codes(buffer, from, to, tail);
        } else {
          kernels.copy(tail_copy(buffer, from, to, tail));
        }
      }
    }
    store.count_copies(step, g);
    written = 1;
  }
  if (step.num_new_tokens == 0) return;
  rows.give(0, k.data, k, 0, 1);
  rows.give(1, v.data, v, 0, 1);
  const auto copy = [&](std::int64_t begin, std::int64_t end) noexcept {
    for_each_run(room, begin, end,
                 [&](std::int64_t row, std::int32_t page, std::int64_t slot, std::int64_t count) {
                   for (const BufferCopy& buffer : rows.all()) {
                     internal::store(kernels, buffer, page, slot, row, count);
                   }
                 });
  };
  for_each_range(context, step.num_new_tokens,
                 step.num_new_tokens * bytes_per_token(store.spec_of(layer)), copy);
}

namespace {

// Reads rows of a layer in one group into key and value: those held of a sequence, those of a step.
class Reader {
 public:
  Reader(const PagedStore& store, std::size_t group, std::int64_t layer,
         const MutableTensorView& key, const MutableTensorView& value) noexcept
      : store_(store), group_(group), rows_(store, group, layer) {
    const bool head_first = store.layout().layout == Layout::kHND;
    rows_.give(0, key.data, key, head_first ? 1 : 0, head_first ? 0 : 1);
    rows_.give(1, value.data, value, head_first ? 1 : 0, head_first ? 0 : 1);
  }

  // Row `begin` goes to row `at` of the caller's.
  void read_held(const PagedSequence& seq, std::int64_t begin, std::int64_t end,
                 std::int64_t at) const noexcept {
    for_each_held(store_, seq, group_, begin, end,
                  [&](std::int64_t row, std::int32_t page, std::int64_t slot, std::int64_t count) {
                    read(page, slot, at + row - begin, count);
                  });
  }
  void read_step(const GroupRoom& room, std::int64_t begin, std::int64_t end,
                 std::int64_t at) const noexcept {
    for_each_run(room, begin, end,
                 [&](std::int64_t row, std::int32_t page, std::int64_t slot, std::int64_t count) {
                   read(page, slot, at + row - begin, count);
                 });
  }

 private:
  void read(std::int32_t page, std::int64_t slot, std::int64_t row,
            std::int64_t count) const noexcept {
    for (const BufferCopy& buffer : rows_.all()) {
      load(selected_rows(), buffer, page, slot, row, count);
    }
  }

  const PagedStore& store_;
  const std::size_t group_;
  LayerCopy rows_;
};

}  // namespace

std::int64_t rows_held(const PagedStore& store, const PagedSequence& seq,
                       std::int64_t layer) noexcept {
  if (store.tail_group(layer) >= 0) return seq.length;
  return store.group_of(layer).rows_held(store.table_of(seq, layer), seq.length);
}

void gather_rows(const PagedStore& store, const PagedSequence& seq, std::int64_t layer,
                 const MutableTensorView& key, const MutableTensorView& value,
                 const ExecContext& context) noexcept {
  const std::int64_t count = rows_held(store, seq, layer);
  if (count == 0) return;
  const std::int32_t tail = store.tail_group(layer);
  const std::int64_t split = tail < 0 ? count : seq.coded;
  const Reader held(store, group_index(store, layer), layer, key, value);
  const Reader plain(store, written_group(store, layer), layer, key, value);
  const auto copy = [&](std::int64_t begin, std::int64_t end) noexcept {
    if (begin < split) held.read_held(seq, begin, std::min(end, split), begin);
    begin = std::max(begin, split);
    if (begin < end) plain.read_held(seq, begin - split, end - split, begin);
  };
  for_each_range(context, count, count * bytes_per_token(store.spec_of(layer)), copy);
}

void gather_rows(const PagedStore& store, const PagedStep& step, std::size_t index,
                 std::int64_t layer, const MutableTensorView& key, const MutableTensorView& value,
                 const ExecContext& context) noexcept {
  const StepSequence& entry = step.seqs[index];
  gather_rows(store, *entry.seq, layer, key, value, context);
  if (entry.count == 0) return;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < index; ++i) first += step.seqs[i].count;
  const std::size_t group = written_group(store, layer);
  Reader(store, group, layer, key, value)
      .read_step(step.rooms[group], first, first + entry.count,
                 rows_held(store, *entry.seq, layer));
}

namespace {

// Rows of a tail, which become codes in a page of the group of codes.
struct Encoding {
  const RowKernels& kernels;
  const LayerCopy codes, tails;

  Encoding(const PagedStore& store, std::size_t group, std::int64_t layer) noexcept
      : kernels(selected_rows()),
        codes(store, group, layer),
        tails(store, written_group(store, layer), layer) {}

  void copy_tail(std::int32_t from, std::int32_t to, std::int64_t count) const noexcept {
    for (const BufferCopy& buffer : codes.all()) {
      if (buffer.stored.format.is_coded()) {
        copy_codes(buffer, from, to, count);
      } else {
        kernels.copy(tail_copy(buffer, from, to, count));
      }
    }
  }

  void encode(std::int32_t from_page, std::int64_t from_slot, std::int32_t page, std::int64_t slot,
              std::int64_t count) const noexcept {
    for (std::int32_t b = 0; b < codes.count; ++b) {
      const BufferCopy& plain = tails.buffers[b];
      BufferCopy buffer = codes.buffers[b];
      buffer.given = plain.at(from_page, from_slot);
      buffer.dtype = plain.stored.format.dtype;
      buffer.token = plain.stored.token_stride;
      buffer.head = plain.stored.head_stride;
      buffer.element = size_of(buffer.dtype);
      if (!buffer.stored.format.is_coded()) {
        kernels.copy(page_copy(buffer, page, slot, 0, count, true));
        continue;
      }
      CodedBlock block = page_block(buffer, page, slot, 0, count);
      block.format.rotate = false;  // rows of a tail are turned already
      kernels.encode(block);
    }
  }
};

}  // namespace

void encode_rows(PagedStore& store, PagedStep& step, std::span<const std::int64_t> accepted,
                 const ExecContext& context) noexcept {
  const PagedLayout& layout = store.layout();
  const std::int64_t page_size = store.page_size();
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    if (layout.groups[g].tail < 0) continue;
    const auto t = static_cast<std::size_t>(layout.groups[g].tail);
    const GroupRoom& room = step.rooms[g];
    std::int64_t first_code = 0;  // of the sequence, among the rows that the step has room for
    std::int64_t first_new = 0;   // likewise among the step's tokens
    for (std::size_t i = 0; i < step.seqs.size(); ++i) {
      const StepSequence& entry = step.seqs[i];
      const PagedSequence& seq = *entry.seq;
      const std::int64_t kept = accepted.empty() ? entry.count : accepted[i];
      const std::int64_t count = kept > 0 ? store.coded_at(seq, seq.length + kept) - seq.coded : 0;
      const auto encode_layer = [&](std::int64_t layer) noexcept {
        const Encoding encoding(store, g, layer);
        if (room.seqs[i].copies_tail) {
          encoding.copy_tail(seq.tables[g].pages.back(),
                             room.pages[static_cast<std::size_t>(room.seqs[i].begin)],
                             seq.coded % page_size);
        }
        // Rows `row` .. of the room for codes are those from this position on.
        const auto encode_run = [&](std::int64_t row, std::int32_t page, std::int64_t slot,
                                    std::int64_t rows) {
          std::int64_t position = seq.coded + row - first_code;
          const std::int64_t end = position + rows;
          const std::int64_t committed = std::min(end, seq.length);
          if (position < committed) {
            const std::int64_t at = position - seq.coded;  // among the rows that the tail holds
            for_each_held(
                store, seq, t, at, at + committed - position,
                [&](std::int64_t, std::int32_t from, std::int64_t from_slot, std::int64_t here) {
                  encoding.encode(from, from_slot, page, slot, here);
                  slot += here;
                });
            position = committed;
          }
          if (position == end) return;
          const std::int64_t at = first_new + position - seq.length;
          for_each_run(
              step.rooms[t], at, at + end - position,
              [&](std::int64_t, std::int32_t from, std::int64_t from_slot, std::int64_t here) {
                encoding.encode(from, from_slot, page, slot, here);
                slot += here;
              });
        };
        for_each_run(room, first_code, first_code + count, encode_run);
      };
      if (count > 0) {
        if (room.seqs[i].copies_tail) store.count_copies(step, g);
        const auto& layers = layout.groups[g].layers;
        for_each_range(context, static_cast<std::int64_t>(layers.size()),
                       count * layout.groups[t].row_bytes,
                       [&](std::int64_t begin, std::int64_t end) noexcept {
                         for (; begin < end; ++begin) {
                           encode_layer(layers[static_cast<std::size_t>(begin)].layer);
                         }
                       });
      }
      first_code += store.count_in(g, entry);
      first_new += entry.count;
    }
  }
}

RowCodes gather_codes(const PagedStore& store, const PagedSequence& seq, std::int64_t layer,
                      std::int32_t buffer) {
  const std::size_t group = group_index(store, layer);
  const LayerCopy layer_rows(store, group, layer);
  const BufferCopy& from = layer_rows.buffers[buffer];
  RowCodes codes;
  codes.format = from.stored.format;
  codes.heads = from.heads;
  codes.rows = store.tail_group(layer) >= 0 ? seq.coded : rows_held(store, seq, layer);
  const auto bytes = static_cast<std::size_t>(codes.format.code_bytes(from.dim));
  const auto groups = static_cast<std::size_t>(codes.format.num_scales(from.dim));
  const auto count = static_cast<std::size_t>(codes.heads * codes.rows);
  codes.codes.resize(count * bytes);
  codes.scales.resize(count * groups);
  if (codes.format.has_zeros()) codes.zeros.resize(count * groups);
  const auto take = [&](std::int64_t first, std::int32_t page, std::int64_t slot,
                        std::int64_t here) {
    CodedBlock block;
    set_codes(from.stored, page, slot, &block);
    for (std::int64_t head = 0; head < codes.heads; ++head) {
      for (std::int64_t token = 0; token < here; ++token) {
        const CodedRow row = block.coded(token, head);
        const auto at = static_cast<std::size_t>(head * codes.rows + first + token);
        std::memcpy(codes.codes.data() + at * bytes, row.codes, bytes);
        for (std::size_t g = 0; g < groups; ++g) {
          const std::int64_t stride = static_cast<std::int64_t>(g) * row.scale_stride;
          std::memcpy(&codes.scales[at * groups + g], row.scales + stride, 2);
          if (!codes.zeros.empty()) {
            codes.zeros[at * groups + g] = static_cast<std::uint8_t>(row.zeros[stride / 2]);
          }
        }
      }
    }
  };
  for_each_held(store, seq, group, 0, codes.rows, take);
  return codes;
}

}  // namespace kvcache::internal
