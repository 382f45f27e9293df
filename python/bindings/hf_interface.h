// The attention that transformers calls: the calls of every layer and token, which have nothing to
// refuse or to convert, without a line of Python.
#ifndef KVCACHE_PYTHON_BINDINGS_HF_INTERFACE_H_
#define KVCACHE_PYTHON_BINDINGS_HF_INTERFACE_H_

#include <nanobind/nanobind.h>

#include "python/bindings/hf_attend.h"
#include "python/bindings/hf_paged.h"

namespace kvcache::python {

// What a tensor that a paged layer handed out stands for: its `kv_source`.
struct Handed {
  nanobind::object source;  // (rows, length, epoch)
  nanobind::handle rows;    // the PagedLayer, held by `source`
  Moment moment;
};

// False for a tensor that stands for nothing, and for the dense one of a view.
bool read_handed(nanobind::handle tensor, Handed* handed);

// Attention over all rows of a layer; None where they are not what they were at that moment.
nanobind::object attend_at(PagedLayer& layer, const Moment& moment, HfAttend call);

void bind_attention_interface(nanobind::module_& hf);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_HF_INTERFACE_H_
