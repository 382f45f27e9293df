#include "python/bindings/batching.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/batching_cache.h"
#include "python/bindings/arrays.h"
#include "python/bindings/attention.h"
#include "python/bindings/errors.h"
#include "python/bindings/info.h"
#include "python/bindings/layered.h"
#include "python/bindings/memory.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

struct PyBatching {
  std::vector<std::shared_ptr<LimitedMemory>> memories;  // of the batch and of requests taken over
  BatchingCache cache;
  Layout layout;
  std::optional<DType> dtype;
  std::int64_t last_count = 0;  // tokens of the last append
  mutable std::recursive_mutex mutex;

  PyBatching(BatchingCache made, const BatchingOptions& options) noexcept
      : cache(std::move(made)), layout(options.layout), dtype(options.dtype) {}
};

// The memory of a dense copy, with what it came from.
struct Kept {
  std::vector<std::shared_ptr<LimitedMemory>> memories;
  std::shared_ptr<const void> storage;
};

// (key, value, length, mask)
using BatchFetched = nb::typed<nb::tuple, LikeFirst, LikeFirst, std::int64_t, LikeFirst>;

void add_request(PyBatching& self, PyCache& prefilled, std::int64_t id) {
  // In the order of addresses, so that two threads cannot hold one each and wait for the other.
  const bool batch_first = std::less<const void*>()(&self.mutex, &prefilled.mutex);
  const Turn first(batch_first ? self.mutex : prefilled.mutex);
  const Turn second(batch_first ? prefilled.mutex : self.mutex);
  const bool known = prefilled.memory == nullptr ||
                     std::find(self.memories.begin(), self.memories.end(), prefilled.memory) !=
                         self.memories.end();
  if (!known) self.memories.push_back(prefilled.memory);
  const Status status = self.cache.add_request(*prefilled.cache, id);
  if (!status.ok() && !known) self.memories.pop_back();
  check(status);
}

struct NewRows {
  Array key, value;
  NewRows(nb::handle k, nb::handle v) : key("key", k), value("value", v) {
    (void)key.view("key");
    (void)value.view("value");
  }
  std::int64_t count(Layout layout) const {
    return key.raw().rank == 4 ? key.raw().shape[layout == Layout::kHND ? 2 : 1] : 0;
  }
};

BatchFetched update_and_fetch(PyBatching& self, FirstArray key, GivenArray value,
                              std::optional<std::int64_t> mask_length, GivenMask mask,
                              std::int64_t layer, GivenExecutor executor) {
  const NewRows rows(key, value);
  for (const Array* array : {&rows.key, &rows.value}) {
    expect_lendable(self.dtype.value_or(array->raw().dtype), rows.key.framework());
  }
  Mask rule;
  Options options;
  if (nb::isinstance<nb::str>(mask)) {
    rule = take(Mask::named(nb::cast<std::string>(mask)));
  } else if (!mask.is_none()) {
    options.set_mask(mask);
    rule = Mask(options.core.mask);
  }
  const ExecContext context = context_from(executor);
  BatchFetch fetch;
  auto kept = std::make_shared<Kept>();
  Status status;
  {
    const Turn turn(self.mutex);
    {
      const Unlocked unlocked(rows.key.raw().num_elements() + self.cache.nbytes() / 2);
      auto fetched = self.cache.update_and_fetch(rows.key.raw(), rows.value.raw(), mask_length,
                                                 rule, layer, context);
      status = fetched.status();
      if (fetched.ok()) fetch = std::move(fetched).value();
    }
    if (status.ok()) {
      kept->memories = self.memories;
      kept->storage = fetch.storage;
      self.last_count = rows.count(self.layout);
    }
  }
  check(status);
  const Framework framework = rows.key.framework();
  return nb::make_tuple(lend(fetch.key, kept, framework), lend(fetch.value, kept, framework),
                        fetch.length, lend(fetch.mask, kept, framework));
}

