#include "python/bindings/gather.h"

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/memory.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;

namespace kvcache::python {
namespace {

// `out`, or new arrays of `extents()` as the layer stores them.
std::pair<nb::object, nb::object> pair_for(const PyPaged& paged, std::int64_t layer, nb::handle out,
                                           const std::function<Extents()>& extents) {
  if (out.is_none()) {
    const auto num_layers = static_cast<std::int64_t>(paged.config.core.layers.size());
    if (layer < 0 || layer >= num_layers) {
      raise(PyExc_IndexError, "layer: found " + std::to_string(layer) + ", expected 0 .. " +
                                  std::to_string(num_layers - 1));
    }
    const Extents found = extents();
    const LayerSpec& spec = paged.config.core.layers[static_cast<std::size_t>(layer)];
    const auto make = [&](const BufferSpec& buffer) {
      std::array<std::int64_t, 4> shape = {found.batch, spec.key().heads, found.length, buffer.dim};
      if (paged.config.core.layout == Layout::kNHD) std::swap(shape[1], shape[2]);
      const int skipped = found.batch < 0 ? 1 : 0;
      return new_array(paged.framework, buffer.format.dtype, shape.data() + skipped, 4 - skipped);
    };
    return {make(spec.key()), make(spec.value())};
  }
  if (!nb::isinstance<nb::sequence>(out) || nb::len(out) != 2) {
    raise(PyExc_TypeError, std::string("out: found ") + nb::type_name(out.type()).c_str() +
                               ", expected a pair (key, value) of arrays");
  }
  return {out[0], out[1]};
}

}  // namespace

nb::tuple gather_pair(const PyPaged& paged, std::int64_t layer, nb::handle out, nb::handle executor,
                      const std::function<Extents()>& extents,
                      const std::function<Status(const MutableTensorView&, const MutableTensorView&,
                                                 const ExecContext&)>& gather) {
  const auto [key, value] = pair_for(paged, layer, out, extents);
  const Array key_array("key", key);
  const Array value_array("value", value);
  const MutableTensorView key_view = key_array.writable("key");
  const MutableTensorView value_view = value_array.writable("value");
  const ExecContext context = context_from(executor);
  Status status;
  {
    const Turn turn(paged.mutex);
    const Unlocked unlocked(key_view.num_elements() + value_view.num_elements());
    status = gather(key_view, value_view, context);
  }
  check(status);
  return nb::make_tuple(key, value);
}

}  // namespace kvcache::python
