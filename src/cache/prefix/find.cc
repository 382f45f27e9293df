// Searches: which pages of a text are known, and how many of its tokens every group can serve.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/expect.h"
#include "cache/prefix/index.h"

namespace kvcache::internal {

// --- Namespaces. ---

// The end of a space's last owner.
struct PrefixSpaceGone {
  void operator()(PrefixSpace* space) const noexcept {
    if (PrefixIndex* const index = space->index; index != nullptr) {
      index->names_.erase(space->name);
      index->spaces_[static_cast<std::size_t>(space->number)] = nullptr;
      index->free_numbers_.push_back(space->number);  // there is room: see space()
      index->store_->return_records(PrefixIndex::kSpaceRecords);
    }
    delete space;
  }
};

std::uint64_t PrefixIndex::key_of(const PrefixNamespace& name) const noexcept {
  std::int32_t words[8];
  std::memcpy(words, name.bits.data(), sizeof words);
  return hash_(static_cast<std::uint64_t>(name.tenant), words, 8);
}

PrefixSpace* PrefixIndex::find_space(const PrefixNamespace& name) const noexcept {
  const auto found = names_.find(name);
  return found == names_.end() ? nullptr : found->second;
}

Result<std::shared_ptr<PrefixSpace>> PrefixIndex::space(const PrefixNamespace& name) {
  if (PrefixSpace* const known = find_space(name); known != nullptr) {
    return known->weak.lock();
  }
  auto made = std::make_unique<PrefixSpace>();
  made->name = name;
  made->key = key_of(name);
  if (const auto tenant = tenants_.find(name.tenant); tenant != tenants_.end()) {
    made->tenant = &tenant->second;
  }
  if (spaces_.size() == spaces_.capacity()) spaces_.reserve(2 * spaces_.size() + 8);
  free_numbers_.reserve(spaces_.capacity());
  PrefixSpace* const raw = made.get();
  std::shared_ptr<PrefixSpace> shared(made.release(), PrefixSpaceGone());
  raw->weak = shared;
  names_.emplace(name, raw);
  const Status status = store_->charge_records(kSpaceRecords);
  if (!status.ok()) {
    names_.erase(name);
    return status;
  }
  // From here on its end undoes it. Room for it may have ended other spaces.
  raw->index = this;
  raw->number = static_cast<std::int32_t>(spaces_.size());
  if (!free_numbers_.empty()) raw->number = free_numbers_.back();
  if (free_numbers_.empty()) {
    spaces_.push_back(raw);
  } else {
    free_numbers_.pop_back();
    spaces_[static_cast<std::size_t>(raw->number)] = raw;
  }
  return shared;
}

// --- Texts. ---

bool PrefixIndex::has(std::size_t group, const PrefixFound& found,
                      std::int64_t page) const noexcept {
  return page_of(group, found.nodes[static_cast<std::size_t>(page)]) >= 0;
}

// The longest beginning of at most `length` tokens of which the group has all that a query behind
// it sees.
std::int64_t PrefixIndex::limit_of(std::size_t group, const PrefixFound& found,
                                   std::int64_t length) const noexcept {
  const KeepRule& rule = store_->group(group).rule();
  if (rule.keeps_all()) return length;
  // Sinks are seen from everywhere.
  const std::int64_t sinks = std::min<std::int64_t>(rule.life.sink_tokens, length);
  for (std::int64_t page = 0; page * page_size_ < sinks; ++page) {
    if (!has(group, found, page)) {
      length = page * page_size_;
      break;
    }
  }
  // A page that is missing is passed by no window that reaches into it.
  for (std::int64_t page = pages_for(length, page_size_); page-- > 0;) {
    if ((page + 1) * page_size_ <= rule.seen(length)) break;
    if (!has(group, found, page)) length = std::min(length, page * page_size_);
  }
  return length;
}

PrefixFound PrefixIndex::find(const PrefixNamespace& name,
                              std::span<const std::int32_t> tokens) const {
  PrefixFound found;
  const PrefixSpace* const space = find_space(name);
  if (tokens.empty()) return found;
  const auto most = static_cast<std::int64_t>(tokens.size()) - 1;
  const std::uint64_t first = key_of(name);
  std::uint64_t key = first;
  std::int32_t root = space != nullptr ? space->root : -1;
  const std::int64_t now = ttl_ > 0 || has_deadlines_ ? clock_() : 0;
  found.reason = PrefixMiss::kCold;
  while (found.stored < most) {
    const auto rest = tokens.subspan(static_cast<std::size_t>(found.stored));
    const auto page = rest.first(std::min(rest.size(), static_cast<std::size_t>(page_size_)));
    const ChildMatch match = trees_.find(root, page);
    const bool is_whole = match.common == page_size_;
    if (match.node >= 0) {
      const PrefixNode& node = nodes_[match.node];
      if (node.deadline != 0 && now >= node.deadline) {
        found.reason = PrefixMiss::kExpired;
        break;
      }
      found.nodes.push_back(match.node);
      found.stored += match.common;
      key = node.key;
      root = node.children;
    }
    if (is_whole) continue;
    // Behind a page that is known in part there is none that is known.
    if (static_cast<std::int64_t>(page.size()) == page_size_) {
      const std::uint64_t parent = match.node < 0 ? key
                                   : nodes_[match.node].parent >= 0
                                       ? nodes_[nodes_[match.node].parent].key
                                       : first;
      const std::uint64_t wanted = hash_(parent, page.data(), page_size_);
      if (num_nodes_ > 0 && gone(wanted) == tag_of(wanted)) found.reason = PrefixMiss::kEvicted;
    }
    break;
  }
  if (found.stored >= most) {
    found.stored = most;
    found.reason = PrefixMiss::kLastToken;
  } else if (found.stored == 0 && found.reason == PrefixMiss::kCold && stats_.pages > 0 &&
             (space == nullptr || space->nodes == 0)) {
    found.reason = PrefixMiss::kOtherNamespace;
  }
  found.length = found.stored;
  for (bool again = true; again;) {
    again = false;
    for (std::size_t g = 0; g < num_groups(); ++g) {
      const std::int64_t length = limit_of(g, found, found.length);
      if (length == found.length) continue;
      found.length = length;
      found.group = static_cast<std::int64_t>(g);
      found.reason = PrefixMiss::kWindow;
      again = true;
    }
  }
  found.nodes.resize(static_cast<std::size_t>(pages_for(found.length, page_size_)));
  return found;
}

Result<SequenceId> PrefixIndex::hold(const PrefixFound& found, std::shared_ptr<PrefixSpace> space) {
  auto seq = store_->make_sequence();
  const std::int64_t length = found.length;
  seq->length = seq->known_tokens = length;
  seq->is_handle = true;
  for (std::size_t g = 0; g < num_groups(); ++g) {
    GroupTable& table = seq->tables[g];
    const KeepRule& rule = store_->group(g).rule();
    const std::int64_t sinks = rule.life.sink_tokens;
    // From the first row that is kept, or as far down as the pages are there.
    std::int64_t first = rule.first(length);
    for (std::int64_t p = rule.seen(length) / page_size_; p >= first / page_size_; --p) {
      if (p * page_size_ >= length || has(g, found, p)) continue;
      first = (p + 1) * page_size_;
      break;
    }
    const LivePages live = live_pages(first, length, sinks, page_size_);
    table.first = first;
    table.hole_begin = live.sinks;
    table.hole_pages = live.begin - live.sinks;
    table.pages.reserve(static_cast<std::size_t>(live.count()));
    for (std::int64_t p = 0; p < live.end; ++p) {
      if (p >= live.sinks && p < live.begin) continue;
      table.pages.push_back(page_of(g, found.nodes[static_cast<std::size_t>(p)]));
    }
  }
  seq->tables.back().pages = found.nodes;
  seq->cursor.space = std::move(space);
  seq->cursor.pages = length / page_size_;
  if (seq->cursor.pages > 0) {
    seq->cursor.node = found.nodes[static_cast<std::size_t>(seq->cursor.pages - 1)];
    seq->cursor.serial = nodes_[seq->cursor.node].serial;
  }
  // Held from here on, so that none leaves for the room that their table needs.
  struct Woken {
    PrefixIndex& index;
    std::vector<std::int32_t> nodes;
    bool stays = false;
    ~Woken() {
      for (std::size_t i = 0; !stays && i < nodes.size(); ++i) index.set_unheld(nodes[i], true);
      for (std::size_t i = nodes.size(); !stays && i-- > 0;) {
        if (index.nodes_[nodes[i]].aside && index.can_leave(nodes[i])) index.put_back(nodes[i]);
      }
    }
  } woken{*this, {}};
  woken.nodes.reserve(found.nodes.size());
  for (const std::int32_t node : found.nodes) {
    if (!nodes_[node].unheld) continue;
    set_unheld(node, false);
    woken.nodes.push_back(node);
  }
  KVC_ASSIGN_OR_RETURN(const PagedSequence* held, store_->assemble(std::move(seq)));
  woken.stays = true;
  return held->id;
}

void PrefixIndex::set_unheld(std::int32_t node, bool unheld) noexcept {
  nodes_[node].unheld = unheld;
  stats_.pages_unheld += unheld ? 1 : -1;
  PrefixTenant* const tenant = space_of(node).tenant;
  if (tenant != nullptr) tenant->unheld += unheld ? 1 : -1;
}

void PrefixIndex::use(const PrefixFound& found) noexcept {
  for (std::size_t i = found.nodes.size(); i-- > 0;) touch(found.nodes[i], false);
}

}  // namespace kvcache::internal
