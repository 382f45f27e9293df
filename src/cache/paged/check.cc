// The bookkeeping of a PagedStore, counted again from scratch.
#include <algorithm>
#include <string>
#include <vector>

#include "base/expect.h"
#include "cache/paged/store.h"

namespace kvcache::internal {
namespace {

Status broken(std::size_t group, const std::string& what) {
  return Status(StatusCode::kInternal, "group " + std::to_string(group) + ": " + what);
}

// What the tables of sequences and the rooms of their steps say of one group's pages.
struct Uses {
  std::vector<std::int64_t> named;     // by how many tables
  std::vector<std::int64_t> reserved;  // by how many open steps
  std::vector<std::int64_t> rows;      // committed ones
};

}  // namespace

Status PagedStore::check_invariants() const {
  std::int64_t entries = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const PagePool& pool = groups_[g].pool();
    const auto num_pages = static_cast<std::size_t>(pool.num_pages());
    Uses uses;
    uses.named.resize(num_pages);
    uses.reserved.resize(num_pages);
    uses.rows.resize(num_pages);
    const auto count = [&](std::vector<std::int64_t>& counts, std::int32_t page) {
      if (page < 0 || page >= pool.touched()) {
        return broken(g, "page " + std::to_string(page) + ": found in use, expected 0 .. " +
                             std::to_string(pool.touched() - 1));
      }
      ++counts[static_cast<std::size_t>(page)];
      ++entries;
      return Status();
    };
    for (const auto& [id, seq] : sequences_) {
      const std::string name = "sequence " + std::to_string(id);
      if (seq->known_tokens < 0 || seq->known_tokens > seq->length) {
        return broken(g, name + ": found " + std::to_string(seq->known_tokens) + " known tokens");
      }
      const std::vector<std::int32_t>& pages = seq->tables[g].pages;
      const std::int64_t length = length_in(g, *seq);
      if (static_cast<std::int64_t>(pages.size()) != pages_for(length, page_size())) {
        return broken(g, name + ": found " + std::to_string(pages.size()) + " pages for length " +
                             std::to_string(length));
      }
      for (std::size_t p = 0; p < pages.size(); ++p) {
        KVC_RETURN_IF_ERROR(count(uses.named, pages[p]));
        std::int64_t& rows = uses.rows[static_cast<std::size_t>(pages[p])];
        const std::int64_t before = static_cast<std::int64_t>(p) * page_size();
        rows = std::max(rows, std::min(page_size(), length - before));
      }
      if (seq->step == nullptr) continue;
      const std::size_t i = static_cast<std::size_t>(seq->step_index);
      if (i >= seq->step->seqs.size() || seq->step->seqs[i].seq != seq.get()) {
        return broken(g, name + ": found in a step that does not name it");
      }
      const GroupRoom& room = seq->step->rooms[g];
      for (std::int64_t p = room.seqs[i].begin; p < room.seqs[i + 1].begin; ++p) {
        KVC_RETURN_IF_ERROR(count(uses.reserved, room.pages[static_cast<std::size_t>(p)]));
      }
    }
    const Status status = groups_[g].check(uses.named, uses.reserved, uses.rows);
    if (!status.ok()) return broken(g, status.message());
  }
  if (entries == table_entries_) return {};
  return refusal(StatusCode::kInternal, "table entries", table_entries_, entries);
}

}  // namespace kvcache::internal
