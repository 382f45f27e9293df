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

KvPart make_part(const PagedStore& store, std::int64_t layer, const PagedTables& tables) noexcept {
  const PagedGroup& group = store.group_of(layer);
  KvPart part;
  part.k = store.k_rows(layer);
  part.v = store.v_rows(layer);
  part.k_format = group.spec.k_format;
  part.v_format = group.spec.v_format;
  part.k_page_stride = group.k_strides.page;
  part.k_head_stride = group.k_strides.head;
  part.k_token_stride = group.k_strides.token;
  part.v_page_stride = group.v_strides.page;
  part.v_head_stride = group.v_strides.head;
  part.v_token_stride = group.v_strides.token;
  part.page_size = static_cast<std::int32_t>(store.page_size());
  part.block_table = tables.block_table.data();
  part.block_table_stride = tables.stride;
  part.lengths = tables.lengths.data();
  return part;
}

OwnedKvView make_view(const PagedStore& store, std::int64_t layer, const KvPart* part,
                      std::int64_t num_seqs, std::shared_ptr<const PagedTables> tables) noexcept {
  const LayerSpec& spec = store.group_of(layer).spec;
  KvView view;
  view.device = store.device();
  view.num_seqs = static_cast<std::int32_t>(num_seqs);
  view.num_kv_heads = static_cast<std::int32_t>(spec.num_kv_heads);
  view.k_head_dim = static_cast<std::int32_t>(spec.k_head_dim);
  view.v_head_dim = static_cast<std::int32_t>(spec.v_head_dim);
  view.num_parts = 1;
  view.parts = part;
  return OwnedKvView(view, std::move(tables));
}

// An unused table of -1 with the lengths given: stride at least 1, because a part without a table
// means something else.
std::shared_ptr<PagedTables> empty_tables(std::size_t num_seqs, std::int64_t max_pages) {
  auto tables = std::make_shared<PagedTables>();
  tables->stride = std::max<std::int64_t>(max_pages, 1);
  tables->block_table.assign(
      std::max<std::size_t>(num_seqs, 1) * static_cast<std::size_t>(tables->stride), -1);
  tables->lengths.assign(std::max<std::size_t>(num_seqs, 1), 0);
  return tables;
}

std::shared_ptr<const PagedTables> step_tables(const PagedStore& store, const PagedStep& step,
                                               std::size_t g) {
  const StepGroup& group = step.groups[g];
  std::int64_t max_pages = 0;
  for (const StepSequence& entry : step.seqs) {
    max_pages = std::max(max_pages, pages_for(entry.seq->length + entry.count, store.page_size()));
  }
  std::shared_ptr<PagedTables> tables = empty_tables(step.seqs.size(), max_pages);
  for (std::size_t i = 0; i < step.seqs.size(); ++i) {
    const PagedSequence& seq = *step.seqs[i].seq;
    tables->lengths[i] = static_cast<std::int32_t>(seq.length + step.seqs[i].count);
    std::int32_t* next = tables->block_table.data() + static_cast<std::int64_t>(i) * tables->stride;
    next = std::copy(seq.tables[g].begin(), seq.tables[g].end(), next);
    if (group.rooms[i].copies_tail) --next;
    std::copy(group.pages.begin() + group.rooms[i].begin,
              group.pages.begin() + group.rooms[i + 1].begin, next);
  }
  const PagedGroup& shape = store.layout().groups[g];
  tables->parts.reserve(shape.layers.size());
  for (const std::int64_t layer : shape.layers) {
    tables->parts.push_back(make_part(store, layer, *tables));
  }
  return tables;
}

}  // namespace

Result<OwnedKvView> committed_view(const PagedStore& store, std::int64_t layer, Sequences seqs) {
  const std::size_t g = group_index(store, layer);
  KVC_RETURN_IF_ERROR(check_count("seqs", static_cast<std::int64_t>(seqs.size())));
  std::int64_t max_pages = 0;
  for (const PagedSequence* seq : seqs) {
    max_pages = std::max(max_pages, static_cast<std::int64_t>(seq->tables[g].size()));
  }
  std::shared_ptr<PagedTables> tables = empty_tables(seqs.size(), max_pages);
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    tables->lengths[i] = static_cast<std::int32_t>(seqs[i]->length);
    std::copy(seqs[i]->tables[g].begin(), seqs[i]->tables[g].end(),
              tables->block_table.begin() + static_cast<std::int64_t>(i) * tables->stride);
  }
  tables->parts.push_back(make_part(store, layer, *tables));
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
    if (step.groups[g].tables == nullptr) step.groups[g].tables = step_tables(store, step, g);
    tables = step.groups[g].tables;
  }
  const KvPart* part = tables->parts.data() + store.place(layer).index;
  return make_view(store, layer, part, num_seqs, std::move(tables));
}

Result<BlockTable> make_block_table(const PagedStore& store, std::int64_t layer, Sequences seqs) {
  const std::size_t g = group_index(store, layer);
  BlockTable table;
  table.num_seqs = static_cast<std::int64_t>(seqs.size());
  KVC_RETURN_IF_ERROR(check_count("seqs", table.num_seqs));
  for (const PagedSequence* seq : seqs) {
    table.max_pages = std::max(table.max_pages, static_cast<std::int64_t>(seq->tables[g].size()));
  }
  table.pages.assign(static_cast<std::size_t>(table.num_seqs * table.max_pages), -1);
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    std::copy(seqs[i]->tables[g].begin(), seqs[i]->tables[g].end(),
              table.pages.begin() + static_cast<std::int64_t>(i) * table.max_pages);
  }
  return table;
}

Result<PageIndices> make_page_indices(const PagedStore& store, std::int64_t layer, Sequences seqs) {
  const std::size_t g = group_index(store, layer);
  std::int64_t total = 0;
  for (const PagedSequence* seq : seqs) total += static_cast<std::int64_t>(seq->tables[g].size());
  KVC_RETURN_IF_ERROR(check_count("kv_indices", total));
  PageIndices indices;
  indices.kv_indptr.reserve(seqs.size() + 1);
  indices.kv_indices.reserve(static_cast<std::size_t>(total));
  indices.kv_last_page_len.reserve(seqs.size());
  indices.kv_indptr.push_back(0);
  for (const PagedSequence* seq : seqs) {
    const std::vector<std::int32_t>& pages = seq->tables[g];
    indices.kv_indices.insert(indices.kv_indices.end(), pages.begin(), pages.end());
    indices.kv_indptr.push_back(static_cast<std::int32_t>(indices.kv_indices.size()));
    const std::int64_t full = (static_cast<std::int64_t>(pages.size()) - 1) * store.page_size();
    indices.kv_last_page_len.push_back(
        pages.empty() ? 0 : static_cast<std::int32_t>(seq->length - full));
  }
  return indices;
}

Result<std::vector<std::int32_t>> make_slot_mapping(const PagedStore& store, const PagedStep& step,
                                                    std::int64_t layer) {
  std::vector<std::int32_t> slots;
  slots.reserve(static_cast<std::size_t>(step.num_new_tokens));
  for (const StepRun& run : step.groups[group_index(store, layer)].runs) {
    const std::int64_t first = run.page * store.page_size() + run.slot;
    for (std::int64_t i = 0; i < run.count; ++i) {
      slots.push_back(static_cast<std::int32_t>(first + i));
    }
  }
  return slots;
}

}  // namespace kvcache::internal
