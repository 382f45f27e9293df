// See product.inl.
#include "kernels/cpu/simd/portable.h"

#include "runner/ops/product.inl"

namespace kvcache::runner {

const Products kPortableProducts = {"portable", portable::product<portable::StoredF32>,
                                    portable::product<portable::StoredBf16>,
                                    portable::product<portable::StoredF16>, nullptr};

}  // namespace kvcache::runner
