#include "python/bindings/hf_move.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace kvcache::python {
namespace {

// Rows [begin, begin + count) of page `page`, as [count, heads, dim].
TensorView rows_of_page(const RowsView& stored, std::int64_t heads, std::int64_t dim,
                        std::int64_t page, std::int64_t count) {
  TensorView rows(stored.page_at(page), stored.format.dtype, {count, heads, dim});
  rows.strides[0] = stored.token_stride / size_of(stored.format.dtype);
  rows.strides[1] = stored.head_stride / size_of(stored.format.dtype);
  return rows;
}

// Appends rows `begin` .. of sequence `index` of `view`, page by page. `begin` is a page's start.
Status append_rows(const KvView& view, std::int32_t index, std::int64_t begin, SequenceId seq,
                   PagedCache* to) {
  const KvPart& part = view.parts[0];
  const std::int64_t length = part.lengths[index];
  const std::int32_t* const pages = part.block_table + index * part.block_table_stride;
  while (begin < length) {
    const std::int64_t count = std::min<std::int64_t>(part.page_size, length - begin);
    const std::int64_t page = pages[begin / part.page_size];
    const Append append{seq, count, {}, {}};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, to->reserve({&append, 1}));
    KVC_RETURN_IF_ERROR(
        to->write(step, 0, rows_of_page(part.k, view.num_kv_heads, view.k_head_dim, page, count),
                  rows_of_page(part.v, view.num_kv_heads, view.v_head_dim, page, count)));
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
  return append_rows(view, index, shared, *seq, to);
}

}  // namespace

Result<std::vector<SequenceId>> copy_sequences(const PagedCache& from,
                                               std::span<const SequenceId> seqs, PagedCache* to) {
  KVC_ASSIGN_OR_RETURN(const OwnedKvView view, from.view(0, seqs));
  std::vector<SequenceId> made;
  made.reserve(seqs.size());
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    Status status = copy_one(view.get(), static_cast<std::int32_t>(i), &made, to);
    if (!status.ok()) {
      for (const SequenceId seq : made) (void)to->release(seq);
      return status;
    }
  }
  return made;
}

}  // namespace kvcache::python
