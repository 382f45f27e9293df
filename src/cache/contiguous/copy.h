// Storing many rows, on an executor once it is large enough to pay for it.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_

#include "kvcache/executor.h"
#include "tensor/row_copy.h"

namespace kvcache::internal {

// RowKernels::store of the selected backend, cut over the three outer axes.
void store_rows_on(const ExecContext& context, const RowCopy& copy) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_
