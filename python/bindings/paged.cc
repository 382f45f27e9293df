#include "python/bindings/paged.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/paged_cache.h"
#include "python/bindings/arrays.h"
#include "python/bindings/collect.h"
#include "python/bindings/errors.h"
#include "python/bindings/gather.h"
#include "python/bindings/info.h"
#include "python/bindings/kv_view.h"
#include "python/bindings/memory.h"
#include "python/bindings/paged_config.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

// What signatures say.
constexpr char kStats[] = "kvcache.typing.PagedStats";
constexpr char kAppend[] = "kvcache.typing.AppendLike";
constexpr char kPair[] = "tuple[kvcache.typing.Array, kvcache.typing.Array]";
constexpr char kErrorType[] = "type[BaseException]";
constexpr char kError[] = "BaseException";
constexpr char kTraceback[] = "types.TracebackType";

struct PyStep {
  nb::object owner;  // outlives the step
  PyPaged* cache = nullptr;
  PagedCache::Step step;
  std::vector<std::int32_t> qo_indptr;
  std::int64_t count = 0;  // most new tokens of a sequence
  bool open = true;

  PyStep(nb::object paged, PagedCache::Step reserved) noexcept
      : owner(std::move(paged)), step(std::move(reserved)) {}
  PyStep(const PyStep&) = delete;
  PyStep& operator=(const PyStep&) = delete;
  ~PyStep() {
    if (cache == nullptr || !open) return;
    const Turn turn(cache->mutex);
    const PagedCache::Step dropped = std::move(step);
  }
};

std::vector<SequenceId> ids_of(nb::handle seqs) {
  std::vector<SequenceId> ids;
  for (std::int64_t seq : int64_values("seqs", seqs)) ids.push_back(id_of(seq));
  return ids;
}

// --- Steps. ---

std::int64_t append_number(const char* what, const nb::object& object) {
  std::int64_t number = 0;
  if (nb::try_cast(object, number)) return number;
  PyErr_Clear();
  raise(PyExc_TypeError, std::string("appends: found ") + nb::type_name(object.type()).c_str() +
                             " for " + what + ", expected an int of 64 bits");
}

PyAppend append_from(nb::handle item) {
  if (nb::isinstance<PyAppend>(item)) return nb::cast<const PyAppend&>(item);
  if ((nb::isinstance<nb::tuple>(item) || nb::isinstance<nb::list>(item)) && nb::len(item) == 2) {
    // Both before either is read: an __index__ may change the list.
    const nb::object seq = item[0];
    const nb::object count = item[1];
    PyAppend append;
    append.seq = id_of(append_number("a sequence id", seq));
    append.count = append_number("a count", count);
    return append;
  }
  raise(PyExc_TypeError, std::string("appends: found ") + nb::type_name(item.type()).c_str() +
                             ", expected Append or (seq, count)");
}

std::unique_ptr<PyStep> reserve(nb::object self_object,
                                const nb::typed<nb::iterable, Given<kAppend>>& appends) {
  auto& self = nb::cast<PyPaged&>(self_object);
  std::vector<PyAppend> held;
  for (nb::handle item : appends) held.push_back(append_from(item));
  std::vector<Append> wanted;
  wanted.reserve(held.size());
  for (const PyAppend& append : held) {
    wanted.push_back({append.seq, append.count, append.tokens, append.parents});
  }
  std::unique_ptr<PyStep> step;
  {
    const Turn turn(self.mutex);
    step = std::make_unique<PyStep>(nb::object(), take(self.cache.reserve(wanted)));
  }
  step->owner = std::move(self_object);
  step->cache = &self;
  step->qo_indptr.push_back(0);
  for (const PyAppend& append : held) {
    step->qo_indptr.push_back(static_cast<std::int32_t>(step->qo_indptr.back() + append.count));
    step->count = std::max(step->count, append.count);
  }
  return step;
}

