// Joining finished parts of attention, and the learned sinks. See kvcache/attention.h.
#ifndef KVCACHE_SRC_ATTENTION_MERGE_H_
#define KVCACHE_SRC_ATTENTION_MERGE_H_

#include <span>

#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

// Both may throw bad_alloc while they build a message: call them inside at_door.
Status merge_parts(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                   const TensorView& lse_b, const MutableTensorView& out,
                   const MutableTensorView& lse);

Status finish_parts(const MutableTensorView& out, const TensorView& lse,
                    std::span<const float> sinks);

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_ATTENTION_MERGE_H_
