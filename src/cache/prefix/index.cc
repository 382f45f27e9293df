#include "cache/prefix/index.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <utility>

#include "base/expect.h"
#include "cache/prefix/policies.h"

namespace kvcache::internal {
namespace {

std::int64_t steady_milliseconds() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// The shapes of the trees of children, which nobody outside can foresee.
std::uint64_t random_seed() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32) ^ device();
}

}  // namespace

// --- Beginning and end. ---

PrefixIndex::PrefixIndex(PagedStore& store, const PrefixOptions& options, TokenHash hash)
    : store_(&store),
      page_size_(store.page_size()),
      hash_(hash),
      clock_(options.clock ? options.clock : PrefixClock(steady_milliseconds)),
      ttl_(options.ttl),
      nodes_(reinterpret_cast<PrefixNode*>(store.prefix_memory())),
      groups_(static_cast<std::size_t>(store.layout().num_groups())),
      pages_(groups_.size()),
      policy_(options.policy),
      trees_(nodes_, store.token_slots(0), page_size_, random_seed()),
      events_(options.event_capacity) {
  lay_out(options.eviction);
}

void PrefixIndex::lay_out(Eviction eviction) {
  const auto count = static_cast<std::size_t>(store_->num_pages());
  std::byte* at = store_->prefix_memory() + count * sizeof(PrefixNode);
  const auto take = [&at, count](std::size_t bytes) {
    std::byte* const begin = at;
    at += count * bytes;
    return begin;
  };
  // The widest first, for their alignment.
  std::byte* const policy = take(kPolicyBytes);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].links = reinterpret_cast<PageLinks*>(take(sizeof(PageLinks)));
    groups_[g].keeps_all = store_->group(g).rule().keeps_all();
  }
  for (Group& group : groups_) {
    group.pages = reinterpret_cast<std::int32_t*>(take(sizeof(std::int32_t)));
    group.owners = reinterpret_cast<std::int32_t*>(take(sizeof(std::int32_t)));
  }
  gone_ = reinterpret_cast<std::uint32_t*>(take(sizeof(std::uint32_t)));
  if (policy_ == nullptr) {
    own_policy_ = make_policy(eviction, policy);
    policy_ = own_policy_.get();
  }
  policy_->begin(static_cast<std::int32_t>(store_->num_pages()));
  for (std::size_t g = 0; g <= groups_.size(); ++g) {
    const PageGroup& group = g == blocks() ? store_->blocks() : store_->group(g);
    init_places(g, 0, static_cast<std::int32_t>(group.pool().touched()));
  }
}

void PrefixIndex::init_places(std::size_t g, std::int32_t begin, std::int32_t end) noexcept {
  if (g != blocks()) {
    std::fill(groups_[g].links + begin, groups_[g].links + end, PageLinks{});
    std::fill(groups_[g].owners + begin, groups_[g].owners + end, 0);
    return;
  }
  std::fill(nodes_ + begin, nodes_ + end, PrefixNode());
  for (Group& group : groups_) std::fill(group.pages + begin, group.pages + end, 0);
  for (std::int32_t place = begin; place < end; ++place) {
    gone_[place] = place == 0 ? 0 : gone_[place_before(static_cast<std::uint32_t>(place))];
  }
  num_nodes_ = end;
  if (own_policy_ != nullptr) own_policy_->grow(end);
}

void PrefixIndex::touched(const PageGroup& group, std::int32_t begin, std::int32_t end) noexcept {
  init_places(static_cast<std::size_t>(group.number()), begin, end);
}

Result<std::unique_ptr<PrefixIndex>> PrefixIndex::create(PagedStore& store,
                                                         const PrefixOptions& options,
                                                         TokenHash hash) {
  std::unique_ptr<PrefixIndex> index(new PrefixIndex(store, options, hash));
  store.set_keeper(index.get());
  return index;
}

PrefixIndex::~PrefixIndex() { close(); }

void PrefixIndex::close() noexcept {
  if (store_ == nullptr) return;
  for (std::int32_t node = 0; node < num_nodes_; ++node) {
    if (nodes_[node].count > 0) remove_tree(node, false);
  }
  store_->forget_prefixes();
  store_->settle_tables();
  store_->set_keeper(nullptr);
  for (PrefixSpace* space : spaces_) {
    if (space != nullptr) space->index = nullptr;
  }
  store_ = nullptr;
}

std::int64_t PrefixIndex::page_bytes() const noexcept {
  const PagedLayout& layout = store_->layout();
  return layout.page_bytes() + layout.page_table_bytes();
}

// --- Nodes. ---

