// Decoded copies of a layer's rows: what a cache hands out of coded ones, which are no tensors.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_DECODED_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_DECODED_H_

#include <cstdint>
#include <memory>

#include "cache/contiguous/layer.h"
#include "kvcache/executor.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

class DecodedRows {
 public:
  // Room for `length` rows of the coded buffers of a layer. Errors: kOutOfMemory. May throw
  // bad_alloc.
  static Result<std::shared_ptr<DecodedRows>> make(const LayerShape& shape, std::int64_t length,
                                                   MemoryResource& memory);

  // Decodes the rows of a layer, and takes hold of its memory for those that are plain; the bytes
  // it decoded. REQUIRES: a layer of that shape and length.
  std::int64_t fill(const ContiguousLayer& layer, const ExecContext& context) noexcept;

  // All rows of the layer. REQUIRES: filled.
  const KeyValueView& rows() const noexcept { return rows_; }

 private:
  Mapping copies_;
  std::int64_t value_offset_ = 0;
  std::shared_ptr<Mapping> plain_;
  KeyValueView rows_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_DECODED_H_