void write(PyPaged& self, PyStep& step, std::int64_t layer, GivenArray k, GivenArray v,
           GivenExecutor executor) {
  const Array key("k", k);
  const Array value("v", v);
  (void)key.view("k");
  (void)value.view("v");
  const ExecContext context = context_from(executor);
  Status status;
  {
    const Turn turn(self.mutex);
    {
      const Unlocked unlocked(key.raw().num_elements() + value.raw().num_elements());
      status = self.cache.write(step.step, layer, key.raw(), value.raw(), context);
    }
    if (status.ok()) self.framework = key.framework();
  }
  check(status);
}

std::unique_ptr<PyKvView> step_view(nb::object self_object, const PyStep& step,
                                    std::int64_t layer) {
  const auto& self = nb::cast<const PyPaged&>(self_object);
  std::unique_ptr<PyKvView> view;
  {
    const Turn turn(self.mutex);
    view = std::make_unique<PyKvView>(take(self.cache.view(step.step, layer)));
  }
  view->keep = std::move(self_object);
  view->qo_indptr = step.qo_indptr;
  return view;
}

std::unique_ptr<PyKvView> view(nb::object self_object, std::int64_t layer, GivenIds seqs) {
  const auto& self = nb::cast<const PyPaged&>(self_object);
  const std::vector<SequenceId> ids = ids_of(seqs);
  std::unique_ptr<PyKvView> view;
  {
    const Turn turn(self.mutex);
    view = std::make_unique<PyKvView>(take(self.cache.view(layer, ids)));
  }
  view->keep = std::move(self_object);
  return view;
}

void commit(PyPaged& self, PyStep& step, GivenIds accepted) {
  std::vector<std::int64_t> counts;
  if (!accepted.is_none()) counts = int64_values("accepted", accepted);
  const Turn turn(self.mutex);
  check(self.cache.commit(step.step, counts));
  step.open = false;
  self.last_count = step.count;
}

void rollback(PyPaged& self, PyStep& step) {
  const Turn turn(self.mutex);
  check(self.cache.rollback(step.step));
  step.open = false;
}

// The end of a `with` block: commits, or rolls back where an error leaves it. A step that the block
// has ended itself stays as it is.
void leave(PyStep& step, nb::handle type) {
  if (!step.open) return;
  if (!type.is_none()) {
    rollback(*step.cache, step);
    return;
  }
  try {
    commit(*step.cache, step, nb::none());
  } catch (nb::python_error&) {
    rollback(*step.cache, step);
    throw;
  }
}

// --- Sequences. ---

template <typename Call>
void change(PyPaged& self, Call call) {
  const Turn turn(self.mutex);
  check(call(self.cache));
}

template <typename Call>
auto ask(const PyPaged& self, Call call) {
  const Turn turn(self.mutex);
  return call(self.cache);
}

// fork() without a length shares all of the sequence.
std::int64_t fork(PyPaged& self, std::int64_t seq, std::optional<std::int64_t> length) {
  const Turn turn(self.mutex);
  if (!length) length = take(self.cache.seq_length(id_of(seq)));
  return static_cast<std::int64_t>(take(self.cache.fork(id_of(seq), *length)));
}

void reorder(PyPaged& self, GivenIds seqs, GivenIds beam_idx) {
  const std::vector<SequenceId> ids = ids_of(seqs);
  const Indices indices("beam_idx", beam_idx);
  change(self, [&](PagedCache& cache) { return cache.reorder(ids, indices.view()); });
}

Int32Array block_table(const PyPaged& self, std::int64_t layer, GivenIds seqs) {
  const std::vector<SequenceId> ids = ids_of(seqs);
  const BlockTable table =
      take(ask(self, [&](const PagedCache& cache) { return cache.block_table(layer, ids); }));
  return array_of(table.pages, table.num_seqs);
}

