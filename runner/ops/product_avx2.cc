// See product.inl.
#include "kernels/cpu/simd/avx2.h"

#include "runner/ops/product.inl"

namespace kvcache::runner {

const Products kAvx2Products = {"avx2", avx2::product<avx2::StoredF32>,
                                avx2::product<avx2::StoredBf16>, avx2::product<avx2::StoredF16>,
                                nullptr};

}  // namespace kvcache::runner
