// Attention over a KvView with what transformers' attention interface asks for.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_ATTEND_H_
#define KVCACHE_PYTHON_BINDINGS_HF_ATTEND_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <string>

#include "kvcache/attention.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "python/bindings/arrays.h"
#include "python/bindings/signatures.h"

namespace kvcache::python {

// The torch tensor, for C++ to read. Errors: TypeError for what is none, NotImplementedError for
// one that autograd would follow.
nanobind::object without_gradient(const char* name, nanobind::handle tensor);

// A floating tensor of torch, for C++ to read. Errors: those of without_gradient() and
// Array::view(). The tensor outlives it.
class GivenRows {
 public:
  // `name`: of the tensor; `caller`: what the caller calls it.
  GivenRows(const char* name, const char* caller, nanobind::handle tensor);
  explicit GivenRows(const TensorView& plain) noexcept : view_(plain) {}
  const TensorView& view() const noexcept { return view_; }

 private:
  std::unique_ptr<Array> array_;  // of a tensor that is not plain
  TensorView view_;
};

// The arrays of one call, and its options, which point into them. Moving keeps the pointers right.
struct HfAttend {
  // window, chunk: of AttentionOptions. first_visible: int32 [B], rows before it do not exist;
  // mask: float32 [B or 1, num_heads or 1, L, S], added; sinks: float32 [num_heads]; lse: float32
  // [B, num_heads, L], written. Each may be None.
  HfAttend(nanobind::handle query, float scale, bool causal, float softcap, std::int32_t window,
           std::int32_t chunk, nanobind::handle first_visible, nanobind::handle mask,
           nanobind::handle sinks, nanobind::handle lse);

  // The same of what was read already: no mask, sinks and lse. first_visible: dense [B], or null.
  // Errors: ValueError for another rank than 4.
  HfAttend(GivenRows query, const AttentionOptions& options, const std::int32_t* first_visible);

  // Room for the result, which stays unset: [B, L, num_heads, Dv] of the query's type, as
  // transformers wants it.
  nanobind::object new_out(std::int64_t v_head_dim);

  // Attends to a view of one part whose rows have `elements` elements. Needs no GIL; the plan is
  // the calling thread's own. REQUIRES: new_out().
  Status run(const KvView& kv, std::int64_t elements) const;

  TensorView query;  // [B, num_heads, L, Dk]
  AttentionOptions options;

 private:
  struct Arrays {
    Array first_visible, mask, sinks, lse;
  };

  GivenRows rows_;         // of query
  MutableTensorView out_;  // [B, num_heads, L, Dv]
  MutableTensorView lse_;  // [B, num_heads, L] or undefined
  const std::int32_t* first_visible_ = nullptr;
  std::unique_ptr<Arrays> arrays_;
};

// Attention over arrays of the caller: key [B, H, S, Dk] and value [B, H, S, Dv], the elements of a
// row side by side. The rest as HfAttend; what new_out() gave comes back.
LikeTensor hf_attend(GivenTensor query, GivenArray key, GivenArray value, float scale, bool causal,
                     float softcap, std::int32_t window, std::int32_t chunk,
                     GivenArray first_visible, GivenArray mask, GivenArray sinks, GivenArray lse);

// "name: found [2, 8, 1, 64] float32, expected ..."
Status wrong_tensor(const std::string& name, const TensorView& found, const std::string& expected);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_ATTEND_H_
