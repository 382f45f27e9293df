// A copy of many rows, on an executor once it is large enough to pay for it.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_

#include "kvcache/executor.h"
#include "tensor/convert.h"

namespace kvcache::internal {

// copy_rows, cut over its three outer axes.
void copy_rows_on(const ExecContext& context, const RowCopy& copy) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_
