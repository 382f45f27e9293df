#include "python/bindings/layered.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <string>
#include <utility>

#include "kvcache/dynamic_cache.h"
#include "kvcache/full_cache.h"
#include "kvcache/static_cache.h"
#include "python/bindings/collect.h"
#include "python/bindings/errors.h"
#include "python/bindings/info.h"
#include "python/bindings/memory.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

// Members go in reverse order: the rows before the memory that they lie in.
struct Kept {
  std::shared_ptr<LimitedMemory> memory;
  std::shared_ptr<const void> rows;
};

using FormName = std::optional<std::string>;

// The arguments that all kinds share.
struct Setup {
  CacheOptions options;
  std::shared_ptr<LimitedMemory> memory;
  FormName k_format, v_format;
  std::optional<bool> rotate;

  Setup(nb::handle dtype, nb::handle layout, std::shared_ptr<LimitedMemory> given, FormName keys,
        FormName values, std::optional<bool> turned)
      : memory(std::move(given)),
        k_format(std::move(keys)),
        v_format(std::move(values)),
        rotate(turned) {
    options.dtype = dtype_from(dtype);
    options.keys = format_from("k_format", k_format, DType::kF32, rotate);
    options.values = format_from("v_format", v_format, DType::kF32, rotate);
    options.layout = layout_from(layout);
    options.memory = memory.get();
  }

  template <typename Made>
  CacheParts parts(Kind kind, Result<Made> made) const {
    return {kind,
            memory,
            std::make_unique<Made>(take(std::move(made))),
            options.dtype,
            kind == Kind::kStatic ? 0 : options.reserve_tokens,
            k_format,
            v_format,
            rotate};
  }
};

// --- update. ---

struct NewRows {
  Array key, value;
  NewRows(nb::handle k, nb::handle v) : key("key", k), value("value", v) {}

  std::int64_t elements() const { return key.raw().num_elements() + value.raw().num_elements(); }
  std::int64_t count(Layout layout) const {
    return key.raw().rank == 4 ? key.raw().shape[layout == Layout::kHND ? 2 : 1] : 0;
  }
};

// Everything that could go wrong with giving the rows back goes wrong before they change.
void expect_lendable_rows(const PyCache& self, const NewRows& rows) {
  expect_lendable(self.dtype.value_or(rows.key.view("key").dtype), rows.key.framework());
  expect_lendable(self.dtype.value_or(rows.value.view("value").dtype), rows.key.framework());
}

// An estimate of the elements that are decoded where rows are given out: all of a coded layer.
std::int64_t decoded_elements(const PyCache& self) {
  return self.k_format || self.v_format ? self.cache->nbytes() : 0;
}

// Runs `store` while nobody else uses the cache, and gives the rows of the layer back.
template <typename Store>
PairLikeFirst store_rows(PyCache& self, std::int64_t layer, const NewRows& rows, Store store) {
  expect_lendable_rows(self, rows);
  KeyValueView all;
  std::shared_ptr<const void> kept;
  Status status;
  {
    const Turn turn(self.mutex);
    {
      const Unlocked unlocked(std::max(rows.elements(), decoded_elements(self)));
      status = store(*self.cache, &all);
    }
    if (status.ok()) {
      kept = self.retain(layer);
      self.framework = rows.key.framework();
      self.last_count = rows.count(self.cache->layout());
    }
  }
  check(status);
  return lend_pair(all, kept, rows.key.framework());
}

void append(PyCache& self, FirstArray key, GivenArray value, std::int64_t layer_idx,
            GivenExecutor executor) {
  const NewRows rows(key, value);
  const ExecContext context = context_from(executor);
  expect_lendable_rows(self, rows);
  Status status;
  {
    const Turn turn(self.mutex);
    {
      const Unlocked unlocked(rows.elements());
      status = self.cache->append(rows.key.raw(), rows.value.raw(), layer_idx, context);
    }
    if (status.ok()) {
      self.framework = rows.key.framework();
      self.last_count = rows.count(self.cache->layout());
    }
  }
  check(status);
}

PairLikeFirst update(PyCache& self, FirstArray key, GivenArray value, std::int64_t layer_idx,
                     GivenPositions cache_position, GivenExecutor executor) {
  const NewRows rows(key, value);
  std::optional<Indices> position;
  if (!cache_position.is_none()) position.emplace("cache_position", cache_position);
  const ExecContext context = context_from(executor);
  return store_rows(self, layer_idx, rows, [&](Cache& cache, KeyValueView* all) -> Status {
    KVC_ASSIGN_OR_RETURN(*all, cache.update(rows.key.raw(), rows.value.raw(), layer_idx,
                                            position ? position->view() : TensorView(), context));
    return {};
  });
}

