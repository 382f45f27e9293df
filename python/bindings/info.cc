#include "python/bindings/info.h"

#include <nanobind/stl/string.h>

#include "kvcache/backend.h"
#include "kvcache/version.h"
#include "python/bindings/errors.h"
#include "python/bindings/signatures.h"

namespace nb = nanobind;

namespace kvcache::python {
namespace {

constexpr char kInfo[] = "kvcache.typing.Info";

Made<kInfo> info() {
  nb::list listed;
  for (const BackendInfo& backend : take(backends())) {
    nb::dict one;
    one["name"] = backend.name;
    one["description"] = backend.description;
    one["device"] = backend.device.kind == DeviceKind::kCuda ? "cuda" : "cpu";
    one["available"] = backend.available;
    one["reason"] = backend.reason;
    one["selected"] = backend.selected;
    listed.append(one);
  }
  nb::dict all;
  all["version"] = version();
  all["cpu"] = take(cpu_description());
  all["backend"] = take(selected_backend());
  all["backends"] = listed;
  return all;
}

}  // namespace

std::string backend_name() { return take(selected_backend()); }

void bind_info(nb::module_& module) {
  module.attr("__version__") = version();
  // Reads the environment now, under the GIL, where no thread of Python's can change it meanwhile.
  (void)selected_backend();
  module.def("info", &info,
             "The version, the processor, the backend that attention uses when none is named, and "
             "all backends with\nthe reason why each can or cannot run here. "
             "KVCACHE_BACKEND is "
             "read when kvcache is imported.\n\n"
             "Errors: OSError for a KVCACHE_BACKEND that is unknown or does not run here.");
}

}  // namespace kvcache::python
