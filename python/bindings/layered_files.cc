// The layered caches in files and as bytes from Python, and what they are made of.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/cache_file.h"
#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/frameworks.h"
#include "python/bindings/layered.h"
#include "python/bindings/memory.h"
#include "python/bindings/paths.h"
#include "python/bindings/prefix.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

void save(const PyCache& self, GivenPath path, GivenBytes name, std::int64_t tenant) {
  const PrefixNamespace space = space_from(name, tenant);
  const std::string file = path_from(path);
  Status status;
  {
    const Turn turn(self.mutex);
    const Unlocked unlocked(kLongCall);
    status = CacheFile::save(*self.cache, file, space);
  }
  check_file(status, file);
}

void load(PyCache& self, GivenPath path, GivenBytes name, std::int64_t tenant) {
  const PrefixNamespace space = space_from(name, tenant);
  const std::string file = path_from(path);
  Status status;
  {
    const Turn turn(self.mutex);
    const Unlocked unlocked(kLongCall);
    status = CacheFile::load(*self.cache, file, space);
  }
  check_file(status, file);
}

nb::bytes to_bytes(const PyCache& self, GivenBytes name, std::int64_t tenant) {
  const PrefixNamespace space = space_from(name, tenant);
  Result<std::vector<std::byte>> bytes = std::vector<std::byte>();
  {
    const Turn turn(self.mutex);
    const Unlocked unlocked(kLongCall);
    bytes = CacheFile::to_bytes(*self.cache, space);
  }
  const std::vector<std::byte> made = take(std::move(bytes));
  return nb::bytes(made.data(), made.size());
}

void from_bytes(PyCache& self, nb::bytes bytes, GivenBytes name, std::int64_t tenant) {
  const PrefixNamespace space = space_from(name, tenant);
  const std::span<const std::byte> given(static_cast<const std::byte*>(bytes.data()), bytes.size());
  Status status;
  {
    const Turn turn(self.mutex);
    const Unlocked unlocked(kLongCall);
    status = [&]() -> Status {
      KVC_ASSIGN_OR_RETURN(const CacheFile file, CacheFile::over(given));
      return file.load(*self.cache, space);
    }();
  }
  check(status);
}

std::optional<std::string> dtype(const PyCache& self) {
  if (!self.dtype) return std::nullopt;
  return python_name(*self.dtype);
}

}  // namespace

void bind_layered_files(nb::class_<PyCache>& cache) {
  cache
      .def(
          "save", &save, "path"_a, nb::kw_only(), "namespace"_a = nb::bytes("", 0), "tenant"_a = 0,
          "Writes the rows of all layers to a file. namespace, at most 32 bytes, stands for what "
          "decides the rows of a\ntoken: a file of another one is refused. The file is the old one "
          "or the new one at every moment.\n\nErrors: OSError; the old file is as it was.")
      .def(
          "load", &load, "path"_a, nb::kw_only(), "namespace"_a = nb::bytes("", 0), "tenant"_a = 0,
          "What a file has takes the place of all rows, bit for bit, whatever layout it was "
          "written "
          "from.\n\nErrors: FileNotFoundError, OSError; ValueError for another namespace, dtype or "
          "form, and a file that is damaged,\nIndexError past the capacity or the layers of a "
          "static "
          "cache; NotImplementedError for another version or\nkind; MemoryError. Nothing has "
          "changed then.")
      .def("to_bytes", &to_bytes, nb::kw_only(), "namespace"_a = nb::bytes("", 0), "tenant"_a = 0,
           "What save would write, as bytes: to be sent, or kept elsewhere.")
      .def("from_bytes", &from_bytes, "bytes"_a, nb::kw_only(), "namespace"_a = nb::bytes("", 0),
           "tenant"_a = 0, "load of what to_bytes gave.")
      .def_prop_ro("dtype", &dtype, "Of the stored rows; None: that of the first update.")
      .def_prop_ro(
          "reserve_tokens", [](const PyCache& self) { return self.reserve_tokens; },
          "Tokens of a row that address space is reserved for; 0 of a static cache.")
      .def_prop_ro(
          "k_format", [](const PyCache& self) { return self.k_format; },
          "Form of coded keys; None: plain.")
      .def_prop_ro(
          "v_format", [](const PyCache& self) { return self.v_format; },
          "Form of coded values; None: plain.")
      .def_prop_ro(
          "rotate", [](const PyCache& self) { return self.rotate; },
          "Whether coded rows are turned; None: as their form does by itself.")
      .def_prop_ro(
          "memory", [](const PyCache& self) { return self.memory; },
          "Where rows live; None: the system's.")
      .def_prop_rw(
          "library", [](const PyCache& self) { return library_name(self.framework); },
          [](PyCache& self, const std::string& name) { self.framework = library_from(name); },
          kLibraryDoc);
}

}  // namespace kvcache::python
