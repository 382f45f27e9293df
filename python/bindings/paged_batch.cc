// PagedBatch in Python: one batch, whose cache and its lock are those of a PagedCache.
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/paged_batch.h"
#include "python/bindings/arrays.h"
#include "python/bindings/collect.h"
#include "python/bindings/errors.h"
#include "python/bindings/gather.h"
#include "python/bindings/kv_view.h"
#include "python/bindings/memory.h"
#include "python/bindings/paged.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

constexpr char kPair[] = "tuple[kvcache.typing.Array, kvcache.typing.Array]";
constexpr char kCounts[] = "int | kvcache.typing.Ids";

struct PyPagedBatch {
  nb::object owner;  // outlives the batch
  PyPaged* cache;
  PagedBatch batch;

  PyPagedBatch(nb::object paged, PagedBatch made) noexcept
      : owner(std::move(paged)), cache(&nb::cast<PyPaged&>(owner)), batch(std::move(made)) {}
  PyPagedBatch(const PyPagedBatch&) = delete;
  PyPagedBatch& operator=(const PyPagedBatch&) = delete;
  ~PyPagedBatch() {
    const Turn turn(cache->mutex);
    const PagedBatch dropped = std::move(batch);
  }
};

// The cache of a Python object that the batch's own object holds on to.
std::shared_ptr<PagedCache> borrowed(PyPaged& paged) {
  return {std::shared_ptr<void>(), &paged.cache};
}

template <typename Call>
auto ask(const PyPagedBatch& self, Call call) {
  const Turn turn(self.cache->mutex);
  return call(self.batch);
}

template <typename Call>
void change(PyPagedBatch& self, Call call) {
  const Turn turn(self.cache->mutex);
  check(call(self.batch));
}

void begin(PyPagedBatch& self, GivenIds counts, GivenIds tokens) {
  const std::vector<std::int64_t> given = int64_values("counts", counts);
  std::vector<std::int32_t> ids;
  if (!tokens.is_none()) ids = int32_values("tokens", tokens);
  change(self, [&](PagedBatch& batch) { return batch.begin(given, ids); });
  for (const std::int64_t count : given) {
    self.cache->last_count = std::max(self.cache->last_count, count);
  }
}

// write() and update(): rows in, without the GIL where they are many.
template <typename Call>
void store(PyPagedBatch& self, GivenArray key, GivenArray value, GivenExecutor executor,
           Call call) {
  const Array k("key", key);
  const Array v("value", value);
  const TensorView& keys = k.view("key");
  const TensorView& values = v.view("value");
  const ExecContext context = context_from(executor);
  Status status;
  {
    const Turn turn(self.cache->mutex);
    {
      const Unlocked unlocked(keys.num_elements() + values.num_elements());
      status = call(keys, values, context);
    }
    if (status.ok()) self.cache->framework = k.framework();
  }
  check(status);
}

void write(PyPagedBatch& self, std::int64_t layer, GivenArray key, GivenArray value,
           GivenExecutor executor) {
  store(self, key, value, executor,
        [&](const TensorView& k, const TensorView& v, const ExecContext& context) {
          return self.batch.write(layer, k, v, context);
        });
}

void update(PyPagedBatch& self, std::int64_t layer, GivenArray key, GivenArray value,
            GivenExecutor executor) {
  store(self, key, value, executor,
        [&](const TensorView& k, const TensorView& v, const ExecContext& context) {
          return self.batch.update(layer, k, v, context);
        });
}

std::unique_ptr<PyKvView> view(nb::object self_object, std::int64_t layer) {
  const auto& self = nb::cast<const PyPagedBatch&>(self_object);
  std::unique_ptr<PyKvView> view;
  {
    const Turn turn(self.cache->mutex);
    view = std::make_unique<PyKvView>(take(self.batch.view(layer)));
    const auto indptr = self.batch.qo_indptr();
    view->qo_indptr.assign(indptr.begin(), indptr.end());
  }
  view->keep = std::move(self_object);
  return view;
}

