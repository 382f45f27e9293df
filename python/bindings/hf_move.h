// Sequences that move to another pool: how a paged layer of transformers grows past its own.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_MOVE_H_
#define KVCACHE_PYTHON_BINDINGS_HF_MOVE_H_

#include <span>
#include <vector>

#include "kvcache/paged_cache.h"
#include "kvcache/status.h"
#include "kvcache/types.h"

namespace kvcache::python {

// Copies sequences of one layer, all of one length, to `to`, whose layer has the same spec and
// whose pages have the same size. Pages that they share at their start are shared there, too: each
// is copied once. Errors: those of reserve; nothing is left in `to`.
Result<std::vector<SequenceId>> copy_sequences(const PagedCache& from,
                                               std::span<const SequenceId> seqs, PagedCache* to);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_MOVE_H_