PageIndices page_indices(const PyPaged& self, std::int64_t layer, GivenIds seqs) {
  const std::vector<SequenceId> ids = ids_of(seqs);
  return take(ask(self, [&](const PagedCache& cache) { return cache.page_indices(layer, ids); }));
}

Int32Array slot_mapping(const PyPaged& self, const PyStep& step, std::int64_t layer) {
  const std::vector<std::int32_t> slots = take(
      ask(self, [&](const PagedCache& cache) { return cache.slot_mapping(step.step, layer); }));
  return array_of(slots);
}

AnyPair gather(const PyPaged& self, std::int64_t layer, std::int64_t seq, Given<kPair> out,
               GivenExecutor executor) {
  return gather_pair(
      self, layer, out, executor,
      [&] {
        return Extents{take(ask(
            self, [&](const PagedCache& cache) { return cache.rows_held(layer, id_of(seq)); }))};
      },
      [&](const MutableTensorView& key, const MutableTensorView& value,
          const ExecContext& context) {
        return self.cache.gather(layer, id_of(seq), key, value, context);
      });
}

Made<kStats> stats(const PyPaged& self) {
  const auto [counted, nbytes, reserved] = ask(self, [](const PagedCache& cache) {
    return std::tuple(cache.stats(), cache.nbytes(), cache.reserved_bytes());
  });
  nb::dict counters;
  counters["backend"] = backend_name();
  counters["path"] = path_name(self.last_count);
  counters["storage"] = "paged";
  counters["pages_total"] = counted.pages_total;
  counters["pages_held"] = counted.pages_held;
  counters["pages_reserved"] = counted.pages_reserved;
  counters["pages_cached"] = counted.pages_cached;
  counters["pages_high_water"] = counted.pages_high_water;
  counters["pages_copied"] = counted.pages_copied;
  counters["rows_copied"] = counted.rows_copied;
  counters["rows_encoded"] = counted.rows_encoded;
  counters["sequences"] = counted.sequences;
  counters["open_steps"] = counted.open_steps;
  counters["nbytes"] = nbytes;
  counters["reserved_bytes"] = reserved;
  return counters;
}

std::string repr(const PyPaged& self) {
  const PagedStats s = ask(self, [](const PagedCache& cache) { return cache.stats(); });
  return "PagedCache(num_layers=" + std::to_string(self.cache.num_layers()) +
         ", page_size=" + std::to_string(self.cache.page_size()) +
         ", pages_held=" + std::to_string(s.pages_held) + " of " + std::to_string(s.pages_total) +
         ", sequences=" + std::to_string(s.sequences) +
         ", open_steps=" + std::to_string(s.open_steps) + ")";
}

// --- The binding. ---

void bind_step(nb::module_& module) {
  nb::class_<PyStep>(
      module, "Step", nb::type_slots(collected<PyStep, &PyStep::owner>),
      "Room for new tokens, and what was written to it. A context manager: the end of the block "
      "commits, an error\nrolls back; so does dropping a step.")
      .def("__enter__", [](nb::object self) { return Self(std::move(self)); })
      .def(
          "__exit__",
          [](PyStep& self, Given<kErrorType> type, Given<kError>, Given<kTraceback>) {
            leave(self, type);
          },
          "type"_a = nb::none(), "value"_a = nb::none(), "traceback"_a = nb::none())
      .def(
          "write",
          [](PyStep& self, std::int64_t layer, GivenArray k, GivenArray v, GivenExecutor executor) {
            write(*self.cache, self, layer, k, v, executor);
          },
          "layer"_a, "k"_a.none(), "v"_a.none(), nb::kw_only(), "executor"_a = nb::none(),
          "PagedCache.write of this step.")
      .def(
          "view",
          [](const PyStep& self, std::int64_t layer) { return step_view(self.owner, self, layer); },
          "layer"_a, "PagedCache.view of this step.")
      .def(
          "commit", [](PyStep& self, GivenIds accepted) { commit(*self.cache, self, accepted); },
          "accepted"_a = nb::none(), "PagedCache.commit of this step.")
      .def(
          "rollback", [](PyStep& self) { rollback(*self.cache, self); },
          "PagedCache.rollback of this step.")
      .def(
          "slot_mapping",
          [](const PyStep& self, std::int64_t layer) {
            return slot_mapping(*self.cache, self, layer);
          },
          "layer"_a, "PagedCache.slot_mapping of this step.")
      .def_prop_ro("num_new_tokens", [](const PyStep& self) { return self.step.num_new_tokens(); })
      .def_prop_ro(
          "qo_indptr", [](const PyStep& self) { return array_of(self.qo_indptr); },
          "[num_seqs + 1] int32: the rows of each sequence among the new tokens.")
      .def_prop_ro("open", [](const PyStep& self) { return self.open; })
      .def("__repr__", [](const PyStep& self) {
        return "Step(num_seqs=" + std::to_string(self.qo_indptr.size() - 1) +
               ", num_new_tokens=" + std::to_string(self.qo_indptr.back()) +
               (self.open ? ", open)" : ", ended)");
      });
}

