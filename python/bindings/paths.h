// Names of files from Python, and the errors of calls about files.
#ifndef KVCACHE_PYTHON_BINDINGS_PATHS_H_
#define KVCACHE_PYTHON_BINDINGS_PATHS_H_

#include <nanobind/nanobind.h>

#include <string>
#include <utility>

#include "python/bindings/errors.h"
#include "python/bindings/signatures.h"

namespace kvcache::python {

namespace said {
inline constexpr char kPath[] = "kvcache.typing.Path";
inline constexpr char kBytes[] = "bytes";
inline constexpr char kBytesOrNone[] = "bytes | None";
}  // namespace said
using GivenPath = Given<said::kPath>;
using GivenBytes = Given<said::kBytes>;
using GivenBytesOrNone = Given<said::kBytesOrNone>;

// Of a str, bytes or anything with __fspath__. Errors: TypeError.
inline std::string path_from(nanobind::handle path) {
  PyObject* bytes = nullptr;
  if (PyUnicode_FSConverter(path.ptr(), &bytes) == 0) throw nanobind::python_error();
  const nanobind::object owned = nanobind::steal(bytes);
  return {PyBytes_AS_STRING(bytes), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes))};
}

// A missing file is FileNotFoundError, as everywhere in Python; the message begins with its name.
inline void check_file(const Status& status, const std::string& path) {
  if (status.code() == StatusCode::kNotFound && status.message().starts_with(path)) {
    raise(PyExc_FileNotFoundError, status.message());
  }
  check(status);
}

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_PATHS_H_
