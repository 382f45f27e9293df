#include "python/bindings/hf_move.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace kvcache::python {
namespace {

// The page of row `row` of a sequence; -1 where it is gone or yet to come.
std::int64_t page_of(const KvPart& part, std::int32_t index, std::int64_t row) {
  std::int64_t page = row / part.page_size;
  if (row >= part.lengths[index]) return -1;
  if (part.hole_pages != nullptr && page >= part.hole_begin[index]) {
    page -= part.hole_pages[index];
    if (page < part.hole_begin[index]) return -1;
  }
  return part.block_table[index * part.block_table_stride + page];
}

// Rows `begin` .. of sequence `index` of `view`, up to `end`, page by page: whatever for those that
// are not there. `begin` is a page's start, or behind the rows.
Status append_rows(const KvView& view, std::int32_t index, std::int64_t begin, std::int64_t end,
                   SequenceId seq, PagedCache* to) {
  const KvPart& part = view.parts[0];
  static constexpr double kNothing = 0;
  const auto rows = [&](const RowsView& stored, std::int64_t dim, std::int64_t page,
                        std::int64_t slot, std::int64_t count) {
    TensorView made(&kNothing, stored.format.dtype, {count, view.num_kv_heads, dim});
    std::fill_n(made.strides, kMaxRank, 0);
    if (page < 0) return made;
    made.data = stored.page_at(page) + slot * stored.token_stride;
    made.strides[0] = stored.token_stride / size_of(stored.format.dtype);
    made.strides[1] = stored.head_stride / size_of(stored.format.dtype);
    made.strides[2] = 1;
    return made;
  };
  while (begin < end) {
    const std::int64_t slot = begin % part.page_size;
    std::int64_t count = std::min<std::int64_t>(part.page_size - slot, end - begin);
    if (begin < part.lengths[index]) {
      count = std::min<std::int64_t>(count, part.lengths[index] - begin);
    }
    const std::int64_t page = page_of(part, index, begin);
    const Append append{seq, count, {}, {}};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, to->reserve({&append, 1}));
    KVC_RETURN_IF_ERROR(to->write(step, 0, rows(part.k, view.k_head_dim, page, slot, count),
                                  rows(part.v, view.v_head_dim, page, slot, count)));
    KVC_RETURN_IF_ERROR(to->commit(step));
    begin += count;
  }
  return {};
}

// Tokens that the sequences share from their start: whole pages, or all of both.
std::int64_t shared_tokens(const KvPart& part, std::int32_t a, std::int32_t b) {
  const std::int64_t length = std::min(part.lengths[a], part.lengths[b]);
  const std::int32_t* const pages_a = part.block_table + a * part.block_table_stride;
  const std::int32_t* const pages_b = part.block_table + b * part.block_table_stride;
  std::int64_t page = 0;
  while (page * part.page_size < length && pages_a[page] == pages_b[page]) ++page;
  return std::min(page * part.page_size, length);
}

Status copy_one(const KvView& view, std::int32_t index, std::vector<SequenceId>* made,
                PagedCache* to) {
  std::int64_t shared = 0;
  std::int32_t with = 0;
  for (std::int32_t other = 0; other < index; ++other) {
    const std::int64_t tokens = shared_tokens(view.parts[0], index, other);
    if (tokens > shared) {
      shared = tokens;
      with = other;
    }
  }
  Result<SequenceId> seq =
      shared > 0 ? to->fork((*made)[static_cast<std::size_t>(with)], shared) : to->open();
  KVC_RETURN_IF_ERROR(seq.status());
  made->push_back(*seq);
  return append_rows(view, index, shared, view.parts[0].lengths[index], *seq, to);
}

// Whether two sequences have the same pages and have let the same rows go.
bool are_same(const KvPart& part, std::int32_t a, std::int32_t b) {
  const auto equal = [&](const std::int32_t* numbers) {
    return numbers == nullptr || numbers[a] == numbers[b];
  };
  const std::int32_t* const pages_a = part.block_table + a * part.block_table_stride;
  const std::int32_t* const pages_b = part.block_table + b * part.block_table_stride;
  return equal(part.lengths) && equal(part.first_held) && equal(part.hole_begin) &&
         equal(part.hole_pages) && std::equal(pages_a, pages_a + part.block_table_stride, pages_b);
}