void bind_cache_steps(nb::class_<PyPaged>& paged) {
  paged
      .def(
          "open",
          [](PyPaged& self) {
            const Turn turn(self.mutex);
            return static_cast<std::int64_t>(take(self.cache.open()));
          },
          "The id of a new, empty sequence.\n\nErrors: RetryLater where its tables would pass the "
          "budget.")
      .def(
          "release",
          [](PyPaged& self, std::int64_t seq) {
            change(self, [=](PagedCache& cache) { return cache.release(id_of(seq)); });
          },
          "seq"_a, "Gives its pages back; the id is never valid again.")
      .def(
          "reserve", &reserve, "appends"_a,
          "Room for the new tokens of every sequence in every layer, or nothing at all. appends: "
          "a list of Append or\n(seq, count).\n\nErrors: RetryLater while other sequences hold the "
          "pages, NeverFits if even all pages are too few,\nValueError for a sequence named twice "
          "or in another open step.")
      .def("write", &write, "step"_a, "layer"_a, "k"_a.none(), "v"_a.none(), nb::kw_only(),
           "executor"_a = nb::none(),
           "Stores the step's rows of one layer: k and v [num_new_tokens, num_kv_heads, head_dim], "
           "sequences in the\norder of the appends. May be repeated; the last one counts.")
      .def("view", &step_view, "step"_a, "layer"_a,
           "The committed rows of the step's sequences and the step's own. Valid until the step "
           "ends.\n\nErrors: ValueError before write().")
      .def("view", &view, "layer"_a, "seqs"_a.none(),
           "Committed rows only. Valid until one of the sequences changes.")
      .def("commit", &commit, "step"_a, "accepted"_a = nb::none(),
           "Keeps the first accepted[i] new tokens of each sequence (None: all) and ends the "
           "step.\n\nErrors: ValueError if a layer was not written, or for a count beyond the new "
           "tokens; the step stays open.")
      .def(
          "rollback", &rollback, "step"_a,
          "Everything as before reserve(); ends the step. Memory of pages that it was the first to "
          "take stays committed:\nreserved_bytes() may be higher than before.")
      .def("slot_mapping", &slot_mapping, "step"_a, "layer"_a,
           "[num_new_tokens] int32: the slots, page * page_size + offset, of the new tokens.");
}

