// The absence of a library.
#include "runner/ops/matmul.h"

#if !KVC_HAVE_ONEDNN

namespace kvcache::runner {

bool matmul(const float*, std::int64_t, const float*, std::int64_t, std::int64_t, float*) {
  return false;
}

bool matmul_bf16(const std::uint16_t*, std::int64_t, const std::uint16_t*, std::int64_t,
                 std::int64_t, float*) {
  return false;
}

bool matmul_has_f32() { return false; }

bool matmul_has_bf16() { return false; }

const char* matmul_backend() { return "ours"; }

}  // namespace kvcache::runner

#endif  // !KVC_HAVE_ONEDNN