Fetched update_and_fetch(PyCache& self, std::int64_t layer, nb::handle key, nb::handle value,
                         std::optional<std::int64_t> mask_length, nb::handle mask,
                         nb::handle executor) {
  if (nb::isinstance<nb::str>(mask)) (void)take(Mask::named(nb::cast<std::string>(mask)));
  const NewRows rows(key, value);
  const ExecContext context = context_from(executor);
  std::int64_t length = 0;
  const PairLikeFirst pair =
      store_rows(self, layer, rows, [&](Cache& cache, KeyValueView* all) -> Status {
        KVC_ASSIGN_OR_RETURN(const LayerFetch fetch,
                             cache.layer(layer).update_and_fetch(rows.key.raw(), rows.value.raw(),
                                                                 mask_length, {}, context));
        *all = {fetch.key, fetch.value};
        length = fetch.length;
        return {};
      });
  return nb::make_tuple(pair[0], pair[1], length, nb::borrow(mask));
}

std::optional<AnyPair> get(const PyCache& self, std::int64_t layer_idx) {
  KeyValueView rows;
  std::shared_ptr<const void> kept;
  {
    const Turn turn(self.mutex);
    auto found = [&] {
      const Unlocked unlocked(decoded_elements(self));
      return self.cache->get(layer_idx);
    }();
    if (!found.ok()) raise(found.status());
    rows = *found;
    kept = self.retain(layer_idx);
  }
  if (!rows.key.defined()) return {};
  return lend_pair(rows, kept, self.framework);
}

// --- Changes of the whole cache. ---

// Runs `change` while nobody else uses the cache. Copies of rows may take long, so others run.
template <typename Change>
void change_all(PyCache& self, Change change) {
  Status status;
  {
    const Turn turn(self.mutex);
    const Unlocked unlocked(self.cache->nbytes() / 2);
    status = change(*self.cache);
  }
  check(status);
}

void batch_select(PyCache& self, GivenIds indices) {
  const Indices rows("indices", indices);
  change_all(self, [&](Cache& cache) { return cache.batch_select(rows.view()); });
}

void reorder(PyCache& self, GivenIds beam_idx) {
  const Indices rows("beam_idx", beam_idx);
  change_all(self, [&](Cache& cache) { return cache.reorder(rows.view()); });
}

// The names of the sources, under which the core does not know its arguments.
void expect_at_least(const char* name, std::int64_t found, std::int64_t least) {
  if (found >= least) return;
  raise(PyExc_ValueError, std::string(name) + ": found " + std::to_string(found) +
                              ", expected at least " + std::to_string(least));
}

void repeat(PyCache& self, std::int64_t repeats) {
  expect_at_least("repeats", repeats, 1);
  change_all(self, [=](Cache& cache) { return cache.batch_repeat_interleave(repeats); });
}

void crop(PyCache& self, std::int64_t max_length) {
  expect_at_least("max_length", max_length, 0);
  change_all(self, [=](Cache& cache) { return cache.crop(max_length); });
}

void truncate(PyCache& self, std::int64_t n) {
  change_all(self, [n](Cache& cache) { return cache.truncate(n); });
}

void rewind(PyCache& self, std::int64_t n) {
  change_all(self, [n](Cache& cache) { return cache.rewind(n); });
}

void reset(PyCache& self) {
  const Turn turn(self.mutex);
  self.cache->reset();
}

void shrink(PyCache& self) {
  const Turn turn(self.mutex);
  self.cache->shrink();
}

// --- Questions. ---

template <typename Answer>
auto ask(const PyCache& self, Answer answer) {
  const Turn turn(self.mutex);
  return answer(*self.cache);
}

std::int64_t seq_length(const PyCache& self, std::int64_t layer_idx) {
  return take(ask(self, [=](const Cache& cache) { return cache.seq_length(layer_idx); }));
}

std::int64_t next_position(const PyCache& self, std::int64_t layer_idx) {
  return take(ask(self, [=](const Cache& cache) { return cache.next_position(layer_idx); }));
}

