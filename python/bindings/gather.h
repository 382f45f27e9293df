// Rows of a layer out of pages: into arrays that are given, or into new ones.
#ifndef KVCACHE_PYTHON_BINDINGS_GATHER_H_
#define KVCACHE_PYTHON_BINDINGS_GATHER_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <functional>

#include "python/bindings/paged.h"

namespace kvcache::python {

// Rows of new arrays: [batch, heads, length, dim], or without the batch where there is none.
struct Extents {
  std::int64_t length = 0;
  std::int64_t batch = -1;
};

// Calls gather(key, value, context) in the cache's turn, and gives the pair: `out`, or new arrays
// of `extents()` as the layer stores them.
nanobind::tuple gather_pair(
    const PyPaged& paged, std::int64_t layer, nanobind::handle out, nanobind::handle executor,
    const std::function<Extents()>& extents,
    const std::function<Status(const MutableTensorView& key, const MutableTensorView& value,
                               const ExecContext& context)>& gather);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_GATHER_H_
