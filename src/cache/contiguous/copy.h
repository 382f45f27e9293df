// Storing and reading many rows, on an executor once they are enough to pay for it.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_

#include <cstdint>

#include "kvcache/executor.h"
#include "kvcache/row_format.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "tensor/codecs/coded_block.h"
#include "tensor/row_copy.h"

namespace kvcache::internal {

// RowKernels::store of the selected backend, cut over the three outer axes.
void store_rows_on(const ExecContext& context, const RowCopy& copy) noexcept;

// The rows of one batch row of a tensor of rank 4, all tokens, as what is encoded or decoded; where
// the codes lie is for set_codes() to say. Const is put back by the direction of the copy.
CodedBlock coded_block(const TensorView& rows, Layout layout, const RowFormat& format,
                       std::int64_t batch) noexcept;

// Its RowKernels::encode and decode, cut over tokens; and RowKernels::refused, which looks at the
// caller's rows alone.
void encode_block_on(const ExecContext& context, const CodedBlock& block) noexcept;
void decode_block_on(const ExecContext& context, const CodedBlock& block) noexcept;
std::int64_t first_refused_on(const ExecContext& context, const CodedBlock& block) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_COPY_H_
