#include "python/bindings/prefix.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "python/bindings/arrays.h"
#include "python/bindings/collect.h"
#include "python/bindings/errors.h"
#include "python/bindings/paged.h"
#include "python/bindings/paths.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

// What signatures say.
constexpr char kStats[] = "kvcache.typing.PrefixStats";
constexpr char kExplanation[] = "kvcache.typing.PrefixExplanation";
constexpr char kEvents[] = "list[kvcache.typing.PrefixEvent]";

struct PyPrefixCache {
  nb::object owner;  // the PagedCache, which outlives it
  PyPaged* paged = nullptr;
  std::optional<PrefixCache> core;

  PyPrefixCache(nb::object cache, const PrefixOptions& options)
      : owner(std::move(cache)), paged(&nb::cast<PyPaged&>(owner)) {
    const Turn turn(paged->mutex);
    core.emplace(take(PrefixCache::create(paged->cache, options)));
  }
  PyPrefixCache(const PyPrefixCache&) = delete;
  PyPrefixCache& operator=(const PyPrefixCache&) = delete;
  ~PyPrefixCache() {
    const Turn turn(paged->mutex);
    core.reset();
  }
};

struct PyPrefixHandle {
  nb::object owner;  // the PagedCache
  PyPaged* paged = nullptr;
  std::optional<PrefixHandle> core;
  std::int64_t length = 0;
  PrefixMiss reason = PrefixMiss::kNone;

  PyPrefixHandle(nb::object cache, PyPaged* pages, PrefixHandle handle)
      : owner(std::move(cache)),
        paged(pages),
        core(std::move(handle)),
        length(core->length()),
        reason(core->reason()) {}
  PyPrefixHandle(const PyPrefixHandle&) = delete;
  PyPrefixHandle& operator=(const PyPrefixHandle&) = delete;
  ~PyPrefixHandle() {
    const Turn turn(paged->mutex);
    core.reset();
  }
};

template <typename Call>
auto ask(const PyPrefixCache& self, Call call) {
  const Turn turn(self.paged->mutex);
  return call(*self.core);
}

template <typename Call>
auto with_handle(PyPrefixCache& self, const PyPrefixHandle& handle, Call call) {
  const Turn turn(self.paged->mutex);
  return call(*self.core, *handle.core);
}

std::unique_ptr<PyPrefixHandle> match(PyPrefixCache& self, GivenIds tokens, GivenBytes name,
                                      std::int64_t tenant) {
  const std::vector<std::int32_t> ids = int32_values("tokens", tokens);
  const PrefixNamespace space = space_from(name, tenant);
  const Turn turn(self.paged->mutex);
  return std::make_unique<PyPrefixHandle>(self.owner, self.paged,
                                          take(self.core->match(ids, space)));
}

Made<kExplanation> explain(const PyPrefixCache& self, GivenIds tokens, GivenBytes name,
                           std::int64_t tenant) {
  const std::vector<std::int32_t> ids = int32_values("tokens", tokens);
  const PrefixNamespace space = space_from(name, tenant);
  const PrefixExplanation found =
      take(ask(self, [&](const PrefixCache& core) { return core.explain(ids, space); }));
  nb::dict said;
  said["length"] = found.length;
  said["stored"] = found.stored;
  said["reason"] = name_of(found.reason);
  said["layer"] = found.layer;
  said["text"] = found.text;
  return said;
}

Made<kEvents> take_events(PyPrefixCache& self, std::int64_t most) {
  if (most < 0) {
    raise(PyExc_ValueError, "most: found " + std::to_string(most) + ", expected at least 0");
  }
  nb::list events;
  PrefixEvent taken[64];
  while (most > 0) {
    const auto room = static_cast<std::size_t>(std::min<std::int64_t>(most, 64));
    std::int64_t count = 0;
    {
      const Turn turn(self.paged->mutex);
      count = self.core->take_events({taken, room});
    }
    if (count == 0) break;
    most -= count;
    for (const PrefixEvent& event : std::span(taken, static_cast<std::size_t>(count))) {
      constexpr const char* kKinds[] = {"stored", "removed", "lost"};
      nb::dict said;
      said["kind"] = kKinds[static_cast<std::size_t>(event.kind)];
      said["number"] = event.number;
      said["lost"] = event.lost;
      said["key"] = event.key;
      said["parent"] = event.parent;
      said["position"] = event.position;
      events.append(said);
    }
  }
  return events;
}

