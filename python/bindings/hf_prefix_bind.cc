#include "python/bindings/hf_prefix_bind.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/hf_attend.h"
#include "python/bindings/hf_prefix.h"
#include "python/bindings/paths.h"
#include "python/bindings/prefix.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

// With the store whose turn its calls take.
struct PyBatch {
  std::shared_ptr<ModelRows> store;
  std::unique_ptr<PrefixBatch> batch;
};

using Counters = nb::typed<nb::dict, nb::str, Made<said::kCounted>>;
using LayerRows = nb::typed<nb::list, GivenLayerRows>;

Counters stats(ModelRows& self) {
  const Turn turn(self.turn());
  const PrefixStats index = self.stats();
  const PrefixCounts& counts = self.counts();
  nb::dict all;
  all["matches"] = counts.matches;
  all["hits"] = counts.hits;
  all["tokens_asked"] = counts.tokens_asked;
  all["tokens_found"] = counts.tokens_found;
  all["tokens_reused"] = counts.tokens_reused;
  all["tokens_stored"] = counts.tokens_stored;
  all["texts_refused"] = counts.texts_refused;
  nb::dict misses;
  for (std::size_t reason = 0; reason < std::size(counts.misses); ++reason) {
    misses[name_of(static_cast<PrefixMiss>(reason))] = counts.misses[reason];
  }
  all["misses"] = misses;
  all["pages"] = index.pages;
  all["pages_evicted"] = index.pages_evicted;
  all["namespaces"] = index.namespaces;
  all["bytes"] = index.bytes;
  all["reserved_bytes"] = self.reserved_bytes();
  all["budget_bytes"] = self.budget_bytes();
  return nb::borrow<Counters>(all);
}

PyBatch new_batch(std::shared_ptr<ModelRows> store, nb::bytes space,
                  std::vector<std::int64_t> paddings, std::vector<std::int32_t> ends) {
  PrefixNamespace name;
  if (space.size() != name.bits.size()) {
    raise(PyExc_ValueError, "space: found " + std::to_string(space.size()) + " bytes, expected 32");
  }
  std::memcpy(name.bits.data(), space.data(), space.size());
  PyBatch made{store, nullptr};
  made.batch =
      std::make_unique<PrefixBatch>(std::move(store), name, std::move(paddings), std::move(ends));
  return made;
}

std::int64_t find(PyBatch& self, GivenIds ids, std::int64_t keep) {
  const Indices columns("ids", ids);
  const Turn turn(self.store->turn());
  Result<std::int64_t> found = std::int64_t{0};
  {
    const Unlocked unlocked(times(columns.view().num_elements(), 32));
    found = self.batch->find(columns.view(), keep);
  }
  return take(std::move(found));
}

nb::typed<nb::tuple, NewTensor, NewTensor> rows(PyBatch& self, std::int64_t layer) {
  const Turn turn(self.store->turn());
  const PrefixBatch& batch = *self.batch;
  const LayerSpec spec = batch.layer(layer);
  const auto made = [&](const BufferSpec& buffer, MutableTensorView* view) {
    const std::int64_t shape[] = {batch.batch(), buffer.heads, batch.found() - batch.length(),
                                  buffer.dim};
    return new_tensor(buffer.format.dtype, shape, 4, view);
  };
  MutableTensorView key_rows, value_rows;
  nb::object key = made(spec.key(), &key_rows);
  nb::object value = made(spec.value(), &value_rows);
  Status status;
  {
    const Unlocked unlocked(key_rows.num_elements() + value_rows.num_elements());
    status = batch.gather(layer, key_rows, value_rows);
  }
  check(status);
  return nb::make_tuple(key, value);
}

// Layers as they are given: PagedLayers, in turn, and pairs of tensors.
struct Layers {
  explicit Layers(const nb::list& layers) {
    for (nb::handle one : layers) {
      PrefixRows rows;
      if (nb::isinstance<PagedLayer>(one)) {
        rows.layer = &nb::cast<PagedLayer&>(one);
        turns.emplace_back(rows.layer->turn());
      } else {
        const auto pair = nb::cast<nb::tuple>(one);
        rows.key = given.emplace_back("key", "key", pair[0]).view();
        rows.value = given.emplace_back("value", "value", pair[1]).view();
      }
      all.push_back(rows);
    }
  }

  std::deque<Turn> turns;
  std::deque<GivenRows> given;
  std::vector<PrefixRows> all;
};

