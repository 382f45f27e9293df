#include "cache/paged/tables.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/expect.h"

namespace kvcache::internal {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

std::size_t group_index(const PagedStore& store, std::int64_t layer) noexcept {
  return static_cast<std::size_t>(store.place(layer).group);
}

Status check_count(const char* name, std::int64_t count) {
  if (count <= kMaxInt32) return {};
  return refusal(StatusCode::kOutOfRange, name, count, "at most 2147483647");
}

KvPart make_part(const PagedStore& store, const PageGroup& group, std::int64_t layer,
                 const PagedTables& tables) noexcept {
  KvPart part;
  part.k = group.rows(store.place(layer).index, 0);
  part.v = group.rows(store.place(layer).index, 1);
  part.page_size = static_cast<std::int32_t>(store.page_size());
  part.block_table = tables.block_table.data();
  part.block_table_stride = tables.stride;
  part.lengths = tables.lengths.data();
  if (group.rule().is_tail()) {
    part.first_position = tables.first_position.data();
    part.first_visible = tables.first_visible.data();
  }
  if (group.rule().keeps_all() || group.rule().is_tail()) return part;
  const Life& life = group.rule().life;
  part.hole_begin = tables.hole_begin.data();
  part.hole_pages = tables.hole_pages.data();
  part.first_held = tables.first_held.data();
  part.held_window = static_cast<std::int32_t>(life.window);
  part.held_sink_tokens = life.sink_tokens;
  part.held_chunk = static_cast<std::int32_t>(life.chunk);
  return part;
}

// The parts of a layer, that of its tail behind that of its codes.
void add_parts(const PagedStore& store, std::int64_t layer, PagedTables& tables) {
  tables.parts.push_back(make_part(store, store.group_of(layer), layer, tables));
  if (tables.tail == nullptr) return;
  const auto tail = static_cast<std::size_t>(store.tail_group(layer));
  tables.parts.push_back(make_part(store, store.group(tail), layer, *tables.tail));
}

OwnedKvView make_view(const PagedStore& store, std::int64_t layer, const KvPart* part,
                      std::int64_t num_seqs, std::shared_ptr<const PagedTables> tables) noexcept {
  const LayerSpec& spec = store.spec_of(layer);
  KvView view;
  view.device = store.device();
  view.num_seqs = static_cast<std::int32_t>(num_seqs);
  view.num_kv_heads = static_cast<std::int32_t>(spec.key().heads);
  view.k_head_dim = static_cast<std::int32_t>(spec.key().dim);
  view.v_head_dim = static_cast<std::int32_t>(spec.value().dim);
  view.num_parts = tables->tail == nullptr ? 1 : 2;
  view.parts = part;
  return OwnedKvView(view, std::move(tables));
}

// An unused table of -1 with the lengths given: stride at least 1, because a part without a table
// means something else.
std::shared_ptr<PagedTables> empty_tables(const PageGroup& group, std::size_t num_seqs,
                                          std::int64_t max_pages) {
  auto tables = std::make_shared<PagedTables>();
  tables->stride = std::max<std::int64_t>(max_pages, 1);
  tables->block_table.assign(
      std::max<std::size_t>(num_seqs, 1) * static_cast<std::size_t>(tables->stride), -1);
  tables->lengths.assign(std::max<std::size_t>(num_seqs, 1), 0);
  if (group.rule().is_tail()) {
    tables->first_position = tables->first_visible = tables->lengths;
  } else if (!group.rule().keeps_all()) {
    tables->hole_begin = tables->hole_pages = tables->first_held = tables->lengths;
  }
  return tables;
}

// Length and hole of sequence i, of which `entries` pages are listed. The hole of a view reaches to
// its end where the page of the last rows is gone too.
void set_sequence(PagedTables& tables, std::size_t i, std::int64_t length, std::int64_t entries,
                  std::int64_t page_size, const GroupTable& table) noexcept {
  if (!tables.first_position.empty()) {  // a tail: the pages listed begin where the hole ends
    const std::int64_t begin =
        table.first < length ? table.first / page_size * page_size : table.first;
    tables.first_position[i] = static_cast<std::int32_t>(begin);
    tables.first_visible[i] = static_cast<std::int32_t>(table.first - begin);
    tables.lengths[i] = static_cast<std::int32_t>(length - begin);
    return;
  }
  tables.lengths[i] = static_cast<std::int32_t>(length);
  if (tables.hole_pages.empty()) return;
  tables.hole_begin[i] = static_cast<std::int32_t>(table.hole_begin);
  tables.hole_pages[i] = static_cast<std::int32_t>(pages_for(length, page_size) - entries);
  tables.first_held[i] = static_cast<std::int32_t>(table.first);
}

// What the sequences have committed to a group, `length_of` rows of each.
template <typename LengthOf>
std::shared_ptr<PagedTables> committed_tables(const PagedStore& store, std::size_t g,
                                              Sequences seqs, LengthOf length_of) {
  std::int64_t max_pages = 0;
  for (const PagedSequence* seq : seqs) {
    max_pages = std::max(max_pages, static_cast<std::int64_t>(seq->tables[g].pages.size()));
  }
  std::shared_ptr<PagedTables> tables = empty_tables(store.group(g), seqs.size(), max_pages);
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    const GroupTable& table = seqs[i]->tables[g];
    set_sequence(*tables, i, length_of(*seqs[i]), static_cast<std::int64_t>(table.pages.size()),
                 store.page_size(), table);
    std::copy(table.pages.begin(), table.pages.end(),
              tables->block_table.begin() + static_cast<std::int64_t>(i) * tables->stride);
  }
  return tables;
}