// A sequence whose layer lets rows go. What it holds begins at first_held, whatever its length:
// appending up to where the rule says so, and back, makes the copy hold the same.
Status copy_with_hole(const KvView& view, std::int32_t index, const Life& life,
                      std::int64_t rewind_tokens, bool holds, std::vector<SequenceId>* made,
                      PagedCache* to) {
  const KvPart& part = view.parts[0];
  const std::int64_t length = part.lengths[index];
  for (std::int32_t other = 0; other < index; ++other) {
    if (!are_same(part, index, other)) continue;
    KVC_ASSIGN_OR_RETURN(const SequenceId seq,
                         to->fork((*made)[static_cast<std::size_t>(other)], length));
    made->push_back(seq);
    return {};
  }
  KVC_ASSIGN_OR_RETURN(const SequenceId seq, to->open());
  made->push_back(seq);
  const std::int64_t first = part.first_held == nullptr ? 0 : part.first_held[index];
  const std::int64_t behind = life.chunk > 0 ? rewind_tokens : life.window - 1 + rewind_tokens;
  const std::int64_t longest = first == 0 ? 0 : first + behind;  // where the rule says `first`
  KVC_RETURN_IF_ERROR(append_rows(view, index, 0, longest, seq, to));
  KVC_RETURN_IF_ERROR(to->hold_rows(seq, true));
  if (longest > length) {
    KVC_RETURN_IF_ERROR(to->truncate(seq, length));
  } else {
    KVC_RETURN_IF_ERROR(append_rows(view, index, longest, length, seq, to));
  }
  return holds ? Status() : to->hold_rows(seq, false);
}

}  // namespace

Result<std::vector<SequenceId>> copy_sequences(const PagedCache& from,
                                               std::span<const SequenceId> seqs, const Life& life,
                                               std::int64_t rewind_tokens, bool holds,
                                               PagedCache* to) {
  KVC_ASSIGN_OR_RETURN(const OwnedKvView view, from.view(0, seqs));
  const bool keeps_all = life.window == 0 && life.chunk == 0;
  std::vector<SequenceId> made;
  made.reserve(seqs.size());
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    const auto index = static_cast<std::int32_t>(i);
    const Status status =
        keeps_all ? copy_one(view.get(), index, &made, to)
                  : copy_with_hole(view.get(), index, life, rewind_tokens, holds, &made, to);
    if (!status.ok()) {
      for (const SequenceId seq : made) (void)to->release(seq);
      return status;
    }
  }
  return made;
}

void copy_rows(const KvView& view, bool keys, std::int32_t seq, std::int64_t begin,
               const MutableTensorView& rows) noexcept {
  const KvPart& part = view.parts[0];
  const RowsView& stored = keys ? part.k : part.v;
  const std::int64_t element = size_of(rows.dtype);
  const std::int64_t bytes = rows.shape[2] * element;
  const std::int64_t first = part.first_held == nullptr ? 0 : part.first_held[seq];
  const bool is_dense = rows.strides[1] == rows.shape[2] && stored.token_stride == bytes;
  const std::int64_t end = begin + rows.shape[1];
  for (std::int64_t row = begin; row < end;) {
    const bool gone = row >= part.held_sink_tokens && row < first;
    const std::int64_t page = gone ? -1 : page_of(part, seq, row);
    const std::int64_t slot = row % part.page_size;
    std::int64_t count = 1;
    if (is_dense && row >= first && page >= 0) {
      count = std::min(part.page_size - slot, std::min<std::int64_t>(end, part.lengths[seq]) - row);
    }
    for (std::int64_t head = 0; head < rows.shape[0]; ++head) {
      auto* const to = static_cast<std::byte*>(rows.data) +
                       (head * rows.strides[0] + (row - begin) * rows.strides[1]) * element;
      const auto size = static_cast<std::size_t>(count * bytes);
      if (page < 0) {
        std::memset(to, 0, size);
      } else {
        std::memcpy(to, stored.row_at(page, head, slot), size);
      }
    }
    row += count;
  }
}

void copy_dense(const KvView& view, bool keys, const MutableTensorView& rows) noexcept {
  for (std::int32_t seq = 0; seq < view.num_seqs; ++seq) {
    MutableTensorView one = rows;
    one.rank = 3;
    one.data = static_cast<std::byte*>(rows.data) + seq * rows.strides[0] * size_of(rows.dtype);
    std::copy(rows.shape + 1, rows.shape + 4, one.shape);
    std::copy(rows.strides + 1, rows.strides + 4, one.strides);
    copy_rows(view, keys, seq, 0, one);
  }
}

}  // namespace kvcache::python
