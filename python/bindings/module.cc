// The extension module of the package `kvcache`.
#include <nanobind/nanobind.h>

#include "python/bindings/attention.h"
#include "python/bindings/batching.h"
#include "python/bindings/errors.h"
#include "python/bindings/functional.h"
#include "python/bindings/hf.h"
#include "python/bindings/info.h"
#include "python/bindings/kv_view.h"
#include "python/bindings/layered.h"
#include "python/bindings/memory.h"
#include "python/bindings/model.h"
#include "python/bindings/paged.h"
#include "python/bindings/prefix.h"

NB_MODULE(_core, module) {
  using namespace kvcache::python;
  module.doc() = "The C++ of the package kvcache.";
  nanobind::set_leak_warnings(false);  // what a program still holds at its end is its own affair
  bind_errors(module);
  bind_info(module);
  bind_memory(module);
  bind_kv_view(module);
  bind_layered(module);
  bind_functional(module);
  bind_batching(module);
  bind_paged(module);
  bind_paged_batch(module);
  bind_prefix(module);
  bind_attention(module);
  bind_hf(module);
  bind_model(module);
}