std::int64_t whole_length(const PagedSequence& seq) noexcept { return seq.length; }
std::int64_t coded_length(const PagedSequence& seq) noexcept { return seq.coded; }

// What the sequences of a step have committed to a group, and the step's own rows.
std::shared_ptr<PagedTables> tables_with_step(const PagedStore& store, const PagedStep& step,
                                              std::size_t g) {
  const GroupRoom& room = step.rooms[g];
  std::int64_t max_pages = 0;
  for (std::size_t i = 0; i < step.seqs.size(); ++i) {
    const auto held = static_cast<std::int64_t>(step.seqs[i].seq->tables[g].pages.size());
    max_pages = std::max(max_pages, held + room.seqs[i + 1].begin - room.seqs[i].begin);
  }
  std::shared_ptr<PagedTables> tables = empty_tables(store.group(g), step.seqs.size(), max_pages);
  for (std::size_t i = 0; i < step.seqs.size(); ++i) {
    const PagedSequence& seq = *step.seqs[i].seq;
    std::int32_t* const begin =
        tables->block_table.data() + static_cast<std::int64_t>(i) * tables->stride;
    std::int32_t* next = std::copy(seq.tables[g].pages.begin(), seq.tables[g].pages.end(), begin);
    if (room.seqs[i].copies_tail) --next;
    next = std::copy(room.pages.begin() + room.seqs[i].begin,
                     room.pages.begin() + room.seqs[i + 1].begin, next);
    set_sequence(*tables, i, seq.length + step.seqs[i].count, next - begin, store.page_size(),
                 seq.tables[g]);
  }
  return tables;
}

// Those that the views of a step's layers point into. Codes are as they were before the step, whose
// rows are in the tail.
std::shared_ptr<const PagedTables> step_tables(const PagedStore& store, const PagedStep& step,
                                               std::size_t g) {
  const GroupLayout& shape = store.layout().groups[g];
  std::shared_ptr<PagedTables> tables;
  if (shape.tail < 0) {
    tables = tables_with_step(store, step, g);
  } else {
    std::vector<const PagedSequence*> seqs;
    seqs.reserve(step.seqs.size());
    for (const StepSequence& entry : step.seqs) seqs.push_back(entry.seq);
    tables = committed_tables(store, g, seqs, coded_length);
    tables->tail = tables_with_step(store, step, static_cast<std::size_t>(shape.tail));
  }
  tables->parts.reserve(2 * shape.layers.size());
  for (const LayerLayout& layer : shape.layers) add_parts(store, layer.layer, *tables);
  return tables;
}

}  // namespace

