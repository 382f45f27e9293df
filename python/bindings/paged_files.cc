// PagedCache in files and as bytes from Python.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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
#include "python/bindings/memory.h"
#include "python/bindings/paged.h"
#include "python/bindings/paths.h"
#include "python/bindings/prefix.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

nb::bytes to_bytes(const PyPaged& self, std::int64_t seq, GivenBytes name, std::int64_t tenant) {
  const PrefixNamespace space = space_from(name, tenant);
  Result<std::vector<std::byte>> bytes = std::vector<std::byte>();
  {
    const Turn turn(self.mutex);
    const Unlocked unlocked(kLongCall);
    bytes = CacheFile::to_bytes(self.cache, id_of(seq), space);
  }
  const std::vector<std::byte> made = take(std::move(bytes));
  return nb::bytes(made.data(), made.size());
}

std::int64_t from_bytes(PyPaged& self, nb::bytes bytes, GivenBytes name, std::int64_t tenant,
                        std::optional<std::int64_t> seq, GivenExecutor executor) {
  const PrefixNamespace space = space_from(name, tenant);
  const ExecContext context = context_from(executor);
  const std::span<const std::byte> given(static_cast<const std::byte*>(bytes.data()), bytes.size());
  Result<SequenceId> loaded = SequenceId{};
  {
    const Turn turn(self.mutex);
    const Unlocked unlocked(kLongCall);
    loaded = [&]() -> Result<SequenceId> {
      KVC_ASSIGN_OR_RETURN(const CacheFile file, CacheFile::over(given));
      if (seq.has_value()) return file.load_as(id_of(*seq), self.cache, space, context);
      return file.load(self.cache, space, context);
    }();
  }
  return static_cast<std::int64_t>(take(std::move(loaded)));
}

}  // namespace

void bind_paged_files(nb::class_<PyPaged>& paged) {
  paged
      .def(
          "save",
          [](const PyPaged& self, std::int64_t seq, GivenPath path, GivenBytes name,
             std::int64_t tenant) {
            const PrefixNamespace space = space_from(name, tenant);
            const std::string file = path_from(path);
            Status status;
            {
              const Turn turn(self.mutex);
              const Unlocked unlocked(kLongCall);
              status = CacheFile::save(self.cache, id_of(seq), file, space);
            }
            check_file(status, file);
          },
          "seq"_a, "path"_a, nb::kw_only(), "namespace"_a = nb::bytes("", 0), "tenant"_a = 0,
          "Writes the committed rows of a sequence, and its ids as far as they are known, to a "
          "file that any cache of\nthe same layers loads. namespace, at most 32 bytes, stands for "
          "what decides the rows of a token: a file of\nanother one is refused. The file is the "
          "old one or the new one at every moment.\n\nErrors: OSError; the old file is as it was.")
      .def(
          "load",
          [](PyPaged& self, GivenPath path, GivenBytes name, std::int64_t tenant,
             GivenExecutor executor) {
            const PrefixNamespace space = space_from(name, tenant);
            const std::string file = path_from(path);
            const ExecContext context = context_from(executor);
            Result<SequenceId> loaded = SequenceId{};
            {
              const Turn turn(self.mutex);
              const Unlocked unlocked(kLongCall);
              loaded = CacheFile::load(self.cache, file, space, context);
            }
            check_file(loaded.status(), file);
            return static_cast<std::int64_t>(*loaded);
          },
          "path"_a, nb::kw_only(), "namespace"_a = nb::bytes("", 0), "tenant"_a = 0,
          "executor"_a = nb::none(),
          "The id of a new sequence of what a file has, bit for bit, whatever pages and layout it "
          "was written from.\n\nErrors: FileNotFoundError, OSError; ValueError for another "
          "namespace or other layers, naming them, and for a\nfile that is damaged; "
          "NotImplementedError for another version; RetryLater, NeverFits, MemoryError as "
          "reserve.\nNothing has changed then.")
      .def("to_bytes", &to_bytes, "seq"_a, nb::kw_only(), "namespace"_a = nb::bytes("", 0),
           "tenant"_a = 0, "What save would write, as bytes: to be sent, or kept elsewhere.")
      .def("from_bytes", &from_bytes, "bytes"_a, nb::kw_only(), "namespace"_a = nb::bytes("", 0),
           "tenant"_a = 0, "seq"_a = nb::none(), "executor"_a = nb::none(),
           "load of what to_bytes gave. seq: the id that the sequence had and is to have here too; "
           "None: a new one.\n\nErrors: those of load, and ValueError for an id that is open here.")
      .def(
          "sequences",
          [](const PyPaged& self) {
            const Turn turn(self.mutex);
            std::vector<std::int64_t> ids;
            for (const SequenceId id : take(self.cache.sequences())) {
              ids.push_back(static_cast<std::int64_t>(id));
            }
            return ids;
          },
          "Ids of the sequences that are open, in their order.")
      .def_prop_ro(
          "config", [](const PyPaged& self) { return self.config; }, "What it was made of.")
      .def_prop_rw(
          "library", [](const PyPaged& self) { return library_name(self.framework); },
          [](PyPaged& self, const std::string& name) { self.framework = library_from(name); },
          kLibraryDoc);
}

}  // namespace kvcache::python
