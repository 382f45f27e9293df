// Mask: what a caller says about which keys are seen. None, a rule by its name, or a tensor.
#ifndef KVCACHE_MASK_H_
#define KVCACHE_MASK_H_

#include <cstdint>
#include <string_view>

#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

enum class MaskKind : std::uint8_t {
  kNone = 0,
  kCausal = 1,    // query i of L over S keys sees key j if j <= i + (S - L)
  kAdditive = 2,  // `tensor` is added to the scores; -inf: unseen
};

// A value that owns nothing: `tensor` views the caller's memory.
struct Mask {
  MaskKind kind = MaskKind::kNone;
  TensorView tensor;  // of kAdditive

  Mask() = default;
  // An additive tensor; an undefined one is no mask.
  Mask(const TensorView& additive)  // NOLINT: implicit
      : kind(additive.defined() ? MaskKind::kAdditive : MaskKind::kNone), tensor(additive) {}

  static Mask causal() noexcept {
    Mask mask;
    mask.kind = MaskKind::kCausal;
    return mask;
  }

  // A rule by its name: "causal". Errors: kInvalidArgument for any other.
  KVC_API static Result<Mask> named(std::string_view name);
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_MASK_H_
