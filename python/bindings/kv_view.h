// KvView in Python: the seam, together with whatever keeps its memory.
#ifndef KVCACHE_PYTHON_BINDINGS_KV_VIEW_H_
#define KVCACHE_PYTHON_BINDINGS_KV_VIEW_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "kvcache/kv_view.h"
#include "kvcache/tensor_view.h"
#include "kvcache/types.h"
#include "python/bindings/arrays.h"

namespace kvcache::python {

struct PyKvView {
  explicit PyKvView(OwnedKvView owned) noexcept : view(std::move(owned)) {}

  OwnedKvView view;
  std::shared_ptr<const void> rows;     // keeps rows of ours mapped
  nanobind::object keep;                // a PagedCache, or the views that were joined
  std::vector<Array> arrays;            // the caller's own memory
  std::vector<std::int32_t> qo_indptr;  // of an open step: the queries that go with its rows

  std::int64_t elements() const noexcept;  // K and V elements of all rows, 2^62 at most
  // Errors: ValueError if an array of the caller's has been given other memory since.
  void expect_memory() const;
};

void bind_kv_view(nanobind::module_& module);

// A view over two arrays of the caller's. Errors: ValueError.
PyKvView view_of_arrays(nanobind::handle key, nanobind::handle value, Layout layout);

// What attention may be given as `kv`: a view, a layered cache or its layer, a functional state, a
// pair of arrays. Holds or makes the view. Errors: TypeError, and those of the cache.
class KvArgument {
 public:
  KvArgument(nanobind::handle object, std::int64_t layer, Layout layout);
  const PyKvView& get() const noexcept { return *view_; }

 private:
  std::unique_ptr<PyKvView> made_;
  const PyKvView* view_ = nullptr;
};

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_KV_VIEW_H_