void PrefixIndex::give_page(std::size_t group, std::int32_t node, std::int32_t page) noexcept {
  if (page < 0 || owner_of(group, page) >= 0) return;
  groups_[group].pages[node] = page + 1;
  groups_[group].owners[page] = node + 1;
}

std::int32_t PrefixIndex::attach(PrefixSpace& space, std::int32_t parent, std::int32_t block,
                                 std::int64_t count, std::int64_t position,
                                 NodeRef* shorter) noexcept {
  std::int32_t* const root = root_of(parent, space);
  const std::span<const std::int32_t> tokens{store_->token_slots(block),
                                             static_cast<std::size_t>(count)};
  const ChildMatch match = trees_.find(*root, tokens);
  if (match.common == count && match.node >= 0) {
    if (nodes_[match.node].count > count) return -1;
    // The same page, computed again: what the first one has lost of it is there once more.
    for (std::size_t g = 0; g < num_groups(); ++g) {
      if (page_of(g, match.node) < 0) give_page(g, match.node, pages_[g]);
    }
    return match.node;
  }
  if (nodes_[block].count > 0) return -1;
  // Ids and rows are shared apart where appends brought no ids: a page has one node.
  for (std::size_t g = 0; g < num_groups(); ++g) {
    if (groups_[g].keeps_all && (pages_[g] < 0 || owner_of(g, pages_[g]) >= 0)) return -1;
  }
  PrefixNode& node = nodes_[block];
  const std::uint64_t behind = parent >= 0 ? nodes_[parent].key : space.key;
  const std::uint32_t serial = node.serial + 1;
  node = PrefixNode();
  node.serial = serial;
  node.key = hash_(behind, tokens.data(), count);
  node.parent = parent;
  node.space = space.number;
  node.count = static_cast<std::int32_t>(count);
  node.position = static_cast<std::int32_t>(position);
  node.priority = kUsualPriority;
  node.deadline = ttl_ > 0 ? clock_() + ttl_ : 0;
  for (std::size_t g = 0; g < num_groups(); ++g) {
    groups_[g].pages[block] = 0;
    give_page(g, block, pages_[g]);
  }
  trees_.insert(root, block);
  if (space.nodes++ == 0) space.self = space.weak.lock();
  if (space.tenant != nullptr) ++space.tenant->nodes;
  enter(block);
  ++stats_.pages_stored;
  ++stats_.pages;
  PrefixEvent event;
  event.key = node.key;
  event.parent = behind;
  event.position = position;
  events_.add(event);
  // A page that this one goes on from, because a text ended there, is not needed any more.
  if (match.node >= 0 && match.common == nodes_[match.node].count && can_leave(match.node)) {
    if (shorter != nullptr) {
      *shorter = ref(match.node);
    } else {
      remove(match.node, false);
    }
  }
  return block;
}

// REQUIRES: it has no children.
void PrefixIndex::remove(std::int32_t block, bool evicted) noexcept {
  PrefixNode& node = nodes_[block];
  PrefixSpace& space = space_of(block);
  const std::int32_t parent = node.parent;
  leave(block, evicted);
  trees_.erase(root_of(parent, space), block);
  if (evicted) gone(node.key) = tag_of(node.key);
  PrefixEvent event;
  event.kind = PrefixEvent::Kind::kRemoved;
  event.key = node.key;
  event.parent = parent >= 0 ? nodes_[parent].key : space.key;
  event.position = node.position;
  events_.add(event);
  ++(evicted ? stats_.pages_evicted : stats_.pages_removed);
  --stats_.pages;
  if (node.unheld) --stats_.pages_unheld;
  if (space.tenant != nullptr) {
    --space.tenant->nodes;
    if (node.unheld) --space.tenant->unheld;
  }
  node.count = 0;
  for (std::size_t g = 0; g < num_groups(); ++g) {
    const std::int32_t page = page_of(g, block);
    if (page < 0) continue;
    groups_[g].pages[block] = 0;
    groups_[g].owners[page] = 0;
    if (!groups_[g].keeps_all && is_listed(groups_[g], page)) unlist_page(groups_[g], page);
    if (store_->group(g).pool().is_cached(page)) store_->evict(g, page);
  }
  if (store_->blocks().pool().is_cached(block)) store_->evict(blocks(), block);
  if (--space.nodes == 0) {
    const std::shared_ptr<PrefixSpace> last = std::move(space.self);  // ends here
  }
  if (parent >= 0 && nodes_[parent].aside && can_leave(parent)) put_back(parent);
}

void PrefixIndex::remove_tree(std::int32_t node, bool evicted) noexcept {
  const std::uint32_t serial = nodes_[node].serial;
  while (nodes_[node].count > 0 && nodes_[node].serial == serial) {
    std::int32_t last = node;
    while (nodes_[last].children >= 0) last = nodes_[last].children;
    remove(last, evicted);
  }
}

