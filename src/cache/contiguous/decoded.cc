#include "cache/contiguous/decoded.h"

#include "base/checked_math.h"
#include "base/door.h"
#include "tensor/strides.h"

namespace kvcache::internal {
namespace {

// Bytes of a decoded copy of `length` rows; 0 of a plain buffer. False on overflow.
bool copy_bytes(const LayerShape& shape, std::int32_t buffer, std::int64_t length,
                std::int64_t* bytes) noexcept {
  const BufferSpec& spec = shape.spec.buffers[buffer];
  *bytes = 0;
  if (!spec.format.is_coded()) return true;
  return checked_product({shape.batch, spec.heads, length, spec.dim}, bytes) &&
         checked_mul(*bytes, size_of(spec.format.dtype), bytes);
}

}  // namespace

Result<std::shared_ptr<DecodedRows>> DecodedRows::make(const LayerShape& shape, std::int64_t length,
                                                       MemoryResource& memory) {
  auto decoded = std::make_shared<DecodedRows>();
  std::int64_t values = 0, bytes = 0;
  if (!copy_bytes(shape, 0, length, &decoded->value_offset_) ||
      !copy_bytes(shape, 1, length, &values) ||
      !checked_add(decoded->value_offset_, values, &bytes)) {
    return out_of_memory();
  }
  if (bytes == 0) return decoded;
  KVC_ASSIGN_OR_RETURN(decoded->copies_.region, memory.reserve(bytes));
  decoded->copies_.memory = &memory;
  KVC_RETURN_IF_ERROR(memory.commit(decoded->copies_.region, bytes));
  decoded->copies_.committed = bytes;
  return decoded;
}

std::int64_t DecodedRows::fill(const ContiguousLayer& layer, const ExecContext& context) noexcept {
  const LayerShape& shape = layer.shape();
  plain_ = layer.mapping();
  rows_ = layer.rows();
  std::int64_t decoded = 0;
  TensorView* const views[] = {&rows_.key, &rows_.value};
  for (std::int32_t b = 0; b < shape.spec.num_buffers; ++b) {
    const BufferSpec& spec = shape.spec.buffers[b];
    if (!spec.format.is_coded()) continue;
    const bool by_head = shape.layout == Layout::kHND;
    const std::int64_t length = layer.length();
    MutableTensorView copy(
        copies_.region.data + (b == 0 ? 0 : value_offset_), spec.format.dtype,
        {shape.batch, by_head ? spec.heads : length, by_head ? length : spec.heads, spec.dim});
    if (length > 0) layer.decode(b, copy, context);
    *views[b] = copy;
    decoded += copy.num_elements() * size_of(copy.dtype);
  }
  return decoded;
}

}  // namespace kvcache::internal