const char* name_of(Kind kind) {
  return kind == Kind::kDynamic  ? "DynamicKVCache"
         : kind == Kind::kStatic ? "StaticKVCache"
                                 : "FullCache";
}

std::string repr(const PyCache& self) {
  return ask(self, [&](const Cache& cache) {
    std::int64_t longest = 0;
    for (std::int64_t layer = 0; layer < cache.num_layers(); ++layer) {
      longest = std::max(longest, take(cache.seq_length(layer)));
    }
    std::string text = std::string(name_of(self.kind)) +
                       "(num_layers=" + std::to_string(cache.num_layers()) +
                       ", seq_length=" + std::to_string(longest);
    if (cache.max_length()) text += ", max_length=" + std::to_string(*cache.max_length());
    if (self.dtype) text += std::string(", dtype=") + python_name(*self.dtype);
    return text + ", layout=" + kvcache::name_of(cache.layout()) +
           ", nbytes=" + std::to_string(cache.nbytes()) + ")";
  });
}

constexpr char kStats[] = "kvcache.typing.CacheStats";

Made<kStats> stats(const PyCache& self) {
  nb::dict counters;
  counters["backend"] = backend_name();
  counters["path"] = path_name(self.last_count);
  counters["storage"] = "contiguous";
  ask(self, [&](const Cache& cache) {
    counters["copied_bytes"] = cache.copied_bytes();
    counters["nbytes"] = cache.nbytes();
    counters["reserved_bytes"] = cache.reserved_bytes();
    return 0;
  });
  return counters;
}

template <typename Py, typename Core>
nb::object clone_as(const PyCache& self) {
  CacheParts parts{self.kind,           self.memory,   nullptr,       self.dtype,
                   self.reserve_tokens, self.k_format, self.v_format, self.rotate};
  Status status;
  {
    const Turn turn(self.mutex);
    const Unlocked unlocked(self.cache->nbytes() / 2);
    parts.framework = self.framework;
    parts.last_count = self.last_count;
    auto made = static_cast<const Core&>(*self.cache).clone();
    status = made.status();
    if (made.ok()) parts.cache = std::make_unique<Core>(std::move(made).value());
  }
  check(status);
  return nb::cast(std::make_unique<Py>(std::move(parts)));
}

Self clone(const PyCache& self) {
  switch (self.kind) {
    case Kind::kStatic:
      return clone_as<PyStatic, StaticCache>(self);
    case Kind::kFull:
      return clone_as<PyFull, FullCache>(self);
    case Kind::kDynamic:
      break;
  }
  return clone_as<PyDynamic, DynamicCache>(self);
}

// --- The binding. ---

constexpr const char* kCacheDoc =
    "The keys and values of a batch, layer by layer: the base of DynamicKVCache, StaticKVCache and "
    "FullCache.\n\n"
    "B: batch, H: num_kv_heads, T: new tokens, S: tokens so far, D: head_dim (K and V may differ). "
    "Arrays are\n[B, H, T, D]; with layout=\"nhd\" [B, T, H, D]. NumPy arrays and PyTorch CPU "
    "tensors of float32, float16\nor bfloat16 go in with any strides, are copied and never written "
    "to. What comes out is a view of the\nstorage, of the library whose array came in last: "
    "read-only in NumPy; in PyTorch nothing can forbid\nwriting, which would change the cache. It "
    "is valid until the next change of the cache; after that it stays\nreadable memory with "
    "unspecified contents.\n\n"
    "k_format and v_format of the constructors are None, for plain rows, or forms of coded ones: "
    "\"int8\", \"fp8_e4m3\",\n\"int4\", \"lm4\", \"q8_0\", \"q4_0\", with rotate=True or False "
    "where a form's own choice will not do. Codes are no arrays:\nwhat comes out is a decoded copy "
    "of the whole layer, of the cache's dtype (copied_bytes() counts it), while append()\nand "
    "attention over the cache copy nothing. Newest rows that stay plain (residual_tokens) take "
    "pages: PagedCache.\n\n"
    "A call that raises leaves the cache as it was. ValueError: shapes, types, arguments. "
    "IndexError: beyond\nwhat there is. MemoryError: no memory. TypeError: no array.\n\n"
    "Threads: calls on one cache wait for each other; caches are independent, and long calls let "
    "the GIL go.";