void bind_handle(nb::module_& module) {
  nb::class_<PyPrefixHandle>(
      module, "PrefixHandle", nb::type_slots(collected<PyPrefixHandle, &PyPrefixHandle::owner>),
      "A stored beginning, made by PrefixCache.match. Its pages stay as long as it lives: drop it "
      "when it is opened.")
      .def_prop_ro(
          "length", [](const PyPrefixHandle& self) { return self.length; }, "Tokens found.")
      .def_prop_ro(
          "reason", [](const PyPrefixHandle& self) { return name_of(self.reason); },
          "Why not more: \"none\" (nothing was asked for), \"last token\" (which is always "
          "computed: "
          "all others were found),\n\"cold\" (never stored), \"evicted\", \"expired\", \"other "
          "namespace\", \"window\".")
      .def("__repr__", [](const PyPrefixHandle& self) {
        return "PrefixHandle(length=" + std::to_string(self.length) + ", reason='" +
               name_of(self.reason) + "')";
      });
}

void bind_choices(nb::class_<PyPrefixCache>& prefixes) {
  prefixes
      .def(
          "pin",
          [](PyPrefixCache& self, const PyPrefixHandle& handle) {
            check(with_handle(self, handle, [](auto& core, auto& h) { return core.pin(h); }));
          },
          "handle"_a,
          "Keeps its pages also without the handle, until as many unpins of the same beginning.")
      .def(
          "unpin",
          [](PyPrefixCache& self, const PyPrefixHandle& handle) {
            check(with_handle(self, handle, [](auto& core, auto& h) { return core.unpin(h); }));
          },
          "handle"_a, "Errors: KeyError for a beginning that is not pinned.")
      .def(
          "set_priority",
          [](PyPrefixCache& self, const PyPrefixHandle& handle, std::int64_t priority) {
            check(with_handle(self, handle,
                              [&](auto& core, auto& h) { return core.set_priority(h, priority); }));
          },
          "handle"_a, "priority"_a,
          "Of all its pages: lower ones leave first, 0 .. 100; 50 is usual.\n\nErrors: ValueError.")
      .def(
          "set_ttl",
          [](PyPrefixCache& self, const PyPrefixHandle& handle, std::int64_t milliseconds) {
            check(with_handle(self, handle,
                              [&](auto& core, auto& h) { return core.set_ttl(h, milliseconds); }));
          },
          "handle"_a, "milliseconds"_a,
          "How long from now its pages are found; 0: for ever.\n\nErrors: ValueError.")
      .def(
          "set_quota",
          [](PyPrefixCache& self, std::int64_t tenant, std::int64_t bytes) {
            const Turn turn(self.paged->mutex);
            check(self.core->set_quota(tenant, bytes));
          },
          "tenant"_a, "bytes"_a,
          "Bytes of pages that others leave a tenant; what it has beyond leaves before all else. "
          "-1: no quota.\n\nErrors: ValueError.")
      .def(
          "tenant_bytes",
          [](const PyPrefixCache& self, std::int64_t tenant) {
            return ask(self, [&](const PrefixCache& core) { return core.tenant_bytes(tenant); });
          },
          "tenant"_a, "Of one with a quota; else 0.")
      .def(
          "evict",
          [](PyPrefixCache& self, std::int64_t pages) {
            const Turn turn(self.paged->mutex);
            return self.core->evict(pages);
          },
          "pages"_a, "Frees at most so many pages that no sequence holds; returns how many.")
      .def(
          "remove_expired",
          [](PyPrefixCache& self) {
            const Turn turn(self.paged->mutex);
            return self.core->remove_expired();
          },
          "Frees pages that are past their time to live; returns how many.");
}

}  // namespace

