// A build without the runner: Model says what is missing.
#include <string>

#include "python/bindings/errors.h"
#include "python/bindings/model.h"

namespace nb = nanobind;

namespace kvcache::python {
namespace {

struct Absent {};

}  // namespace

void bind_model(nb::module_& module) {
  nb::class_<Absent>(module, "Model",
                     "Language models: not in this build, as the libraries of the runner were not "
                     "found when it was made.\n\nErrors: ImportError, naming them.")
      .def("__init__", [](Absent*, const nb::args&, const nb::kwargs&) {
        raise(PyExc_ImportError,
              std::string("kvcache.Model: found a build without the runner (missing: ") +
                  KVC_RUNNER_MISSING +
                  "), expected PCRE2, utf8proc and nlohmann-json when the package is built "
                  "(Debian: pkg-config libpcre2-dev libutf8proc-dev nlohmann-json3-dev)");
      });
}

}  // namespace kvcache::python