constexpr const char* kUpdateDoc =
    "Stores new rows and returns all rows of the layer so far.\n\n"
    "key [B, H, T, Dk], value [B, H, T, Dv]; returns ([B, H, S, Dk], [B, H, S, Dv]), no copies.\n"
    "cache_position: None appends; an int writes one token at that row; [T] writes token t of "
    "every batch row\nto row cache_position[t]; [B, T] does so for each batch row by itself. "
    "Rows never written read as zeros.\n\n"
    "Errors: ValueError for shapes, element types and positions; IndexError for a layer and past a "
    "capacity.";

constexpr const char* kFetchDoc =
    "Appends key and value and returns (K, V, length, mask): all rows so far, their number, and "
    "the mask\nexactly as it came in.\n\nmask_length is the number of new tokens, or None. mask: "
    "None, \"causal\" or an array.\nErrors: those of update; ValueError for another mask_length "
    "or name of a mask.";

void bind_base(nb::module_& module) {
  nb::class_<PyCache> base(module, "KVCache", kCacheDoc);
  base.def("update", &update, "key"_a.none(), "value"_a.none(), "layer_idx"_a = 0,
           "cache_position"_a = nb::none(), nb::kw_only(), "executor"_a = nb::none(), kUpdateDoc)
      .def("append", &append, "key"_a.none(), "value"_a.none(), "layer_idx"_a = 0, nb::kw_only(),
           "executor"_a = nb::none(),
           "update() without positions that gives nothing back: of coded rows, no copy is decoded.")
      .def("get", &get, "layer_idx"_a = 0,
           "(K, V) of the filled rows, no copies where they are plain; None for a layer never "
           "populated.\n\n"
           "Errors: IndexError for a layer that the cache cannot have.")
      .def(
          "view",
          [](const PyCache& self, std::int64_t layer_idx) { return view_of(self, layer_idx); },
          "layer_idx"_a = 0,
          "The filled rows for attention. Valid until the next change of the cache.\n\n"
          "Errors: KeyError for a layer never populated, IndexError.")
      .def(
          "layer",
          [](nb::object self, std::int64_t layer_idx) {
            return PyLayer{self, &nb::cast<PyCache&>(self), layer_idx};
          },
          "layer_idx"_a,
          "One layer for use inside an attention layer: update_and_fetch, offset, rewind.");
  base.def("batch_select", &batch_select, "indices"_a.none(),
           "Gathers batch rows of every layer: row i becomes what row indices[i] was, and the "
           "batch size their\nnumber.\n\nErrors: IndexError for an index outside the batch, "
           "ValueError for none.")
      .def("reorder", &reorder, "beam_idx"_a.none(), "batch_select under the name of beam search.")
      .def("batch_repeat_interleave", &repeat, "repeats"_a,
           "Rows a, b become a, a, b, b for 2.\n\nErrors: ValueError for less than 1.")
      .def(
          "crop", &crop, "max_length"_a,
          "Keeps the most recent max_length tokens of each layer; 0 empties.\n\nErrors: ValueError "
          "for less than 0.")
      .def("truncate", &truncate, "n"_a,
           "Keeps the first n tokens of each layer.\n\nErrors: ValueError for n < 0.")
      .def("rewind", &rewind, "n"_a,
           "Drops the newest n tokens of each populated layer.\n\nErrors: IndexError if the "
           "shortest is shorter, ValueError for n < 0.")
      .def("reset", &reset, "Every length becomes 0; the next update may have any shape.")
      .def("shrink", &shrink, "Gives back the memory that no stored row needs.")
      .def("clone", &clone, "A deep copy of the rows, in memory of its own.")
      .def(
          "__deepcopy__", [](const PyCache& self, GivenMemo) { return clone(self); }, "memo"_a);
  base.def("seq_length", &seq_length, "layer_idx"_a = 0,
           "Tokens stored; 0 for an empty layer.\n\nErrors: IndexError outside a static cache's "
           "layers.")
      .def("next_position", &next_position, "layer_idx"_a = 0,
           "The position that the next token is rotated with: crop() raises it above the length.")
      .def(
          "max_length", [](const PyCache& self) { return self.cache->max_length(); },
          "Tokens a layer can hold; None for a dynamic cache.")
      .def_prop_ro(
          "num_layers",
          [](const PyCache& self) {
            return ask(self, [](const Cache& cache) { return cache.num_layers(); });
          },
          "Layers seen so far, or those of a static cache.")
      .def_prop_ro(
          "layout", [](const PyCache& self) { return kvcache::name_of(self.cache->layout()); },
          "\"hnd\" or \"nhd\".")
      .def(
          "nbytes",
          [](const PyCache& self) {
            return ask(self, [](const Cache& cache) { return cache.nbytes(); });
          },
          "Bytes of the rows stored.")
      .def(
          "reserved_bytes",
          [](const PyCache& self) {
            return ask(self, [](const Cache& cache) { return cache.reserved_bytes(); });
          },
          "Bytes held for them, rounding included.")
      .def(
          "copied_bytes",
          [](const PyCache& self) {
            return ask(self, [](const Cache& cache) { return cache.copied_bytes(); });
          },
          "Bytes of old rows that had to be copied since construction, and of decoded copies.")
      .def(
          "rows_encoded",
          [](const PyCache& self) {
            return ask(self, [](const Cache& cache) { return cache.rows_encoded(); });
          },
          "Rows that were encoded since construction, K and V of each layer and batch row apart.")
      .def("stats", &stats,
           "The backend of attention, the path of the last update (\"decode\" up to 8 tokens, "
           "else \"prefill\"), the\nstorage, and bytes stored, held and copied.")
      .def("__repr__", &repr);
  bind_layered_files(base);
  for (const auto& [alias, name] : {std::pair{"get_seq_length", "seq_length"},
                                    {"get_max_cache_shape", "max_length"},
                                    {"reorder_cache", "reorder"},
                                    {"batch_select_indices", "batch_select"}}) {
    base.attr(alias) = base.attr(name);
  }
}

