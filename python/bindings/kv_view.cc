#include "python/bindings/kv_view.h"

#include <nanobind/stl/string.h>

#include <limits>
#include <string>
#include <utility>

#include "kvcache/functional.h"
#include "python/bindings/collect.h"
#include "python/bindings/errors.h"
#include "python/bindings/functional.h"
#include "python/bindings/layered.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;

namespace kvcache::python {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

// The tables behind a view over memory that no cache of ours owns.
struct Tables {
  std::vector<KvPart> parts;
  std::vector<std::int32_t> lengths, first_position, first_visible, block_table;
};

struct Axes {
  int head, token;
};
Axes axes_of(Layout layout) { return layout == Layout::kHND ? Axes{1, 2} : Axes{2, 1}; }

[[noreturn]] void invalid(const std::string& name, const std::string& found,
                          const std::string& expected) {
  raise(PyExc_ValueError, name + ": found " + found + ", expected " + expected);
}

void expect_rows(const char* name, const Array& array) {
  const TensorView& rows = array.view(name);
  if (rows.rank != 4 || !is_floating(rows.dtype)) {
    invalid(name, array.describe(), "float32, float16 or bfloat16 of four axes");
  }
  if (rows.shape[3] > 1 && rows.strides[3] != 1) {
    invalid(name, "elements of a row " + std::to_string(rows.strides[3]) + " apart",
            "dense rows of head_dim elements");
  }
  for (int axis = 0; axis < 4; ++axis) {
    if (rows.shape[axis] > kMaxInt32) invalid(name, array.describe(), "extents below 2^31");
  }
}

// Takes over tables with one part, whose tables are set here.
OwnedKvView own(std::shared_ptr<Tables> tables, const KeyValueView& rows, Layout layout) {
  KvPart& part = tables->parts.front();
  part.lengths = tables->lengths.data();
  if (!tables->first_position.empty()) part.first_position = tables->first_position.data();
  if (!tables->first_visible.empty()) part.first_visible = tables->first_visible.data();
  KvView view;
  view.num_seqs = static_cast<std::int32_t>(tables->lengths.size());
  view.num_kv_heads = static_cast<std::int32_t>(rows.key.shape[axes_of(layout).head]);
  view.k_head_dim = static_cast<std::int32_t>(rows.key.shape[3]);
  view.v_head_dim = static_cast<std::int32_t>(rows.value.shape[3]);
  view.num_parts = 1;
  view.parts = &part;
  return OwnedKvView(view, std::move(tables));
}

void expect_entries(const char* name, const std::vector<std::int32_t>& values,
                    std::size_t num_seqs) {
  if (values.empty() || values.size() == num_seqs) return;
  invalid(name, std::to_string(values.size()) + " entries", std::to_string(num_seqs));
}

struct GivenRows {
  std::vector<Array> arrays;
  KeyValueView rows;