void bind_cache_sequences(nb::class_<PyPaged>& paged) {
  paged
      .def("fork", &fork, "seq"_a, "length"_a = nb::none(),
           "The id of a new sequence of the first `length` tokens (None: all). Shares pages; a "
           "shared tail page is\ncopied by whichever side writes to it first.\n\nErrors: "
           "IndexError beyond the length.")
      .def(
          "hold_rows",
          [](PyPaged& self, std::int64_t seq, bool hold) {
            change(self, [=](PagedCache& cache) { return cache.hold_rows(id_of(seq), hold); });
          },
          "seq"_a, "hold"_a = true,
          "Whether layers with windows or chunks hold all that the sequence brings from here on, "
          "so "
          "that it can be taken\nback over any number of steps. False: what they drop goes.")
      .def(
          "truncate",
          [](PyPaged& self, std::int64_t seq, std::int64_t n) {
            change(self, [=](PagedCache& cache) { return cache.truncate(id_of(seq), n); });
          },
          "seq"_a, "n"_a, "Keeps the first n tokens.")
      .def(
          "rewind",
          [](PyPaged& self, std::int64_t seq, std::int64_t n) {
            change(self, [=](PagedCache& cache) { return cache.rewind(id_of(seq), n); });
          },
          "seq"_a, "n"_a,
          "Drops the newest n tokens.\n\nErrors: IndexError beyond the length, or where a layer "
          "has "
          "dropped what a query there would see.")
      .def(
          "reaches",
          [](const PyPaged& self, std::int64_t seq, std::int64_t length) {
            const Status status =
                ask(self, [=](const PagedCache& c) { return c.reaches(id_of(seq), length); });
            if (status.code() == StatusCode::kOutOfRange) return false;
            check(status);
            return true;
          },
          "seq"_a, "length"_a,
          "Whether fork and truncate to `length` would find all that they need.")
      .def("reorder", &reorder, "seqs"_a.none(), "beam_idx"_a.none(),
           "Sequence seqs[i] becomes what seqs[beam_idx[i]] was. Ids stay, no row is copied.")
      .def(
          "remove",
          [](PyPaged& self, std::int64_t seq, std::int64_t begin, std::int64_t end) {
            change(self, [=](PagedCache& cache) { return cache.remove(id_of(seq), begin, end); });
          },
          "seq"_a, "begin"_a, "end"_a, "By position. Errors: NotImplementedError until built.")
      .def(
          "shift",
          [](PyPaged& self, std::int64_t seq, std::int64_t begin, std::int64_t end,
             std::int64_t delta) {
            change(self,
                   [=](PagedCache& cache) { return cache.shift(id_of(seq), begin, end, delta); });
          },
          "seq"_a, "begin"_a, "end"_a, "delta"_a,
          "By position. Errors: NotImplementedError until built.")
      .def("block_table", &block_table, "layer"_a, "seqs"_a.none(),
           "[num_seqs, max_pages] int32 page ids, -1 for unused.")
      .def("page_indices", &page_indices, "layer"_a, "seqs"_a.none(),
           "kv_indptr, kv_indices and kv_last_page_len of the same pages.")
      .def(
          "gather", &gather, "layer"_a, "seq"_a, nb::kw_only(), "out"_a = nb::none(),
          "executor"_a = nb::none(),
          "(key, value): a dense copy of the committed rows that the layer holds, the sinks first, "
          "[H, S, D] (\"nhd\":\n[S, H, D]) with S = rows_held(layer, seq), into the pair `out` or "
          "new arrays of the layer's type, of the\nlibrary whose rows were written last.");
}

