// Rows that leave a pool: sequences that move to another one, which is how a paged layer of
// transformers grows past its own, and dense copies.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_MOVE_H_
#define KVCACHE_PYTHON_BINDINGS_HF_MOVE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/kv_view.h"
#include "kvcache/layer_spec.h"
#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"

namespace kvcache::python {

// Copies sequences of one layer, all of one length and in no step, to `to`, whose layer has the
// same spec and whose pages have the same size. Pages that they share at their start are shared
// there, too: each is copied once. Where the layer lets rows go (`life`, `rewind_tokens`), only
// sequences that share all of them do, and what is gone stays gone; `holds`: they hold their rows
// from here on. Errors: those of reserve; nothing is left in `to`.
Result<std::vector<SequenceId>> copy_sequences(const PagedCache& from,
                                               std::span<const SequenceId> seqs, const Life& life,
                                               std::int64_t rewind_tokens, bool holds,
                                               PagedCache* to);

// The rows of a view as [B, H, S, D] of its own types: zeros for what is gone. REQUIRES: a view of
// one part, of sequences of S rows.
void copy_dense(const KvView& view, bool keys, const MutableTensorView& rows) noexcept;

// Rows `begin` .. of one of its sequences as [H, n, D], likewise. REQUIRES: of the view as above,
// plain rows.
void copy_rows(const KvView& view, bool keys, std::int32_t seq, std::int64_t begin,
               const MutableTensorView& rows) noexcept;

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_MOVE_H_