  GivenRows(nb::handle key, nb::handle value, Layout layout) {
    arrays.emplace_back("key", key);
    arrays.emplace_back("value", value);
    expect_rows("key", arrays[0]);
    expect_rows("value", arrays[1]);
    rows = {arrays[0].raw(), arrays[1].raw()};
    const Axes axes = axes_of(layout);
    for (int axis : {0, axes.head, axes.token}) {
      if (rows.key.shape[axis] != rows.value.shape[axis]) {
        invalid("value", arrays[1].describe(),
                "the extents of key " + arrays[0].describe() + " but for head_dim");
      }
    }
  }
};

std::vector<std::int32_t> optional_values(const char* name, nb::handle object) {
  return object.is_none() ? std::vector<std::int32_t>() : int32_values(name, object);
}

// Fills a part with pages of [num_pages, ...] arrays.
void set_block_table(nb::handle object, const KeyValueView& rows, Tables* tables) {
  const Indices indices("block_table", object);
  const TensorView ids = indices.view();
  if (ids.rank != 2) invalid("block_table", std::to_string(ids.rank) + " axes", "two");
  const std::int64_t num_pages = rows.key.shape[0];
  for (std::int64_t seq = 0; seq < ids.shape[0]; ++seq) {
    for (std::int64_t i = 0; i < ids.shape[1]; ++i) {
      const std::int64_t at = seq * ids.strides[0] + i * ids.strides[1];
      const std::int64_t page = ids.dtype == DType::kI32
                                    ? static_cast<const std::int32_t*>(ids.data)[at]
                                    : static_cast<const std::int64_t*>(ids.data)[at];
      if (page < -1 || page >= num_pages) {
        raise(PyExc_IndexError, "block_table[" + std::to_string(seq) + ", " + std::to_string(i) +
                                    "]: found page " + std::to_string(page) + ", expected 0 .. " +
                                    std::to_string(num_pages - 1) + ", or -1 for unused");
      }
      tables->block_table.push_back(static_cast<std::int32_t>(page));
    }
  }
  KvPart& part = tables->parts.front();
  part.block_table = tables->block_table.data();
  part.block_table_stride = ids.shape[1];
  if (tables->lengths.size() != static_cast<std::size_t>(ids.shape[0])) {
    invalid("lengths", std::to_string(tables->lengths.size()) + " entries",
            "one for each of the " + std::to_string(ids.shape[0]) + " rows of block_table");
  }
  for (std::size_t seq = 0; seq < tables->lengths.size(); ++seq) {
    const std::int64_t pages =
        (std::int64_t{tables->lengths[seq]} + part.page_size - 1) / part.page_size;
    if (pages > ids.shape[1]) {
      invalid("lengths[" + std::to_string(seq) + "]", std::to_string(tables->lengths[seq]),
              "at most the " + std::to_string(ids.shape[1]) + " pages of block_table");
    }
    for (std::int64_t i = 0; i < pages; ++i) {
      const auto at = static_cast<std::size_t>(static_cast<std::int64_t>(seq) * ids.shape[1] + i);
      if (tables->block_table[at] < 0) {
        raise(PyExc_IndexError, "block_table[" + std::to_string(seq) + ", " + std::to_string(i) +
                                    "]: found -1 below a length of " +
                                    std::to_string(tables->lengths[seq]) + ", expected a page");
      }
    }
  }
}

PyKvView make_view(nb::handle key, nb::handle value, nb::handle layout_name, nb::handle lengths,
                   nb::handle block_table, nb::handle first_position, nb::handle first_visible) {
  const Layout layout = layout_from(layout_name);
  GivenRows pair(key, value, layout);
  auto tables = std::make_shared<Tables>();
  tables->parts.push_back(dense_part(pair.rows, layout));
  tables->lengths = optional_values("lengths", lengths);
  tables->first_position = optional_values("first_position", first_position);
  tables->first_visible = optional_values("first_visible", first_visible);
  const std::int64_t longest = pair.rows.key.shape[axes_of(layout).token];
  for (std::size_t i = 0; i < tables->lengths.size(); ++i) {
    const std::int32_t length = tables->lengths[i];
    if (length >= 0 && (!block_table.is_none() || length <= longest)) continue;
    invalid("lengths[" + std::to_string(i) + "]", std::to_string(length),
            "0 .. " + std::to_string(block_table.is_none() ? longest : kMaxInt32));
  }
  if (!block_table.is_none()) {
    set_block_table(block_table, pair.rows, tables.get());
  } else if (lengths.is_none()) {
    tables->lengths.assign(static_cast<std::size_t>(pair.rows.key.shape[0]),
                           static_cast<std::int32_t>(longest));
  } else if (static_cast<std::int64_t>(tables->lengths.size()) != pair.rows.key.shape[0]) {
    invalid("lengths", std::to_string(tables->lengths.size()) + " entries",
            std::to_string(pair.rows.key.shape[0]));
  }
  expect_entries("first_position", tables->first_position, tables->lengths.size());
  expect_entries("first_visible", tables->first_visible, tables->lengths.size());
  PyKvView made(own(std::move(tables), pair.rows, layout));
  made.arrays = std::move(pair.arrays);
  for (Array& array : made.arrays) array.keep_memory();
  return made;
}

std::string repr(const PyKvView& self) {
  const KvView& v = self.view;
  std::int64_t rows = 0;
  for (std::int32_t seq = 0; seq < v.num_seqs; ++seq) rows += total_length(v, seq);
  return "KvView(num_seqs=" + std::to_string(v.num_seqs) +
         ", num_kv_heads=" + std::to_string(v.num_kv_heads) +
         ", k_head_dim=" + std::to_string(v.k_head_dim) +
         ", v_head_dim=" + std::to_string(v.v_head_dim) + ", rows=" + std::to_string(rows) +
         ", parts=" + std::to_string(v.num_parts) + ")";
}

// Parts of all `views`, in their order.
PyKvView join(const nb::typed<nb::sequence, PyKvView>& views) {
  auto parts = std::make_shared<std::vector<KvPart>>();
  const nb::tuple keep(views);
  KvView view;
  std::vector<std::int32_t> qo_indptr;
  for (nb::handle item : keep) {
    if (!nb::isinstance<PyKvView>(item)) {
      raise(PyExc_TypeError, std::string("views: found ") + nb::type_name(item.type()).c_str() +
                                 ", expected KvView");
    }
    const auto& next = nb::cast<const PyKvView&>(item);
    const KvView& v = next.view.get();
    if (parts->empty()) {
      view = v;
    } else if (v.num_seqs != view.num_seqs || v.num_kv_heads != view.num_kv_heads ||
               v.k_head_dim != view.k_head_dim || v.v_head_dim != view.v_head_dim) {
      invalid("views", repr(next), "the sequences, heads and head sizes of the first");
    }
    qo_indptr = next.qo_indptr;
    parts->insert(parts->end(), v.parts, v.parts + v.num_parts);
  }
  if (parts->empty()) invalid("views", "none", "at least one");
  view.num_parts = static_cast<std::int32_t>(parts->size());
  view.parts = parts->data();
  PyKvView made{OwnedKvView(view, std::move(parts))};
  made.keep = keep;
  made.qo_indptr = std::move(qo_indptr);
  return made;
}

nb::typed<nb::list, std::int64_t> lengths_of(const PyKvView& self) {
  nb::list lengths;
  for (std::int32_t seq = 0; seq < self.view.get().num_seqs; ++seq) {
    lengths.append(total_length(self.view, seq));
  }
  return lengths;
}

}  // namespace