LikeFirst attend(PyBatching& self, FirstArray q, GivenArray key, GivenArray value,
                 std::int64_t layer, GivenArray out, std::optional<float> scale,
                 std::optional<float> softcap, bool causal, std::optional<std::int32_t> window,
                 std::int32_t sink_tokens, std::int32_t chunk, GivenNumbers alibi_slopes,
                 GivenMask mask, GivenNumbers sinks, bool reproducible,
                 const std::optional<std::string>& backend, GivenExecutor executor) {
  const Array query("q", q);
  const NewRows rows(key, value);
  const TensorView& view = query.view("q");
  if (view.rank != 4 || rows.value.raw().rank != 4 || !is_floating(view.dtype)) {
    raise(PyExc_ValueError, "q: found " + query.describe() + " with value " +
                                rows.value.describe() + ", expected floating arrays of four axes");
  }
  Options options;
  options.core.scale = scale;
  options.core.softcap = softcap.value_or(0.0f);
  options.core.causal = causal;
  options.core.window = window.value_or(0);
  options.core.sink_tokens = sink_tokens;
  options.core.chunk = chunk;
  options.core.reproducible = reproducible;
  const std::int64_t num_heads = view.shape[self.layout == Layout::kHND ? 1 : 2];
  options.set_alibi_slopes(alibi_slopes, num_heads);
  options.set_sinks(sinks, num_heads);
  options.set_mask(mask);
  options.set_backend(backend);
  const ExecContext context = context_from(executor);
  const Results results(out, nb::none(), query, rows.value.raw().shape[3], false);
  const MutableTensorView out_view = results.out_view();
  Status status;
  {
    const Turn turn(self.mutex);
    {
      const Unlocked unlocked(view.num_elements() + self.cache.nbytes() / 2);
      status = self.cache.attend(view, rows.key.raw(), rows.value.raw(), out_view, layer,
                                 options.core, context);
    }
    if (status.ok()) self.last_count = rows.count(self.layout);
  }
  check(status);
  return results.out;
}

template <typename Answer>
auto ask(const PyBatching& self, Answer answer) {
  const Turn turn(self.mutex);
  return answer(self.cache);
}

constexpr char kStats[] = "kvcache.typing.BatchingStats";

Made<kStats> stats(const PyBatching& self) {
  nb::dict counters;
  const BatchingStats counted = ask(self, [](const BatchingCache& c) { return c.stats(); });
  counters["backend"] = backend_name();
  counters["path"] = path_name(self.last_count);
  counters["storage"] = "contiguous";
  counters["rows_appended"] = counted.rows_appended;
  counters["rows_read"] = counted.rows_read;
  counters["copied_bytes"] = counted.copied_bytes;
  ask(self, [&](const BatchingCache& c) {
    counters["nbytes"] = c.nbytes();
    counters["reserved_bytes"] = c.reserved_bytes();
    return 0;
  });
  return counters;
}

void bind_changes(nb::class_<PyBatching>& batching) {
  batching
      .def("add_request", &add_request, "prefilled"_a, "id"_a,
           "Takes over the rows of a prefilled or empty cache of batch 1 into slot `id`, without "
           "copying; that cache is\nempty afterwards.\n\nErrors: IndexError for an id outside the "
           "slots or a length beyond max_seq_len; ValueError for an occupied\nslot, another batch, "
           "layers of unequal length, other heads or types.")
      .def(
          "remove_request",
          [](PyBatching& self, std::int64_t id) {
            const Turn turn(self.mutex);
            check(self.cache.remove_request(id));
          },
          "id"_a, "Frees the slot and its memory.\n\nErrors: KeyError for an empty slot.")
      .def("update_and_fetch", &update_and_fetch, "key"_a.none(), "value"_a.none(),
           "mask_length"_a = nb::none(), "mask"_a = nb::none(), "layer"_a = 0, nb::kw_only(),
           "executor"_a = nb::none(),
           "Appends row b of key [slots, H, L, Dk] and value [slots, H, L, Dv] to slot b, for "
           "every occupied slot or for\nnone, and returns (K, V, S_max, mask): dense right-aligned "
           "copies [slots, H, S_max, D] with zeros before\neach row, and an additive float32 mask "
           "[slots, 1, L, S_max] of 0 or -inf. A mask given (None and \"causal\"\nare the causal "
           "rule alone) is added to it.\n\nErrors: ValueError for shapes, types, mask_length and "
           "mask; IndexError past a bound.")
      .def("attend", &attend, "q"_a.none(), "key"_a.none(), "value"_a.none(), "layer"_a = 0,
           nb::kw_only(), "out"_a = nb::none(), "scale"_a = nb::none(), "softcap"_a = 0.0f,
           "causal"_a = true, "window"_a = 0, "sink_tokens"_a = 0, "chunk"_a = 0,
           "alibi_slopes"_a = nb::none(), "mask"_a = nb::none(), "sinks"_a = nb::none(),
           "reproducible"_a = false, "backend"_a = nb::none(), "executor"_a = nb::none(),
           "Appends likewise, then attends in place over the slots: no padding, no dense copy. q "
           "and out [slots,\nnum_heads, L, D]; idle rows give 0. Options and errors: those of "
           "kvcache.attend and update_and_fetch.")
      .def(
          "rewind",
          [](PyBatching& self, std::int64_t id, std::int64_t n) {
            const Turn turn(self.mutex);
            check(self.cache.rewind(id, n));
          },
          "id"_a, "n"_a,
          "Drops the newest n tokens of one request, in every layer.\n\nErrors: KeyError for an "
          "empty slot, IndexError if there are fewer, ValueError for n < 0.")
      .def(
          "truncate",
          [](PyBatching& self, std::int64_t id, std::int64_t n) {
            const Turn turn(self.mutex);
            check(self.cache.truncate(id, n));
          },
          "id"_a, "n"_a, "Keeps the first n tokens of one request.");
}

