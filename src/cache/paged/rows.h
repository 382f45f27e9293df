// Copying rows into pages and out of them.
#ifndef KVCACHE_SRC_CACHE_PAGED_ROWS_H_
#define KVCACHE_SRC_CACHE_PAGED_ROWS_H_

#include <cstdint>
#include <span>

#include "cache/paged/store.h"
#include "kvcache/executor.h"
#include "kvcache/paged_cache.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

// Whether the new rows of one layer of `step` can be stored as the layer's formats say, k
// [num_new_tokens, num_kv_heads, k_head_dim] and v likewise. Errors: kInvalidArgument naming the
// sequence and token of a row that cannot. May throw bad_alloc while it builds a message.
Status check_rows(const PagedStore& store, const PagedStep& step, std::int64_t layer,
                  const TensorView& k, const TensorView& v, const ExecContext& context);

// Stores the new rows of one layer of `step`, k [num_new_tokens, num_kv_heads, k_head_dim] and v
// likewise, converted to the layer's format; the first time also the committed rows of the tails
// that the step copies. Allocates nothing.
// REQUIRES: usable floating tensors of those shapes, and check_rows() passed.
void write_rows(PagedStore& store, PagedStep& step, std::int64_t layer, const TensorView& k,
                const TensorView& v, const ExecContext& context) noexcept;

// Encodes what becomes coded where newest rows stay plain, once `accepted` of the step's tokens are
// committed: into the room that the step took for it. Allocates nothing. REQUIRES: check_commit()
// passed, and commit() of the same follows.
void encode_rows(PagedStore& store, PagedStep& step, std::span<const std::int64_t> accepted,
                 const ExecContext& context) noexcept;

// Committed rows of `seq` that one layer holds, coded or plain.
std::int64_t rows_held(const PagedStore& store, const PagedSequence& seq,
                       std::int64_t layer) noexcept;

// Copies the committed rows of `seq` that one layer holds to key and value, decoded, the sinks
// first, in the axis order of the store's layout, [H, S, D] or [S, H, D]. REQUIRES: usable floating
// tensors of those shapes.
void gather_rows(const PagedStore& store, const PagedSequence& seq, std::int64_t layer,
                 const MutableTensorView& key, const MutableTensorView& value,
                 const ExecContext& context) noexcept;

// The same of sequence `index` of a step, with the step's rows behind. REQUIRES: the layer was
// written, or the step has no rows.
void gather_rows(const PagedStore& store, const PagedStep& step, std::size_t index,
                 std::int64_t layer, const MutableTensorView& key, const MutableTensorView& value,
                 const ExecContext& context) noexcept;

// The same rows of one buffer of a layer as they are stored. REQUIRES: a coded buffer. May throw
// bad_alloc.
RowCodes gather_codes(const PagedStore& store, const PagedSequence& seq, std::int64_t layer,
                      std::int32_t buffer);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PAGED_ROWS_H_
