// The bookkeeping of a PagedStore, counted again from scratch.
#include <string>
#include <vector>

#include "base/expect.h"
#include "cache/paged/store.h"

namespace kvcache::internal {
namespace {

Status broken(std::size_t group, const std::string& what) {
  return Status(StatusCode::kInternal, "group " + std::to_string(group) + ": " + what);
}

Status check_page(std::size_t group, std::int64_t page, std::int64_t uses, bool fresh) {
  if (uses == (fresh ? 0 : 1)) return {};
  return broken(group, "page " + std::to_string(page) + ": found in " + std::to_string(uses) +
                           " of free, held and reserved, expected " + (fresh ? "none" : "one"));
}

}  // namespace

Status PagedStore::check_invariants() const {
  std::int64_t entries = 0;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const PagePool& pool = groups_[g].pool;
    const std::size_t num_pages = static_cast<std::size_t>(pool.num_pages());
    std::vector<std::int64_t> named(num_pages);     // by how many tables
    std::vector<std::int64_t> free(num_pages);      // how often in the free list
    std::vector<std::int64_t> reserved(num_pages);  // by how many open steps
    const auto count = [&](std::vector<std::int64_t>& counts, std::int32_t page) {
      if (page < 0 || page >= pool.touched()) {
        return broken(g, "page " + std::to_string(page) + ": found in use, expected 0 .. " +
                             std::to_string(pool.touched() - 1));
      }
      ++counts[static_cast<std::size_t>(page)];
      return Status();
    };
    for (const auto& [id, seq] : sequences_) {
      const std::string name = "sequence " + std::to_string(id);
      if (static_cast<std::int64_t>(seq->tables[g].size()) != pages_for(seq->length, page_size())) {
        return broken(g, name + ": found " + std::to_string(seq->tables[g].size()) +
                             " pages for length " + std::to_string(seq->length));
      }
      if (seq->known_tokens < 0 || seq->known_tokens > seq->length) {
        return broken(g, name + ": found " + std::to_string(seq->known_tokens) + " known tokens");
      }
      for (const std::int32_t page : seq->tables[g]) KVC_RETURN_IF_ERROR(count(named, page));
      entries += static_cast<std::int64_t>(seq->tables[g].size());
      if (seq->step == nullptr) continue;
      const std::size_t i = static_cast<std::size_t>(seq->step_index);
      if (i >= seq->step->seqs.size() || seq->step->seqs[i].seq != seq.get()) {
        return broken(g, name + ": found in a step that does not name it");
      }
      const StepGroup& group = seq->step->groups[g];
      for (std::int64_t p = group.rooms[i].begin; p < group.rooms[i + 1].begin; ++p) {
        KVC_RETURN_IF_ERROR(count(reserved, group.pages[static_cast<std::size_t>(p)]));
        ++entries;
      }
    }
    for (const std::int32_t page : pool.free_list()) KVC_RETURN_IF_ERROR(count(free, page));
    std::int64_t held = 0;
    std::int64_t taken = 0;
    for (std::size_t page = 0; page < num_pages; ++page) {
      const std::int64_t id = static_cast<std::int64_t>(page);
      KVC_RETURN_IF_ERROR(
          check_page(g, id, free[page] + reserved[page] + (named[page] > 0), id >= pool.touched()));
      if (pool.references(static_cast<std::int32_t>(page)) != named[page]) {
        return broken(g, "page " + std::to_string(page) + ": found " +
                             std::to_string(pool.references(static_cast<std::int32_t>(page))) +
                             " references, expected " + std::to_string(named[page]));
      }
      held += named[page] > 0;
      taken += reserved[page];
    }
    if (held != pool.held() || taken != pool.reserved()) {
      return broken(g, "found " + std::to_string(pool.held()) + " held and " +
                           std::to_string(pool.reserved()) + " reserved, expected " +
                           std::to_string(held) + " and " + std::to_string(taken));
    }
  }
  if (entries != table_entries_) {
    return refusal(StatusCode::kInternal, "table entries", table_entries_, entries);
  }
  return {};
}

}  // namespace kvcache::internal