std::vector<std::int64_t> lengths(const PyPagedBatch& self, std::int64_t layer) {
  return ask(self, [=](const PagedBatch& batch) {
    std::vector<std::int64_t> all;
    for (std::int64_t row = 0; row < batch.num_rows(); ++row) {
      all.push_back(take(batch.seq_length(row, layer)));
    }
    return all;
  });
}

AnyPair gather(const PyPagedBatch& self, std::int64_t layer, Given<kPair> out,
               GivenExecutor executor) {
  return gather_pair(
      *self.cache, layer, out, executor,
      [&] {
        return take(ask(self, [=](const PagedBatch& batch) -> Result<Extents> {
          if (batch.num_rows() == 0) return Extents{0, 0};
          const Result<std::int64_t> held = batch.rows_held(0, layer);
          if (!held.ok()) return held.status();
          return Extents{*held, batch.num_rows()};
        }));
      },
      [&](const MutableTensorView& key, const MutableTensorView& value,
          const ExecContext& context) { return self.batch.gather(layer, key, value, context); });
}

void rewind(PyPagedBatch& self, Given<kCounts> n) {
  std::int64_t all = 0;
  if (nb::try_cast(n, all)) {
    change(self, [=](PagedBatch& batch) { return batch.rewind(all); });
    return;
  }
  PyErr_Clear();
  const std::vector<std::int64_t> counts = int64_values("n", n);
  change(self, [&](PagedBatch& batch) { return batch.rewind(counts); });
}

void bind_steps(nb::class_<PyPagedBatch>& batch) {
  batch
      .def("begin", &begin, "counts"_a.none(), "tokens"_a = nb::none(),
           "Room for counts[b] new tokens of row b in every layer, or nothing at all. tokens: "
           "their ids, packed, or None.\n\nErrors: those of PagedCache.reserve.")
      .def("write", &write, "layer"_a, "key"_a.none(), "value"_a.none(), nb::kw_only(),
           "executor"_a = nb::none(),
           "Stores the step's rows of one layer: packed [num_new_tokens, H, D], or [B, H, T, D] "
           "where every row brings T.\nMay be repeated; the last one counts.")
      .def(
          "commit",
          [](PyPagedBatch& self, GivenIds accepted) {
            std::vector<std::int64_t> counts;
            if (!accepted.is_none()) counts = int64_values("accepted", accepted);
            change(self, [&](PagedBatch& rows) { return rows.commit(counts); });
          },
          "accepted"_a = nb::none(),
          "Keeps the first accepted[b] new tokens of row b (None: all) and ends the step, one that "
          "update() opened, too.\n\nErrors: ValueError for a layer not written; the step stays "
          "open.")
      .def(
          "rollback",
          [](PyPagedBatch& self) {
            change(self, [](PagedBatch& rows) { return rows.rollback(); });
          },
          "Takes the open step back.")
      .def("update", &update, "layer"_a, "key"_a.none(), "value"_a.none(), nb::kw_only(),
           "executor"_a = nb::none(),
           "Appends key [B, H, T, Dk] and value [B, H, T, Dv] to one layer of a forward pass that "
           "nobody announces: its first\nlayer reserves room in all, its last commits. A batch "
           "without rows gets B of them.\n\nA layer that a forward pass did not write is left out: "
           "it keeps its length, and is written again once the batch\nis back there. A forward "
           "pass that died is taken back by rewind(T) or rollback().\n\nErrors: ValueError for a "
           "layer that is left out and for another T than the forward's; RetryLater, NeverFits.\n\n"
           "Where layers drop rows (window, chunk) the last layer's step stays open until the next "
           "call that changes the\nbatch, so that its queries see theirs.")
      .def("view", &view, "layer"_a,
           "All rows of one layer, the open step's tokens included: for attend(). Valid until the "
           "step ends or a row\nchanges.")
      .def("gather", &gather, "layer"_a, nb::kw_only(), "out"_a = nb::none(),
           "executor"_a = nb::none(),
           "(key, value): dense copies [B, H, S, D] of the rows of view(layer) that are held, the "
           "sinks first, into the\npair `out` or new arrays.\n\nErrors: ValueError where rows hold "
           "different numbers.");
}