Result<OwnedKvView> committed_view(const PagedStore& store, std::int64_t layer, Sequences seqs) {
  const std::size_t g = group_index(store, layer);
  KVC_RETURN_IF_ERROR(check_count("seqs", static_cast<std::int64_t>(seqs.size())));
  std::shared_ptr<PagedTables> tables;
  if (const std::int32_t tail = store.tail_group(layer); tail < 0) {
    tables = committed_tables(store, g, seqs, whole_length);
  } else {
    tables = committed_tables(store, g, seqs, coded_length);
    tables->tail = committed_tables(store, static_cast<std::size_t>(tail), seqs, whole_length);
  }
  add_parts(store, layer, *tables);
  const KvPart* part = tables->parts.data();
  return make_view(store, layer, part, static_cast<std::int64_t>(seqs.size()), std::move(tables));
}

Result<OwnedKvView> step_view(const PagedStore& store, PagedStep& step, std::int64_t layer) {
  const std::size_t g = group_index(store, layer);
  const std::int64_t num_seqs = static_cast<std::int64_t>(step.seqs.size());
  KVC_RETURN_IF_ERROR(check_count("appends", num_seqs));
  std::shared_ptr<const PagedTables> tables;
  {
    const std::lock_guard lock(step.mutex);
    if (step.rooms[g].tables == nullptr) step.rooms[g].tables = step_tables(store, step, g);
    tables = step.rooms[g].tables;
  }
  const std::int64_t each = tables->tail == nullptr ? 1 : 2;
  const KvPart* part = tables->parts.data() + each * store.place(layer).index;
  return make_view(store, layer, part, num_seqs, std::move(tables));
}

Result<BlockTable> make_block_table(const PagedStore& store, std::int64_t layer, Sequences seqs) {
  const std::size_t g = group_index(store, layer);
  BlockTable table;
  table.num_seqs = static_cast<std::int64_t>(seqs.size());
  KVC_RETURN_IF_ERROR(check_count("seqs", table.num_seqs));
  for (const PagedSequence* seq : seqs) {
    table.max_pages =
        std::max(table.max_pages, static_cast<std::int64_t>(seq->tables[g].pages.size()));
  }
  table.pages.assign(static_cast<std::size_t>(table.num_seqs * table.max_pages), -1);
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    std::copy(seqs[i]->tables[g].pages.begin(), seqs[i]->tables[g].pages.end(),
              table.pages.begin() + static_cast<std::int64_t>(i) * table.max_pages);
  }
  return table;
}

Result<PageIndices> make_page_indices(const PagedStore& store, std::int64_t layer, Sequences seqs) {
  const std::size_t g = group_index(store, layer);
  std::int64_t total = 0;
  for (const PagedSequence* seq : seqs)
    total += static_cast<std::int64_t>(seq->tables[g].pages.size());
  KVC_RETURN_IF_ERROR(check_count("kv_indices", total));
  PageIndices indices;
  indices.kv_indptr.reserve(seqs.size() + 1);
  indices.kv_indices.reserve(static_cast<std::size_t>(total));
  indices.kv_last_page_len.reserve(seqs.size());
  indices.kv_indptr.push_back(0);
  for (const PagedSequence* seq : seqs) {
    const GroupTable& held = seq->tables[g];
    const std::vector<std::int32_t>& pages = held.pages;
    indices.kv_indices.insert(indices.kv_indices.end(), pages.begin(), pages.end());
    indices.kv_indptr.push_back(static_cast<std::int32_t>(indices.kv_indices.size()));
    indices.kv_last_page_len.push_back(
        static_cast<std::int32_t>(store.group(g).last_page_rows(held, seq->length)));
  }
  return indices;
}

Result<std::vector<std::int32_t>> make_slot_mapping(const PagedStore& store, const PagedStep& step,
                                                    std::int64_t layer) {
  std::vector<std::int32_t> slots;
  slots.reserve(static_cast<std::size_t>(step.num_new_tokens));
  for (const StepRun& run : step.rooms[group_index(store, layer)].runs) {
    const std::int64_t first = run.page * store.page_size() + run.slot;
    for (std::int64_t i = 0; i < run.count; ++i) {
      slots.push_back(static_cast<std::int32_t>(first + i));
    }
  }
  return slots;
}

}  // namespace kvcache::internal
