// Attention over a KvView with what transformers' attention interface asks for.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_ATTEND_H_
#define KVCACHE_PYTHON_BINDINGS_HF_ATTEND_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

#include "kvcache/attention.h"
#include "kvcache/kv_view.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "python/bindings/arrays.h"

namespace kvcache::python {

// The arrays of one call, and its options, which point into them. Moving keeps the pointers right.
struct HfAttend {
  // first_visible: int32 [B], rows before it do not exist; mask: float32 [B or 1, num_heads or 1,
  // L, S], added; sinks: float32 [num_heads]. Each may be None.
  HfAttend(nanobind::handle query, nanobind::handle out, float scale, bool causal, float softcap,
           std::int32_t window, nanobind::handle first_visible, nanobind::handle mask,
           nanobind::handle sinks);

  // Attends to a view of one part whose rows have `elements` elements. Needs no GIL; the plan is
  // the calling thread's own.
  Status run(const KvView& kv, std::int64_t elements) const;

  TensorView query;       // [B, num_heads, L, Dk]
  MutableTensorView out;  // [B, num_heads, L, Dv]
  AttentionOptions options;

 private:
  Array query_array_, out_array_, first_visible_, mask_, sinks_;
};

// Attention over arrays of the caller: key [B, H, S, Dk] and value [B, H, S, Dv], the elements of a
// row side by side. The rest as HfAttend.
void hf_attend(nanobind::handle query, nanobind::handle key, nanobind::handle value,
               nanobind::handle out, float scale, bool causal, float softcap, std::int32_t window,
               nanobind::handle first_visible, nanobind::handle mask, nanobind::handle sinks);

// "name: found [2, 8, 1, 64] float32, expected ..."
Status wrong_tensor(const std::string& name, const TensorView& found, const std::string& expected);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_ATTEND_H_