void bind_questions(nb::class_<PyBatching>& batching) {
  batching
      .def(
          "seq_length",
          [](const PyBatching& self, std::int64_t id, std::int64_t layer) {
            return take(ask(self, [=](const BatchingCache& c) { return c.seq_length(id, layer); }));
          },
          "id"_a, "layer"_a = 0, "Tokens of a request.\n\nErrors: KeyError for an empty slot.")
      .def(
          "next_position",
          [](const PyBatching& self, std::int64_t id, std::int64_t layer) {
            return take(
                ask(self, [=](const BatchingCache& c) { return c.next_position(id, layer); }));
          },
          "id"_a, "layer"_a = 0, "The position that a request's next token is rotated with.")
      .def(
          "active",
          [](const PyBatching& self) {
            return ask(self, [](const BatchingCache& c) { return c.active(); });
          },
          "Occupied slots.")
      .def(
          "max_active", [](const PyBatching& self) { return self.cache.max_active(); }, "Slots.")
      .def(
          "occupied",
          [](const PyBatching& self, std::int64_t id) {
            return ask(self, [=](const BatchingCache& c) { return c.occupied(id); });
          },
          "id"_a)
      .def(
          "nbytes",
          [](const PyBatching& self) {
            return ask(self, [](const BatchingCache& c) { return c.nbytes(); });
          },
          "Bytes of the rows stored.")
      .def(
          "reserved_bytes",
          [](const PyBatching& self) {
            return ask(self, [](const BatchingCache& c) { return c.reserved_bytes(); });
          },
          "Bytes held for them and for the dense copies.")
      .def("stats", &stats,
           "The backend of attention, the path of the last append, the storage, and counters of "
           "rows, copies and bytes.")
      .def("__repr__", [](const PyBatching& self) {
        return ask(self, [](const BatchingCache& c) {
          return "BatchingCache(active=" + std::to_string(c.active()) + " of " +
                 std::to_string(c.max_active()) + ", nbytes=" + std::to_string(c.nbytes()) + ")";
        });
      });
}

}  // namespace

void bind_batching(nb::module_& module) {
  nb::class_<PyBatching> batching(
      module, "BatchingCache",
      "Slots for independent requests of different lengths that decode together. The requests "
      "agree in layers,\nheads, head sizes and types: those of the first one hold from then on.\n\n"
      "A call that raises leaves the batch as it was. Threads: calls on one batch wait for each "
      "other.");
  batching.def(
      "__init__",
      [](PyBatching* self, std::int64_t max_active_requests,
         std::optional<std::int64_t> max_seq_len, std::optional<std::int64_t> num_layers,
         GivenDType dtype, GivenLayout layout, std::shared_ptr<LimitedMemory> memory) {
        BatchingOptions options;
        options.max_seq_len = max_seq_len;
        options.num_layers = num_layers;
        options.dtype = dtype_from(dtype);
        options.layout = layout_from(layout);
        options.memory = memory.get();
        new (self) PyBatching(take(BatchingCache::create(max_active_requests, options)), options);
        if (memory != nullptr) self->memories.push_back(std::move(memory));
      },
      "max_active_requests"_a, "max_seq_len"_a = nb::none(), nb::kw_only(),
      "num_layers"_a = nb::none(), "dtype"_a = nb::none(), "layout"_a = "hnd",
      "memory"_a.none() = nb::none());
  bind_changes(batching);
  bind_questions(batching);
  module.attr("BatchingKvCache") = batching;
}

}  // namespace kvcache::python