void bind_rows(nb::class_<PyPagedBatch>& batch) {
  batch
      .def(
          "add",
          [](PyPagedBatch& self, std::int64_t count) {
            change(self, [=](PagedBatch& rows) { return rows.add(count); });
          },
          "count"_a = 1, "Empty rows after the others.")
      .def(
          "release",
          [](PyPagedBatch& self, std::int64_t row) {
            change(self, [=](PagedBatch& rows) { return rows.release(row); });
          },
          "row"_a, "Gives one row's pages back; the rows after it move up.")
      .def(
          "reset",
          [](PyPagedBatch& self) {
            const Turn turn(self.cache->mutex);
            self.batch.reset();
          },
          "Releases all rows, an open step included.")
      .def(
          "select",
          [](PyPagedBatch& self, GivenIds indices) {
            const Indices chosen("indices", indices);
            change(self, [&](PagedBatch& rows) { return rows.select(chosen.view()); });
          },
          "indices"_a.none(),
          "Row i becomes what row indices[i] was; there are as many rows as indices. No token row "
          "is copied.\n\nErrors: IndexError, and ValueError for none.")
      .def(
          "replace",
          [](PyPagedBatch& self, std::int64_t row, std::int64_t seq) {
            change(self, [=](PagedBatch& rows) { return rows.replace(row, id_of(seq)); });
          },
          "row"_a, "seq"_a,
          "The row becomes a sequence of the same cache with the tokens it has (PrefixCache.open, "
          "PagedCache.fork), which is\nthe batch's from here on; what it was goes back.\n\nErrors: "
          "KeyError for a sequence that is not there, ValueError for one that is a row already.")
      .def(
          "reorder",
          [](PyPagedBatch& self, GivenIds beam_idx) {
            const Indices chosen("beam_idx", beam_idx);
            change(self, [&](PagedBatch& rows) { return rows.reorder(chosen.view()); });
          },
          "beam_idx"_a.none(), "select() of as many as there are rows.")
      .def(
          "repeat",
          [](PyPagedBatch& self, std::int64_t n) {
            change(self, [=](PagedBatch& rows) { return rows.repeat(n); });
          },
          "n"_a, "Rows a, b become a, a, b, b for n = 2.")
      .def(
          "fork",
          [](PyPagedBatch& self) {
            const Turn turn(self.cache->mutex);
            return std::make_unique<PyPagedBatch>(self.owner, take(self.batch.fork()));
          },
          "A batch of the same rows, in the same pages until either side writes to them.")
      .def("rewind", &rewind, "n"_a.none(),
           "Drops the newest n tokens of every row, or n[b] of row b.\n\nErrors: IndexError beyond "
           "a row's length.")
      .def(
          "truncate",
          [](PyPagedBatch& self, std::int64_t n) {
            change(self, [=](PagedBatch& rows) { return rows.truncate(n); });
          },
          "n"_a, "Keeps the first n tokens of every row.");
}