std::int64_t PyKvView::elements() const noexcept {
  const KvView& v = view;
  std::int64_t count = 0;
  for (std::int32_t seq = 0; seq < v.num_seqs; ++seq) count += total_length(v, seq);
  return times(times(count, v.num_kv_heads), std::int64_t{v.k_head_dim} + v.v_head_dim);
}

void PyKvView::expect_memory() const {
  if (!arrays.empty()) {
    arrays[0].expect_memory("key");
    arrays[1].expect_memory("value");
  }
  if (!keep.is_valid() || !nb::isinstance<nb::tuple>(keep)) return;
  for (nb::handle joined : keep) nb::cast<const PyKvView&>(joined).expect_memory();
}

PyKvView view_of_arrays(nb::handle key, nb::handle value, Layout layout) {
  GivenRows pair(key, value, layout);
  PyKvView made(take(dense_view(pair.rows, layout)));
  made.arrays = std::move(pair.arrays);
  return made;
}

KvArgument::KvArgument(nb::handle object, std::int64_t layer, Layout layout) {
  if (nb::isinstance<PyKvView>(object)) {
    view_ = &nb::cast<const PyKvView&>(object);
    view_->expect_memory();
    return;
  }
  if (nb::isinstance<PyCache>(object)) {
    made_ = view_of(nb::cast<const PyCache&>(object), layer);
  } else if (nb::isinstance<PyLayer>(object)) {
    const auto& handle = nb::cast<const PyLayer&>(object);
    made_ = view_of(*handle.cache, handle.layer);
  } else if (nb::isinstance<PyState>(object)) {
    made_ = view_of(nb::cast<const PyState&>(object), layer);
  } else if (nb::isinstance<nb::sequence>(object) && nb::len(object) == 2) {
    made_ = std::make_unique<PyKvView>(
        view_of_arrays(nb::object(object[0]), nb::object(object[1]), layout));
  } else {
    raise(PyExc_TypeError, std::string("kv: found ") + nb::type_name(object.type()).c_str() +
                               ", expected a KvView, a cache or a pair (key, value) of arrays");
  }
  view_ = made_.get();
}

void bind_kv_view(nb::module_& module) {
  nb::class_<PyKvView>(module, "KvView", nb::type_slots(collected<PyKvView, &PyKvView::keep>),
                       "One layer of a list of sequences: all that attention knows of a cache.\n\n"
                       "What view() of a cache returns. Rows are not copied. Valid until the next "
                       "change of the cache, or of\none of its sequences where pages are used: "
                       "after it the rows that attention reads are unspecified.")
      .def(
          "__init__",
          [](PyKvView* self, GivenArray key, GivenArray value, GivenLayout layout, GivenIds lengths,
             GivenBlockTable block_table, GivenIds first_position, GivenIds first_visible) {
            new (self) PyKvView(
                make_view(key, value, layout, lengths, block_table, first_position, first_visible));
          },
          nb::arg("key").none(), nb::arg("value").none(), nb::kw_only(), nb::arg("layout") = "hnd",
          nb::arg("lengths") = nb::none(), nb::arg("block_table") = nb::none(),
          nb::arg("first_position") = nb::none(), nb::arg("first_visible") = nb::none(),
          "A view over your own memory, which is not copied and must not be resized: attention "
          "then raises ValueError.\n\n"
          "Without a block table sequence s is key[s], value[s]: [num_seqs, num_kv_heads, "
          "max_length,\nhead_dim] (\"nhd\": [num_seqs, max_length, num_kv_heads, head_dim]), and "
          "lengths, [num_seqs] tokens,\ndefaults to max_length. With one, key and value are pages "
          "[num_pages, num_kv_heads, page_size,\nhead_dim] (\"nhd\": [num_pages, page_size, "
          "num_kv_heads, head_dim]) and block_table is\n[num_seqs, max_pages] page ids, -1 for "
          "unused. Rows before first_visible do not exist.\n\n"
          "Errors: ValueError for shapes, types and rows that are not dense; IndexError for page "
          "ids.")
      .def_static("join", &join, nb::arg("views"),
                  "One view of the rows of several, in their order: parts of the same sequences.")
      .def_prop_ro("num_seqs", [](const PyKvView& self) { return self.view.get().num_seqs; })
      .def_prop_ro("num_kv_heads",
                   [](const PyKvView& self) { return self.view.get().num_kv_heads; })
      .def_prop_ro("k_head_dim", [](const PyKvView& self) { return self.view.get().k_head_dim; })
      .def_prop_ro("v_head_dim", [](const PyKvView& self) { return self.view.get().v_head_dim; })
      .def_prop_ro("num_parts", [](const PyKvView& self) { return self.view.get().num_parts; })
      .def_prop_ro("lengths", &lengths_of, "Rows of each sequence, hidden ones included.")
      .def("__repr__", &repr);
}

}  // namespace kvcache::python
