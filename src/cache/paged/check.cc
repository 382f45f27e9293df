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
  std::vector<bool> held;              // [num_pages, page_size] committed rows
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
    uses.held.resize(num_pages * static_cast<std::size_t>(page_size()));
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
      const GroupTable& table = seq->tables[g];
      const std::int64_t length = length_in(g, *seq);
      if (groups_[g].rule().is_tail() && table.first != seq->coded) {
        return broken(g, name + ": found a tail from " + std::to_string(table.first) + " behind " +
                             std::to_string(seq->coded) + " coded rows");
      }
      const std::int64_t sinks = groups_[g].rule().life.sink_tokens;
      const LivePages live = live_pages(table.first, length, sinks, page_size());
      // A step lets go when it ends, and a tail from elsewhere when the next rows come.
      const bool may_hold = seq->holds_rows || seq->step != nullptr || groups_[g].rule().is_tail();
      const std::int64_t least = may_hold ? 0 : groups_[g].rule().first(length);
      if (table.first < least || table.first > length) {
        return broken(g, name + ": found first " + std::to_string(table.first) + " for length " +
                             std::to_string(length));
      }
      if (static_cast<std::int64_t>(table.pages.size()) != live.count() ||
          table.hole_begin != live.sinks || table.hole_pages != live.begin - live.sinks) {
        return broken(g, name + ": found " + std::to_string(table.pages.size()) +
                             " pages for length " + std::to_string(length));
      }
      for (const std::int32_t page : table.pages) KVC_RETURN_IF_ERROR(count(uses.named, page));
      const auto hold = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const std::int64_t page = table.pages[table.entry(row / page_size())];
          uses.held[static_cast<std::size_t>(page * page_size() + row % page_size())] = true;
        }
      };
      hold(0, groups_[g].sink_rows(table));
      hold(table.first, length);
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
    std::vector<std::int64_t> rows(num_pages);
    for (std::size_t slot = 0; slot < uses.held.size(); ++slot) {
      rows[slot / static_cast<std::size_t>(page_size())] += uses.held[slot] ? 1 : 0;
    }
    const Status status = groups_[g].check(uses.named, uses.reserved, rows);
    if (!status.ok()) return broken(g, status.message());
  }
  if (entries == table_entries_) return {};
  return refusal(StatusCode::kInternal, "table entries", table_entries_, entries);
}

Status PageGroup::check(const std::vector<std::int64_t>& named,
                        const std::vector<std::int64_t>& reserved,
                        const std::vector<std::int64_t>& rows) const {
  const auto broken = [](std::int64_t page, const std::string& found, const std::string& expected) {
    return refusal(StatusCode::kInternal, "page " + std::to_string(page), found, expected);
  };
  const auto num_pages = static_cast<std::size_t>(pool_.num_pages());
  std::vector<std::int64_t> free(num_pages);
  for (const std::int32_t page : pool_.free_list()) {
    if (page < 0 || page >= pool_.touched()) return broken(page, "it free", "a page in use before");
    ++free[static_cast<std::size_t>(page)];
  }
  for (const std::int32_t page : pool_.bare_list()) {
    if (page < 0 || page >= pool_.touched()) return broken(page, "it bare", "a page in use before");
    ++free[static_cast<std::size_t>(page)];
  }
  std::int64_t held = 0, taken = 0, cached = 0, stored = 0;
  for (std::size_t p = 0; p < num_pages; ++p) {
    const auto page = static_cast<std::int32_t>(p);
    const bool fresh = page >= pool_.touched();  // nothing was written about it yet
    const std::int64_t is_cached = !fresh && pool_.is_cached(page) ? 1 : 0;
    const std::int64_t uses = free[p] + reserved[p] + (named[p] > 0 ? 1 : 0) + is_cached;
    if (uses != (fresh ? 0 : 1)) {
      return broken(page, std::to_string(uses) + " of free, held, reserved and cached",
                    fresh ? "none: it is fresh" : "one");
    }
    if (fresh) continue;
    if (pool_.references(page) != named[p]) {
      return broken(page, std::to_string(pool_.references(page)) + " references",
                    std::to_string(named[p]));
    }
    if (rows_ != nullptr && rows_[p] != rows[p]) {
      return broken(page, std::to_string(rows_[p]) + " rows", std::to_string(rows[p]));
    }
    held += named[p] > 0 ? 1 : 0;
    taken += reserved[p];
    cached += is_cached;
    stored += rows[p];
  }
  if (held != pool_.held() || taken != pool_.reserved() || cached != pool_.cached()) {
    return broken(
        -1,
        std::to_string(pool_.held()) + " held, " + std::to_string(pool_.reserved()) +
            " reserved, " + std::to_string(pool_.cached()) + " cached",
        std::to_string(held) + ", " + std::to_string(taken) + ", " + std::to_string(cached));
  }
  if (rows_ != nullptr && stored != stored_rows_) {
    return broken(-1, std::to_string(stored_rows_) + " rows in all", std::to_string(stored));
  }
  return {};
}

}  // namespace kvcache::internal
