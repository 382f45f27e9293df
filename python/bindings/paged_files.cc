// PagedCache in files from Python.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kvcache/cache_file.h"
#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/memory.h"
#include "python/bindings/paged.h"
#include "python/bindings/paths.h"
#include "python/bindings/prefix.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {

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
      .def(
          "to_bytes",
          [](const PyPaged& self, std::int64_t seq) {
            const Turn turn(self.mutex);
            const auto bytes = take(CacheFile::to_bytes(self.cache, id_of(seq)));
            return nb::bytes(bytes.data(), bytes.size());
          },
          "seq"_a, "What save would write, as bytes: to be pickled, or sent.")
      .def(
          "from_bytes",
          [](PyPaged& self, nb::bytes bytes) {
            const std::span<const std::byte> given(static_cast<const std::byte*>(bytes.data()),
                                                   bytes.size());
            const Turn turn(self.mutex);
            const CacheFile file = take(CacheFile::over(given));
            return static_cast<std::int64_t>(take(file.load(self.cache)));
          },
          "bytes"_a, "load of what to_bytes gave.");
}

}  // namespace kvcache::python