void bind_kinds(nb::module_& module) {
  nb::class_<PyDynamic, PyCache>(
      module, "DynamicKVCache",
      "Grows with the text; no bound but memory. Layers appear when they are first used. Growth "
      "copies no rows:\naddress space is reserved ahead, reserve_tokens a row of batch and head, "
      "and committed as it fills.\n\ndtype: of the stored rows; None: that of the first update.")
      .def(
          "__init__",
          [](PyDynamic* self, GivenDType dtype, GivenLayout layout, std::int64_t reserve_tokens,
             std::shared_ptr<LimitedMemory> memory, const FormName& k_format,
             const FormName& v_format, std::optional<bool> rotate) {
            Setup setup(dtype, layout, std::move(memory), k_format, v_format, rotate);
            setup.options.reserve_tokens = reserve_tokens;
            new (self) PyDynamic(setup.parts(Kind::kDynamic, DynamicCache::create(setup.options)));
          },
          nb::kw_only(), "dtype"_a = nb::none(), "layout"_a = "hnd", "reserve_tokens"_a = 131072,
          "memory"_a.none() = nb::none(), "k_format"_a = nb::none(), "v_format"_a = nb::none(),
          "rotate"_a = nb::none());
  nb::class_<PyStatic, PyCache>(
      module, "StaticKVCache",
      "max_cache_len tokens in each of num_layers layers. A layer takes the memory of its whole "
      "capacity with its\nfirst update; past the capacity updates are an IndexError.")
      .def(
          "__init__",
          [](PyStatic* self, std::int64_t max_cache_len, std::int64_t num_layers, GivenDType dtype,
             GivenLayout layout, std::shared_ptr<LimitedMemory> memory, const FormName& k_format,
             const FormName& v_format, std::optional<bool> rotate) {
            const Setup setup(dtype, layout, std::move(memory), k_format, v_format, rotate);
            new (self) PyStatic(setup.parts(
                Kind::kStatic, StaticCache::create(max_cache_len, num_layers, setup.options)));
          },
          "max_cache_len"_a, "num_layers"_a, nb::kw_only(), "dtype"_a = nb::none(),
          "layout"_a = "hnd", "memory"_a.none() = nb::none(), "k_format"_a = nb::none(),
          "v_format"_a = nb::none(), "rotate"_a = nb::none())
      .def_prop_ro(
          "max_cache_len", [](const PyStatic& self) { return *self.cache->max_length(); },
          "Tokens a layer can hold.");
  nb::class_<PyFull, PyCache>(module, "FullCache",
                              "A dynamic cache of one layer, for use inside an attention layer.")
      .def(
          "__init__",
          [](PyFull* self, GivenDType dtype, GivenLayout layout, std::int64_t reserve_tokens,
             std::shared_ptr<LimitedMemory> memory, const FormName& k_format,
             const FormName& v_format, std::optional<bool> rotate) {
            Setup setup(dtype, layout, std::move(memory), k_format, v_format, rotate);
            setup.options.reserve_tokens = reserve_tokens;
            new (self) PyFull(setup.parts(Kind::kFull, FullCache::create(setup.options)));
          },
          nb::kw_only(), "dtype"_a = nb::none(), "layout"_a = "hnd", "reserve_tokens"_a = 131072,
          "memory"_a.none() = nb::none(), "k_format"_a = nb::none(), "v_format"_a = nb::none(),
          "rotate"_a = nb::none())
      .def(
          "update_and_fetch",
          [](PyFull& self, FirstArray key, GivenArray value,
             std::optional<std::int64_t> mask_length, GivenMask mask, GivenExecutor executor) {
            return update_and_fetch(self, 0, key, value, mask_length, mask, executor);
          },
          "key"_a.none(), "value"_a.none(), "mask_length"_a = nb::none(), "mask"_a = nb::none(),
          nb::kw_only(), "executor"_a = nb::none(), kFetchDoc)
      .def_prop_ro(
          "offset", [](const PyFull& self) { return seq_length(self, 0); }, "Tokens stored.")
      .def_prop_ro(
          "key_values", [](const PyFull& self) { return get(self, 0); },
          "(K, V) of the filled rows; None if there never were any.");
}

