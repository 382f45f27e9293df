#include "python/bindings/memory.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/layer_spec.h"
#include "kvcache/memory.h"
#include "kvcache/memory_plan.h"
#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/signatures.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

struct PyThreadPool {
  std::unique_ptr<Executor> executor;
};

CacheKind kind_from(const std::string& name) {
  if (name == "dynamic") return CacheKind::kDynamic;
  if (name == "static") return CacheKind::kStatic;
  if (name == "paged") return CacheKind::kPaged;
  raise(PyExc_ValueError, "kind: found " + name + ", expected dynamic, static or paged");
}

PlannedBytes plan(const std::string& kind, const std::vector<LayerSpec>& layers,
                  std::int64_t batch_size, std::int64_t seq_length, std::int64_t max_length,
                  std::int64_t page_size, std::int64_t num_pages, GivenLayout layout) {
  MemoryPlanRequest request;
  request.layers = layers;
  request.batch_size = batch_size;
  request.seq_length = seq_length;
  request.max_length = max_length;
  request.page_size = page_size;
  request.num_pages = num_pages;
  request.layout = layout_from(layout);
  return take(plan_memory(kind_from(kind), request));
}

DType floating(nb::handle object, const char* name) {
  const auto dtype = dtype_from(object, name);
  return dtype.value_or(DType::kF32);
}

std::int64_t token_bytes(const LayerSpec& spec) {
  MemoryPlanRequest request;
  request.layers = std::span(&spec, 1);
  request.seq_length = 1;
  (void)take(plan_memory(CacheKind::kDynamic, request));
  return bytes_per_token(spec);
}

void bind_spec(nb::module_& module) {
  nb::class_<LayerSpec>(module, "LayerSpec",
                        "What one layer stores per token: num_kv_heads rows of k_head_dim and "
                        "v_head_dim elements.\n\nv_head_dim defaults to k_head_dim, v_dtype to "
                        "k_dtype.")
      .def(
          "__init__",
          [](LayerSpec* self, std::int64_t num_kv_heads, std::int64_t k_head_dim,
             std::optional<std::int64_t> v_head_dim, GivenDType k_dtype, GivenDType v_dtype) {
            const DType k = floating(k_dtype, "k_dtype");
            const DType v = v_dtype.is_none() ? k : floating(v_dtype, "v_dtype");
            new (self) LayerSpec(LayerSpec::kv(
                num_kv_heads, k_head_dim, v_head_dim.value_or(k_head_dim), plain(k), plain(v)));
          },
          "num_kv_heads"_a, "k_head_dim"_a, "v_head_dim"_a = nb::none(), "k_dtype"_a = "float32",
          "v_dtype"_a = nb::none())
      .def_prop_ro("num_kv_heads", [](const LayerSpec& s) { return s.key().heads; })
      .def_prop_ro("k_head_dim", [](const LayerSpec& s) { return s.key().dim; })
      .def_prop_ro("v_head_dim", [](const LayerSpec& s) { return s.value().dim; })
      .def_prop_ro("k_dtype", [](const LayerSpec& s) { return python_name(s.key().format.dtype); })
      .def_prop_ro("v_dtype",
                   [](const LayerSpec& s) { return python_name(s.value().format.dtype); })
      .def_prop_ro("bytes_per_token", &token_bytes,
                   "K and V together.\n\nErrors: ValueError for sizes that no cache could have.")
      .def(
          "__eq__", [](const LayerSpec& a, const LayerSpec& b) { return a == b; },
          nb::is_operator(), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__",
           [](const LayerSpec& s) {
             return nb::hash(nb::make_tuple(s.key().heads, s.key().dim, s.value().dim,
                                            static_cast<int>(s.key().format.dtype),
                                            static_cast<int>(s.value().format.dtype)));
           })
      .def("__repr__", [](const LayerSpec& s) {
        return "LayerSpec(num_kv_heads=" + std::to_string(s.key().heads) +
               ", k_head_dim=" + std::to_string(s.key().dim) +
               ", v_head_dim=" + std::to_string(s.value().dim) +
               ", k_dtype=" + python_name(s.key().format.dtype) +
               ", v_dtype=" + python_name(s.value().format.dtype) + ")";
      });
}

}  // namespace

ExecContext context_from(nb::handle executor) {
  ExecContext context;
  if (executor.is_none()) return context;
  if (!nb::isinstance<PyThreadPool>(executor)) {
    raise(PyExc_TypeError, std::string("executor: found ") +
                               nb::type_name(executor.type()).c_str() + ", expected a ThreadPool");
  }
  context.executor = nb::cast<const PyThreadPool&>(executor).executor.get();
  return context;
}

void bind_memory(nb::module_& module) {
  bind_spec(module);
  nb::class_<LimitedMemory>(module, "LimitedMemory",
                            "Memory of the system that refuses commits past limit_bytes in total: "
                            "MemoryError in the caches\nthat use it, which stay as they were.")
      .def(nb::new_([](std::int64_t limit_bytes) {
             return std::make_shared<LimitedMemory>(limit_bytes);
           }),
           "limit_bytes"_a)
      .def_prop_ro("committed_bytes", &LimitedMemory::committed_bytes)
      .def("__repr__", [](const LimitedMemory& self) {
        return "LimitedMemory(committed_bytes=" + std::to_string(self.committed_bytes()) + ")";
      });
  nb::class_<PyThreadPool>(module, "ThreadPool",
                           "Threads of its own for the calls that take an executor, the caller "
                           "included.\n\nErrors: ValueError outside 1 .. 1024.")
      .def(
          "__init__",
          [](PyThreadPool* self, std::int32_t num_threads) {
            new (self) PyThreadPool{take(make_thread_pool(num_threads))};
          },
          "num_threads"_a)
      .def_prop_ro("concurrency",
                   [](const PyThreadPool& self) { return self.executor->concurrency(); })
      .def("__repr__", [](const PyThreadPool& self) {
        return "ThreadPool(" + std::to_string(self.executor->concurrency()) + ")";
      });
  nb::class_<PlannedBytes>(module, "PlannedBytes", "What plan_memory() found.")
      .def_ro("nbytes", &PlannedBytes::nbytes, "Rows stored.")
      .def_ro("reserved_bytes", &PlannedBytes::reserved_bytes, "Held for them.")
      .def_ro("num_pages", &PlannedBytes::num_pages, "Paged: pages taken, over all groups.")
      .def("__repr__", [](const PlannedBytes& self) {
        return "PlannedBytes(nbytes=" + std::to_string(self.nbytes) +
               ", reserved_bytes=" + std::to_string(self.reserved_bytes) +
               ", num_pages=" + std::to_string(self.num_pages) + ")";
      });
  module.def("plan_memory", &plan, "kind"_a, "layers"_a, nb::kw_only(), "batch_size"_a = 1,
             "seq_length"_a = 0, "max_length"_a = 0, "page_size"_a = 16, "num_pages"_a = 0,
             "layout"_a = "hnd",
             "What a fresh cache weighs when it is filled by appends to seq_length tokens, equal "
             "to the byte to what it\nreports then.\n\nkind: \"dynamic\", \"static\" (of capacity "
             "max_length) or \"paged\"; layers: a list of LayerSpec.\nErrors: ValueError for sizes "
             "that no cache could have.");
}

}  // namespace kvcache::python