void expect(ModelRows& self, const LayerRows& layers) {
  const Turn turn(self.turn());
  const Layers given(layers);
  std::vector<LayerSpec> specs;
  for (const PrefixRows& rows : given.all) specs.push_back(rows.spec());
  check(self.expect(specs));
}

std::int64_t save(ModelRows& self, GivenPath path) {
  const std::string file = path_from(path);
  Result<std::int64_t> pages = std::int64_t{0};
  {
    const Turn turn(self.turn());
    const Unlocked unlocked(kLongCall);
    pages = self.save(file);
  }
  check_file(pages.status(), file);
  return *pages;
}

std::int64_t load(ModelRows& self, GivenPath path, GivenBytes name) {
  const std::string file = path_from(path);
  const PrefixNamespace space = space_from(name, 0);
  Result<std::int64_t> pages = std::int64_t{0};
  {
    const Turn turn(self.turn());
    const Unlocked unlocked(kLongCall);
    pages = self.load(file, space);
  }
  check_file(pages.status(), file);
  return *pages;
}

bool append(PyBatch& self, const LayerRows& layers) {
  const Turn turn(self.store->turn());
  const Layers given(layers);
  const std::int64_t fresh = self.batch->fresh();
  std::int64_t elements = 0;
  for (const PrefixRows& rows : given.all) {
    elements += times(rows.batch() * fresh, bytes_per_token(rows.spec()) / 4);
  }
  Result<bool> goes_on = false;
  {
    const Unlocked unlocked(elements);
    goes_on = self.batch->append(given.all);
  }
  return take(std::move(goes_on));
}

}  // namespace

void bind_model_rows(nb::module_& hf) {
  nb::class_<ModelRows>(hf, "ModelRows",
                        "Rows of all layers of a model that may be found again, in at most "
                        "budget_bytes.")
      .def(nb::new_([](std::int64_t budget_bytes, std::int64_t page_size) {
             return std::make_shared<ModelRows>(budget_bytes, page_size);
           }),
           "budget_bytes"_a, "page_size"_a)
      .def("expect", &expect, "layers"_a,
           "Room for rows as these layers have them; what was stored of others goes.\n\nErrors: "
           "ValueError for a budget below a page of rows, RetryLater while rows of others are in "
           "use.")
      .def("stats", &stats, "Counters: see kvcache.hf.prefix_stats.")
      .def("save", &save, "path"_a,
           "Writes what is stored to a file, what was used last first. Returns how many "
           "pages.\n\nErrors: OSError; the old file is as it was.")
      .def("load", &load, "path"_a, "space"_a,
           "What a file has of that namespace is stored, as far as there is room. Returns how many "
           "pages.\n\nErrors: those of PrefixCache.load, and ValueError for texts of others alone.")
      .def(
          "check_invariants",
          [](ModelRows& self) {
            const Turn turn(self.turn());
            check(self.check_invariants());
          },
          "For tests.\n\nErrors: RuntimeError.");

  nb::class_<PyBatch>(
      hf, "PrefixBatch",
      "The texts of one call, while it lives: rows of columns, of which the first paddings[b] are "
      "no text.\n\nspace: 32 bytes; texts of different ones never meet. ends: ids "
      "behind which nothing of a text that\ngrows by single tokens is stored.")
      .def(nb::new_(&new_batch), "store"_a, "space"_a, "paddings"_a, "ends"_a)
      .def(
          "find", &find, "ids"_a, "keep"_a,
          "ids [B, n] of the next columns: how many columns all texts have stored, at most all but "
          "the last `keep`;\n`length` where these are no more than before.")
      .def(
          "rows", &rows, "layer"_a,
          "The columns from `length` on that find() found: key [B, H, n, Dk], value [B, H, n, Dv].")
      .def(
          "append", &append, "layers"_a,
          "Stores the columns that find() was told of: of each layer its PagedLayer, or (key, "
          "value) of all columns.\nFalse: nothing more will be stored.\n\nErrors: ValueError for "
          "layers of other columns, RetryLater while rows of others are in use; the batch is\nthen "
          "closed.")
      .def(
          "crop",
          [](PyBatch& self, std::int64_t columns) {
            const Turn turn(self.store->turn());
            self.batch->crop(columns);
          },
          "columns"_a, "The call dropped its newest columns, and has that many.")
      .def_prop_ro(
          "length", [](const PyBatch& self) { return self.batch->length(); },
          "Columns that the call has rows of.");
}

}  // namespace kvcache::python