void bind_layer(nb::module_& module) {
  nb::class_<PyLayer>(module, "LayerHandle", nb::type_slots(collected<PyLayer, &PyLayer::owner>),
                      "A reference to one layer of a cache, which it keeps alive.")
      .def(
          "update_and_fetch",
          [](const PyLayer& self, FirstArray key, GivenArray value,
             std::optional<std::int64_t> mask_length, GivenMask mask, GivenExecutor executor) {
            return update_and_fetch(*self.cache, self.layer, key, value, mask_length, mask,
                                    executor);
          },
          "key"_a.none(), "value"_a.none(), "mask_length"_a = nb::none(), "mask"_a = nb::none(),
          nb::kw_only(), "executor"_a = nb::none(), kFetchDoc)
      .def_prop_ro(
          "offset", [](const PyLayer& self) { return seq_length(*self.cache, self.layer); },
          "Tokens stored.")
      .def_prop_ro(
          "next_position",
          [](const PyLayer& self) { return next_position(*self.cache, self.layer); },
          "The position that the next token is rotated with.")
      .def_prop_ro(
          "key_values", [](const PyLayer& self) { return get(*self.cache, self.layer); },
          "(K, V) of the filled rows; None if there never were any.")
      .def(
          "view", [](const PyLayer& self) { return view_of(*self.cache, self.layer); },
          "The filled rows for attention.\n\nErrors: KeyError if there never were any.")
      .def(
          "rewind",
          [](const PyLayer& self, std::int64_t n) {
            const Turn turn(self.cache->mutex);
            check(self.cache->cache->layer(self.layer).rewind(n));
          },
          "n"_a,
          "Drops the newest n tokens of this layer alone.\n\nErrors: IndexError if there are "
          "fewer, ValueError for n < 0.")
      .def("__repr__", [](const PyLayer& self) {
        return "LayerHandle(layer=" + std::to_string(self.layer) + " of " + repr(*self.cache) + ")";
      });
}

}  // namespace

std::shared_ptr<const void> PyCache::retain(std::int64_t layer) const {
  auto rows = cache->retain(layer);
  if (!rows.ok()) raise(rows.status());
  return std::make_shared<Kept>(Kept{memory, std::move(rows).value()});
}

std::unique_ptr<PyKvView> view_of(const PyCache& cache, std::int64_t layer) {
  const Turn turn(cache.mutex);
  auto view = std::make_unique<PyKvView>(take(cache.cache->view(layer)));
  view->rows = cache.retain(layer);
  return view;
}

AnyPair lend_pair(const KeyValueView& rows, const std::shared_ptr<const void>& owner,
                  Framework framework) {
  nb::object key = lend(rows.key, owner, framework);
  return nb::make_tuple(std::move(key), lend(rows.value, owner, framework));
}

void bind_layered(nb::module_& module) {
  bind_base(module);
  bind_kinds(module);
  bind_layer(module);
  module.attr("TinyKvFullCache") = module.attr("FullCache");
}

}  // namespace kvcache::python