// --- What the store tells. ---

bool PrefixIndex::names(const PageGroup& group, std::int32_t page) const noexcept {
  const auto g = static_cast<std::size_t>(group.number());
  return g == blocks() ? nodes_[page].count > 0 : owner_of(g, page) >= 0;
}

bool PrefixIndex::keeps(const PageGroup& group, std::int32_t page) noexcept {
  const auto g = static_cast<std::size_t>(group.number());
  const std::int32_t node = g == blocks() ? page : owner_of(g, page);
  if (node < 0 || nodes_[node].count == 0) return false;
  if (g == blocks()) {
    set_unheld(node, true);
    touch(node, true);
  } else if (!groups_[g].keeps_all) {
    list_page(groups_[g], page);
  }
  if (nodes_[node].aside && can_leave(node)) put_back(node);
  return true;
}

// The last node of a sequence's first `pages` pages; what lies behind them is forgotten, as is all
// of it where the node is gone. Returns the pages there are.
std::int32_t PrefixIndex::refresh(PrefixCursor& cursor, std::int64_t pages) noexcept {
  const bool gone = cursor.pages > 0 &&
                    (nodes_[cursor.node].count == 0 || nodes_[cursor.node].serial != cursor.serial);
  if (gone) cursor.pages = 0;
  for (; cursor.pages > pages; --cursor.pages) cursor.node = nodes_[cursor.node].parent;
  if (cursor.pages == 0) cursor.node = -1;
  if (cursor.node >= 0) cursor.serial = nodes_[cursor.node].serial;
  return cursor.node;
}

void PrefixIndex::grown(PagedSequence& seq, const PagedStep& step, std::size_t i,
                        std::int64_t accepted) noexcept {
  PrefixCursor& cursor = seq.cursor;
  if (cursor.space == nullptr) return;
  auto& space = const_cast<PrefixSpace&>(*cursor.space);
  const std::int64_t tail = seq.length / page_size_;  // the page that the first new row goes to
  const bool is_begun = seq.length % page_size_ != 0;
  const std::int64_t whole = std::min(seq.known_tokens, seq.length + accepted) / page_size_;
  std::int32_t node = refresh(cursor, std::min(seq.length, seq.known_tokens) / page_size_);
  const std::vector<std::int32_t>& known = seq.tables.back().pages;
  for (std::int64_t p = cursor.pages; p < whole; ++p) {
    for (std::size_t g = 0; g < num_groups(); ++g) {
      const GroupTable& table = seq.tables[g];
      const GroupRoom& room = step.rooms[g];
      const GroupRoom::Share& share = room.seqs[i];
      pages_[g] = -1;
      if (table.is_torn(p)) continue;
      if (p == tail && share.copies_tail) {
        pages_[g] = room.pages[static_cast<std::size_t>(share.begin)];
      } else if (p < table.end()) {
        const bool in_hole = p >= table.hole_begin && p < table.hole_begin + table.hole_pages;
        if (!in_hole) pages_[g] = table.pages[table.entry(p)];
      } else if (p != tail || !is_begun) {
        const std::int64_t at = share.begin + (share.copies_tail ? 1 : 0) + p - table.end();
        pages_[g] = room.pages[static_cast<std::size_t>(at)];
      }
    }
    node = attach(space, node, known[static_cast<std::size_t>(p)], page_size_, p);
    if (node < 0) break;
    cursor.node = node;
    cursor.serial = nodes_[node].serial;
    cursor.pages = p + 1;
  }
}

void PrefixIndex::leaving(PagedSequence& seq) noexcept {
  PrefixCursor& cursor = seq.cursor;
  const std::int64_t tail = seq.length / page_size_;
  const std::int64_t count = seq.length % page_size_;
  if (cursor.space == nullptr || seq.is_handle || count == 0 || seq.known_tokens != seq.length) {
    return;
  }
  const std::int32_t node = refresh(cursor, tail);
  const std::int32_t block = seq.tables.back().pages.back();
  if (cursor.pages != tail || nodes_[block].count > 0) return;
  for (std::size_t g = 0; g < num_groups(); ++g) {
    const GroupTable& table = seq.tables[g];
    const bool is_there =
        !table.is_torn(tail) && tail < table.end() && tail >= table.hole_begin + table.hole_pages;
    pages_[g] = is_there ? table.pages[table.entry(tail)] : -1;
  }
  attach(const_cast<PrefixSpace&>(*cursor.space), node, block, count, tail);
}

}  // namespace kvcache::internal
