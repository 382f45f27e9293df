// See product.inl.
#include "kernels/cpu/simd/neon.h"

#include "runner/ops/product.inl"

namespace kvcache::runner {

const Products kNeonProducts = {"neon", neon::product<neon::StoredF32>,
                                neon::product<neon::StoredBf16>, neon::product<neon::StoredF16>,
                                nullptr};

}  // namespace kvcache::runner