void bind_cache_questions(nb::class_<PyPaged>& paged) {
  paged
      .def(
          "seq_length",
          [](const PyPaged& self, std::int64_t seq) {
            return take(ask(self, [=](const PagedCache& c) { return c.seq_length(id_of(seq)); }));
          },
          "seq"_a, "Committed tokens.")
      .def(
          "next_position",
          [](const PyPaged& self, std::int64_t seq) {
            return take(
                ask(self, [=](const PagedCache& c) { return c.next_position(id_of(seq)); }));
          },
          "seq"_a, "The position that the next token is rotated with.")
      .def(
          "first_position",
          [](const PyPaged& self, std::int64_t layer, std::int64_t seq) {
            return take(ask(
                self, [=](const PagedCache& c) { return c.first_position(layer, id_of(seq)); }));
          },
          "layer"_a, "seq"_a,
          "The position of the oldest row that the layer holds beside the sinks.")
      .def(
          "rows_held",
          [](const PyPaged& self, std::int64_t layer, std::int64_t seq) {
            return take(
                ask(self, [=](const PagedCache& c) { return c.rows_held(layer, id_of(seq)); }));
          },
          "layer"_a, "seq"_a, "Committed rows that the layer holds, the sinks included.")
      .def(
          "free_pages",
          [](const PyPaged& self, std::int64_t group) {
            return ask(self, [=](const PagedCache& c) { return c.free_pages(group); });
          },
          "group"_a = 0, "Pages that a reserve could take now.")
      .def_prop_ro("num_layers", [](const PyPaged& self) { return self.cache.num_layers(); })
      .def_prop_ro("num_groups", [](const PyPaged& self) { return self.cache.num_groups(); })
      .def_prop_ro(
          "page_size", [](const PyPaged& self) { return self.cache.page_size(); }, "Tokens.")
      .def_prop_ro("layout",
                   [](const PyPaged& self) { return kvcache::name_of(self.config.core.layout); })
      .def_prop_ro("layers", [](const PyPaged& self) { return self.config.core.layers; })
      .def(
          "supports",
          [](const PyPaged& self, const std::string& operation) {
            return self.cache.supports(operation_from(operation));
          },
          "operation"_a,
          "Whether this cache can \"fork\", \"truncate\", \"rewind\", \"reorder\", \"gather\", "
          "\"remove\", \"shift\", \"parents\".")
      .def(
          "nbytes",
          [](const PyPaged& self) {
            return ask(self, [](const PagedCache& c) { return c.nbytes(); });
          },
          "Bytes of committed rows, a shared row counted once.")
      .def(
          "reserved_bytes",
          [](const PyPaged& self) {
            return ask(self, [](const PagedCache& c) { return c.reserved_bytes(); });
          },
          "Bytes held for them: pages touched so far, and tables.")
      .def("stats", &stats,
           "The backend of attention, the path of the last step, the storage, and counters of "
           "pages, copies and bytes.")
      .def(
          "check_invariants",
          [](const PyPaged& self) {
            check(ask(self, [](const PagedCache& c) { return c.check_invariants(); }));
          },
          "For tests. Errors: RuntimeError naming a page whose books do not agree.")
      .def("__repr__", &repr);
}

}  // namespace

void bind_paged(nb::module_& module) {
  bind_paged_config(module);
  bind_step(module);
  nb::class_<PyPaged> paged(
      module, "PagedCache",
      "Any number of sequences over a pool of pages that they can share.\n\n"
      "    with cache.reserve([(seq, 1)]) as step:      # room, or RetryLater / NeverFits\n"
      "        step.write(layer, k, v)                  # for every layer\n"
      "        out = kvcache.attend(q, step.view(layer))\n\n"
      "Only reserve can fail for space, and nothing is visible to others until commit. A call that "
      "raises leaves the\ncache as it was. KeyError: an unknown or released id, a step that has "
      "ended or is of another cache.\nValueError: a sequence in an open step cannot be changed by "
      "anything else.\n\nPages never move: a view is valid until one of its own sequences changes. "
      "Threads: calls on one cache wait\nfor each other; attention over views does not.");
  paged.def(
      "__init__",
      [](PyPaged* self, const PyConfig& config) {
        new (self) PyPaged(config, take(PagedCache::create(config.core)));
      },
      "config"_a,
      "Errors: ValueError for a malformed config, NotImplementedError for a required "
      "operation.");
  bind_cache_steps(paged);
  bind_cache_sequences(paged);
  bind_paged_files(paged);
  bind_cache_questions(paged);
}

}  // namespace kvcache::python