void bind_questions(nb::class_<PyPagedBatch>& batch) {
  batch
      .def(
          "seq_length",
          [](const PyPagedBatch& self, std::int64_t row, std::int64_t layer) {
            return take(ask(self, [=](const PagedBatch& b) { return b.seq_length(row, layer); }));
          },
          "row"_a, "layer"_a = 0,
          "Tokens of a row: those committed, and those update() has written to this layer since.")
      .def(
          "next_position",
          [](const PyPagedBatch& self, std::int64_t row, std::int64_t layer) {
            return take(
                ask(self, [=](const PagedBatch& b) { return b.next_position(row, layer); }));
          },
          "row"_a, "layer"_a = 0, "The position that the row's next token is rotated with.")
      .def(
          "first_position",
          [](const PyPagedBatch& self, std::int64_t row, std::int64_t layer) {
            return take(
                ask(self, [=](const PagedBatch& b) { return b.first_position(row, layer); }));
          },
          "row"_a, "layer"_a = 0,
          "The position of the oldest token that the layer holds of a row beside the sinks.")
      .def(
          "rows_held",
          [](const PyPagedBatch& self, std::int64_t row, std::int64_t layer) {
            return take(ask(self, [=](const PagedBatch& b) { return b.rows_held(row, layer); }));
          },
          "row"_a, "layer"_a = 0, "How many tokens of a row view(layer) shows.")
      .def("lengths", &lengths, "layer"_a = 0, "seq_length of every row.")
      .def_prop_ro("num_rows",
                   [](const PyPagedBatch& self) {
                     return ask(self, [](const PagedBatch& b) { return b.num_rows(); });
                   })
      .def_prop_ro("step_open",
                   [](const PyPagedBatch& self) {
                     return ask(self, [](const PagedBatch& b) { return b.step_open(); });
                   })
      .def_prop_ro(
          "num_new_tokens",
          [](const PyPagedBatch& self) {
            return ask(self, [](const PagedBatch& b) { return b.num_new_tokens(); });
          },
          "Of the open step, over all rows; 0 without one.")
      .def_prop_ro(
          "qo_indptr",
          [](const PyPagedBatch& self) {
            return array_of(ask(self, [](const PagedBatch& b) {
              const auto indptr = b.qo_indptr();
              return std::vector<std::int32_t>(indptr.begin(), indptr.end());
            }));
          },
          "[B + 1] int32: the new tokens of each row among the packed ones; empty without a step.")
      .def_prop_ro(
          "sequences",
          [](const PyPagedBatch& self) {
            return ask(self, [](const PagedBatch& b) {
              std::vector<std::int64_t> ids;
              for (const SequenceId seq : b.sequences()) {
                ids.push_back(static_cast<std::int64_t>(seq));
              }
              return ids;
            });
          },
          "The rows' sequence ids, for tables of the cache; rows are changed through the batch "
          "alone.")
      .def("__repr__", [](const PyPagedBatch& self) {
        return ask(self, [](const PagedBatch& b) {
          return "PagedBatch(num_rows=" + std::to_string(b.num_rows()) +
                 ", num_new_tokens=" + std::to_string(b.num_new_tokens()) +
                 (b.step_open() ? ", step open)" : ")");
        });
      });
}

}  // namespace

void bind_paged_batch(nb::module_& module) {
  nb::class_<PyPagedBatch> batch(
      module, "PagedBatch", nb::type_slots(collected<PyPagedBatch, &PyPagedBatch::owner>),
      "A batch that goes forward together: its rows are sequences of one PagedCache, which several "
      "batches may share.\n\n"
      "    batch.begin([3, 1])                          # new tokens of each row\n"
      "    batch.write(layer, k, v)                     # for every layer\n"
      "    out = kvcache.attend(q, batch.view(layer))\n"
      "    batch.commit()\n\n"
      "    batch.update(layer, k, v)                    # or: a host that announces no step\n"
      "    out = kvcache.attend(q, batch.view(layer))\n\n"
      "Shapes are [B, H, T, D] (\"nhd\": [B, T, H, D]). A call that raises leaves the batch as it "
      "was. ValueError: a\nchange of rows while a step of begin() is open. Threads: calls on "
      "batches of one cache wait for each other.");
  batch.def(
      "__init__",
      [](PyPagedBatch* self, nb::typed<nb::object, PyPaged> cache, std::int64_t num_rows) {
        auto& paged = nb::cast<PyPaged&>(cache);
        const Turn turn(paged.mutex);
        new (self) PyPagedBatch(cache, take(PagedBatch::create(borrowed(paged), num_rows)));
      },
      "cache"_a, "num_rows"_a = 0, "Errors: ValueError for num_rows < 0.");
  bind_steps(batch);
  bind_rows(batch);
  bind_questions(batch);
}

}  // namespace kvcache::python