PrefixNamespace space_from(nb::handle name, std::int64_t tenant) {
  PrefixNamespace space;
  space.tenant = tenant;
  if (!PyBytes_Check(name.ptr())) {
    raise(PyExc_TypeError, std::string("namespace: found ") + nb::type_name(name.type()).c_str() +
                               ", expected bytes");
  }
  const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(name.ptr()));
  if (size > space.bits.size()) {
    raise(PyExc_ValueError, "namespace: found " + std::to_string(size) +
                                " bytes, expected at most " + std::to_string(space.bits.size()));
  }
  std::memcpy(space.bits.data(), PyBytes_AS_STRING(name.ptr()), size);
  return space;
}

nb::dict prefix_stats(const PrefixStats& stats) {
  nb::dict counters;
  counters["matches"] = stats.matches;
  counters["hits"] = stats.hits;
  counters["tokens_asked"] = stats.tokens_asked;
  counters["tokens_found"] = stats.tokens_found;
  counters["tokens_reused"] = stats.tokens_reused;
  nb::dict misses;
  for (std::size_t i = 0; i < std::size(stats.misses); ++i) {
    misses[name_of(static_cast<PrefixMiss>(i))] = stats.misses[i];
  }
  counters["misses"] = misses;
  counters["pages_stored"] = stats.pages_stored;
  counters["pages_evicted"] = stats.pages_evicted;
  counters["pages_removed"] = stats.pages_removed;
  counters["pages"] = stats.pages;
  counters["pages_unheld"] = stats.pages_unheld;
  counters["bytes"] = stats.bytes;
  counters["namespaces"] = stats.namespaces;
  return counters;
}

