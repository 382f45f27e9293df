// Attention in Python: attend, plan, merge, finish.
#ifndef KVCACHE_PYTHON_BINDINGS_ATTENTION_H_
#define KVCACHE_PYTHON_BINDINGS_ATTENTION_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvcache/attention.h"
#include "python/bindings/arrays.h"
#include "python/bindings/signatures.h"

namespace kvcache::python {

void bind_attention(nanobind::module_& module);

// AttentionOptions together with what its pointers point to. Moving keeps the pointers right.
struct Options {
  AttentionOptions core;
  std::vector<float> alibi_slopes, sinks;
  Array mask_array;                // read in place
  std::vector<float> mask_values;  // or converted
  bool names_causal = false;       // the mask was that word
  std::string backend;

  // [num_heads] numbers each. Errors: ValueError for another count or type.
  void set_alibi_slopes(nanobind::handle object, std::int64_t num_heads);
  void set_sinks(nanobind::handle object, std::int64_t num_heads);
  // None, "causal", or [L, S], [num_heads or 1, L, S], [B or 1, num_heads or 1, L, S]; float32 is
  // read in place, booleans (true: seen) and other floating types are converted. Errors: ValueError
  // for other types and words, and for "causal" where `core` is not. REQUIRES: core.causal is set.
  void set_mask(nanobind::handle object);
  void set_backend(const std::optional<std::string>& name);
};

// Where results go: arrays of the caller, or new ones.
struct Results {
  nanobind::object out, lse;
  Array out_array, lse_array;

  // `lse` is True, False, None or an array. Shapes of new arrays: those of `q` with v_head_dim.
  Results(nanobind::handle out_given, nanobind::handle lse_given, const Array& q,
          std::int64_t v_head_dim, bool partial);
  MutableTensorView out_view() const { return out_array.writable("out"); }
  MutableTensorView lse_view() const;
  Attended give() const;  // out, or (out, lse)
};

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_ATTENTION_H_