void bind_prefix(nb::module_& module) {
  bind_handle(module);
  nb::class_<PyPrefixCache> prefixes(
      module, "PrefixCache", nb::type_slots(collected<PyPrefixCache, &PyPrefixCache::owner>),
      "Finds the longest stored beginning of a text among the pages of a PagedCache, to the "
      "token.\n\n"
      "    handle = prefixes.match(tokens)              # what is known, pinned while it lives\n"
      "    seq = prefixes.open(handle)                  # a sequence that shares its pages\n"
      "    rest = tokens[handle.length:]\n"
      "    with cache.reserve([kvcache.Append(seq, len(rest), rest)]) as step:\n"
      "        ...                                      # write every layer\n"
      "    cache.release(seq)                           # its pages stay until room is needed\n\n"
      "A page is known by the page before it and its token ids, which every match compares. "
      "namespace, at most 32\nbytes, stands for all else that decides what rows a token gets: "
      "weights, tokenizer, adapter, a salt; texts of\ndifferent ones, and of different tenants, "
      "never meet. KeyError: a handle of another cache, or one that is gone.\nThreads: calls wait "
      "for each other and for those of the PagedCache.");
  prefixes
      .def(
          "__init__",
          [](PyPrefixCache* self, nb::typed<nb::object, PyPaged> cache, const std::string& eviction,
             std::int64_t ttl, std::int64_t event_capacity) {
            PrefixOptions options;
            options.eviction = take(eviction_named(eviction));
            options.ttl = ttl;
            options.event_capacity = event_capacity;
            new (self) PyPrefixCache(std::move(cache), options);
          },
          "cache"_a, nb::kw_only(), "eviction"_a = "lru", "ttl"_a = 0, "event_capacity"_a = 0,
          "Over a cache of CacheConfig(prefixes=True), one at a time. eviction: \"lru\", "
          "\"s3fifo\", "
          "\"arc\", \"adaptive\".\nttl: milliseconds that a page is found after it was stored; 0: "
          "for "
          "ever. event_capacity: events kept until taken.\n\nErrors: ValueError, MemoryError.")
      .def("match", &match, "tokens"_a.none(), nb::kw_only(), "namespace"_a = nb::bytes("", 0),
           "tenant"_a = 0,
           "The longest stored beginning of tokens that every layer can serve, at most all but the "
           "last: a PrefixHandle,\nof length 0 where nothing is found.\n\nErrors: RetryLater where "
           "it would pass the budget, MemoryError.")
      .def(
          "open",
          [](PyPrefixCache& self, const PyPrefixHandle& handle) {
            return static_cast<std::int64_t>(
                take(with_handle(self, handle, [](auto& core, auto& h) { return core.open(h); })));
          },
          "handle"_a,
          "The id of a new sequence of the handle's tokens, in its namespace, that shares its "
          "pages.\n\nErrors: those of PagedCache.open.")
      .def("explain", &explain, "tokens"_a.none(), nb::kw_only(), "namespace"_a = nb::bytes("", 0),
           "tenant"_a = 0,
           "What match would find and why no more: length, stored (whether all layers can serve it "
           "or not), reason, layer\n(the first that was the limit, or -1) and text, the same in "
           "words. Nothing is held or counted.")
      .def(
          "stats",
          [](const PyPrefixCache& self) -> Made<kStats> {
            return prefix_stats(ask(self, [](const PrefixCache& core) { return core.stats(); }));
          },
          "Counters: matches, hits, tokens asked for, found and reused, misses by reason, pages "
          "and "
          "bytes.")
      .def(
          "save",
          [](const PyPrefixCache& self, GivenPath path, std::int64_t most_bytes) {
            const std::string name = path_from(path);
            Result<std::int64_t> pages = std::int64_t{0};
            {
              const Turn turn(self.paged->mutex);
              const Unlocked unlocked(kLongCall);
              pages = self.core->save(name, most_bytes);
            }
            check_file(pages.status(), name);
            return *pages;
          },
          "path"_a, nb::kw_only(), "most_bytes"_a = 0,
          "Writes what can be found to a file: what was used last first, as long as its rows fit "
          "most_bytes (0: all).\nReturns how many pages. The file is the old one or the new one at "
          "every moment.\n\nErrors: OSError; the old file is as it was.")
      .def(
          "load",
          [](PyPrefixCache& self, GivenPath path, GivenBytesOrNone only, std::int64_t tenant) {
            const std::string name = path_from(path);
            std::optional<PrefixNamespace> space;
            if (!only.is_none()) space = space_from(only, tenant);
            Result<std::int64_t> pages = std::int64_t{0};
            {
              const Turn turn(self.paged->mutex);
              const Unlocked unlocked(kLongCall);
              pages = space ? self.core->load(name, *space) : self.core->load(name);
            }
            check_file(pages.status(), name);
            return *pages;
          },
          "path"_a, nb::kw_only(), "namespace"_a = nb::none(), "tenant"_a = 0,
          "What such a file has can be found again, as far as there is room without evicting; "
          "namespace: that of one\nnamespace and tenant alone, the rest stays unread. Returns how "
          "many pages came.\n\nErrors: FileNotFoundError, OSError; ValueError for "
          "other layers or another page_size, naming them, and for\na file that is damaged; "
          "NotImplementedError for another version. Nothing has changed then.")
      .def("take_events", &take_events, "most"_a = 1 << 20,
           "The oldest events, at most so many: pages stored and removed, numbered without gaps; "
           "one of kind \"lost\" says\nhow many went when the queue was full.")
      .def(
          "check_invariants",
          [](const PyPrefixCache& self) {
            check(ask(self, [](const PrefixCache& core) { return core.check_invariants(); }));
          },
          "For tests. Errors: RuntimeError.")
      .def("__repr__", [](const PyPrefixCache& self) {
        const PrefixStats s = ask(self, [](const PrefixCache& core) { return core.stats(); });
        return "PrefixCache(pages=" + std::to_string(s.pages) +
               ", unheld=" + std::to_string(s.pages_unheld) + ", hits=" + std::to_string(s.hits) +
               " of " + std::to_string(s.matches) + ")";
      });
  bind_choices(prefixes);
}

}  // namespace kvcache::python
