// Who leaves first: classes by tenant and priority, the policy for all others, and the lists of
// pages of groups whose layers drop rows.
#include <algorithm>
#include <limits>

#include "base/expect.h"
#include "cache/prefix/index.h"

namespace kvcache::internal {

NodeList* PrefixIndex::list_of(std::int32_t node) noexcept {
  PrefixTenant* const tenant = space_of(node).tenant;
  const std::int32_t priority = nodes_[node].priority;
  if (tenant != nullptr) return &tenant->leaving.lists[priority];
  return priority == kUsualPriority ? nullptr : &others_.lists[priority];
}

void PrefixIndex::enter(std::int32_t node) noexcept {
  NodeList* const list = list_of(node);
  nodes_[node].in_policy = list == nullptr;
  nodes_[node].aside = false;
  if (list != nullptr) {
    list->push_newest(nodes_, node);
  } else {
    policy_->inserted(node, nodes_[node].parent, nodes_[node].key, nodes_[node].position);
  }
}

void PrefixIndex::leave(std::int32_t node, bool evicted) noexcept {
  if (nodes_[node].aside) aside_.erase(nodes_, node);
  if (nodes_[node].in_policy) {
    policy_->removed(node, evicted);
  } else if (!nodes_[node].aside) {
    list_of(node)->erase(nodes_, node);
  }
  nodes_[node].aside = false;
}

void PrefixIndex::touch(std::int32_t node, bool is_released) noexcept {
  PrefixNode& entry = nodes_[node];
  const bool was_aside = entry.aside;
  if (was_aside) aside_.erase(nodes_, node);
  entry.aside = false;
  if (!entry.in_policy) {
    NodeList* const list = list_of(node);
    if (!was_aside) list->erase(nodes_, node);
    list->push_newest(nodes_, node);
    return;
  }
  if (was_aside) policy_->put_back(node);
  if (is_released) {
    policy_->released(node);
  } else {
    policy_->used(node);
  }
}

void PrefixIndex::set_aside(std::int32_t node) noexcept {
  if (nodes_[node].in_policy) {
    policy_->set_aside(node);
  } else {
    list_of(node)->erase(nodes_, node);
  }
  nodes_[node].aside = true;
  aside_.push_newest(nodes_, node);
}

void PrefixIndex::put_back(std::int32_t node) noexcept {
  aside_.erase(nodes_, node);
  nodes_[node].aside = false;
  if (nodes_[node].in_policy) {
    policy_->put_back(node);
  } else {
    list_of(node)->push_oldest(nodes_, node);
  }
}

bool PrefixIndex::can_leave(std::int32_t node) const noexcept {
  if (!nodes_[node].unheld || nodes_[node].children >= 0) return false;
  for (std::size_t g = 0; g < num_groups(); ++g) {
    if (!groups_[g].keeps_all) continue;
    const std::int32_t page = page_of(g, node);
    if (page >= 0 && store_->group(g).pool().references(page) > 0) return false;
  }
  return true;
}

// Of priorities begin .. end.
std::int32_t PrefixIndex::next_of(NodeClass& leaving, std::int32_t begin,
                                  std::int32_t end) noexcept {
  for (std::int32_t priority = begin; priority < end; ++priority) {
    NodeList& list = leaving.lists[priority];
    while (list.oldest >= 0) {
      if (can_leave(list.oldest)) return list.oldest;
      set_aside(list.oldest);
    }
  }
  return -1;
}

std::int32_t PrefixIndex::next_victim() noexcept {
  PrefixTenant* requester = nullptr;
  for (auto& [id, tenant] : tenants_) {
    if (&tenant == requester_) requester = &tenant;
    if (!tenant.exceeds() || tenant.unheld == 0) continue;
    if (const std::int32_t node = next_of(tenant.leaving, 0, kPriorities); node >= 0) return node;
  }
  if (const std::int32_t node = next_of(others_, 0, kUsualPriority); node >= 0) return node;
  for (std::int32_t node = policy_->victim(); node >= 0; node = policy_->victim()) {
    if (can_leave(node)) return node;
    set_aside(node);
  }
  const std::int32_t other = next_of(others_, kUsualPriority + 1, kPriorities);
  if (other >= 0 || requester == nullptr) return other;
  return next_of(requester->leaving, 0, kPriorities);
}

// A node with a cached page of the group, all that could leave in order having left: another
// sequence holds what lies behind it, having computed the same page itself, or holds its ids and
// not its rows, having appended without ids.
std::int32_t PrefixIndex::any_cached(std::size_t group) const noexcept {
  std::int32_t spared = -1;
  const auto may_go = [&](std::int32_t node) {
    const std::int32_t page = group == blocks() ? -1 : page_of(group, node);
    const bool is_cached = group == blocks()
                               ? nodes_[node].unheld
                               : page >= 0 && store_->group(group).pool().is_cached(page);
    if (!is_cached) return false;
    const PrefixTenant* const tenant = space_of(node).tenant;
    if (tenant == nullptr || tenant == requester_ || tenant->exceeds()) return true;
    if (spared < 0 || !nodes_[node].unheld) spared = node;
    return false;
  };
  for (std::int32_t node = aside_.oldest; node >= 0; node = nodes_[node].newer) {
    if (may_go(node)) return node;
  }
  for (std::int32_t node = 0; node < num_nodes_; ++node) {
    if (nodes_[node].count > 0 && may_go(node)) return node;
  }
  return spared;
}

void PrefixIndex::make_room(PageGroup& group, std::int64_t count) noexcept {
  const auto g = static_cast<std::size_t>(group.number());
  if (g != blocks() && !groups_[g].keeps_all) return make_page_room(group, count);
  const std::int64_t goal = group.pool().cached() - count;
  while (group.pool().cached() > goal) {
    const std::int32_t node = next_victim();
    if (node >= 0) {
      remove(node, true);
      continue;
    }
    const std::int32_t any = any_cached(g);
    if (any < 0) return;  // it cannot be: what is cached is named
    remove_tree(any, true);
  }
}

void PrefixIndex::reserving(const PagedStep* step) noexcept {
  requester_ = nullptr;
  if (step == nullptr || tenants_.empty()) return;
  for (std::size_t i = 0; i < step->seqs.size(); ++i) {
    const PrefixSpace* const space = step->seqs[i].seq->cursor.space.get();
    const PrefixTenant* const tenant = space == nullptr ? nullptr : space->tenant;
    if (i > 0 && tenant != requester_) {
      requester_ = nullptr;
      return;
    }
    requester_ = tenant;
  }
}

std::int64_t PrefixIndex::spared(const PageGroup& group) const noexcept {
  const auto g = static_cast<std::size_t>(group.number());
  if (g != blocks() && !groups_[g].keeps_all) return 0;
  std::int64_t pages = 0;
  for (const auto& [id, tenant] : tenants_) {
    if (&tenant != requester_) pages += tenant.spared();
  }
  return std::min(pages, group.pool().cached());
}

// --- Pages of groups whose layers drop rows. ---

void PrefixIndex::list_page(Group& group, std::int32_t page) noexcept {
  if (is_listed(group, page)) unlist_page(group, page);
  group.links[page] = {group.newest, 0};
  (group.newest == 0 ? group.oldest : group.links[group.newest - 1].newer) = page + 1;
  group.newest = page + 1;
}

void PrefixIndex::unlist_page(Group& group, std::int32_t page) noexcept {
  const PageLinks at = group.links[page];
  (at.older == 0 ? group.oldest : group.links[at.older - 1].newer) = at.newer;
  (at.newer == 0 ? group.newest : group.links[at.newer - 1].older) = at.older;
  group.links[page] = {0, 0};
}

// The node stays: other groups have its page, and a later window may not need this one.
void PrefixIndex::make_page_room(PageGroup& group, std::int64_t count) noexcept {
  const auto g = static_cast<std::size_t>(group.number());
  Group& mine = groups_[g];
  const auto pass = [&](bool spare) {
    for (std::int32_t at = mine.oldest; at != 0 && count > 0;) {
      const std::int32_t page = at - 1;
      at = mine.links[page].newer;
      if (!group.pool().is_cached(page)) {
        unlist_page(mine, page);  // held again
        continue;
      }
      const std::int32_t node = owner_of(g, page);
      const PrefixTenant* const tenant = space_of(node).tenant;
      if (spare && tenant != nullptr && tenant != requester_ && !tenant->exceeds()) continue;
      unlist_page(mine, page);
      mine.owners[page] = 0;
      mine.pages[node] = 0;
      group.evict(page);
      --count;
    }
  };
  pass(!tenants_.empty());
  if (count > 0) pass(false);
}

// --- What callers set. ---

void PrefixIndex::set_priority(const PagedSequence& seq, std::int32_t priority) noexcept {
  for (const std::int32_t node : seq.tables.back().pages) {
    if (nodes_[node].priority == priority || nodes_[node].count == 0) continue;
    leave(node, false);
    nodes_[node].priority = static_cast<std::uint8_t>(priority);
    enter(node);
  }
}

void PrefixIndex::set_deadline(const PagedSequence& seq, std::int64_t deadline) noexcept {
  has_deadlines_ = has_deadlines_ || deadline != 0;
  for (const std::int32_t node : seq.tables.back().pages) {
    if (nodes_[node].count > 0) nodes_[node].deadline = deadline;
  }
}

void PrefixIndex::set_quota(std::int64_t tenant, std::int64_t pages) {
  if (pages >= 0) tenants_.try_emplace(tenant);
  const auto found = tenants_.find(tenant);
  if (found == tenants_.end()) return;
  PrefixTenant& entry = found->second;
  entry.quota = pages;
  const auto each = [&](auto&& fn) {
    for (std::int32_t node = 0; node < num_nodes_; ++node) {
      if (nodes_[node].count > 0 && space_of(node).name.tenant == tenant) fn(node);
    }
  };
  // In or out of the lists of their own, in the order of their numbers.
  each([&](std::int32_t node) { leave(node, false); });
  entry.nodes = entry.unheld = 0;
  for (PrefixSpace* space : spaces_) {
    if (space == nullptr || space->name.tenant != tenant) continue;
    space->tenant = pages >= 0 ? &entry : nullptr;
  }
  each([&](std::int32_t node) {
    ++entry.nodes;
    entry.unheld += nodes_[node].unheld ? 1 : 0;
    enter(node);
  });
  if (pages < 0) tenants_.erase(found);
}

std::int64_t PrefixIndex::tenant_pages(std::int64_t tenant) const noexcept {
  const auto found = tenants_.find(tenant);
  return found == tenants_.end() ? 0 : found->second.nodes;
}

std::int64_t PrefixIndex::evict(std::int64_t pages) noexcept {
  const std::int64_t before = stats_.pages;
  while (before - stats_.pages < pages) {
    const std::int32_t node = next_victim();
    if (node < 0) break;
    remove(node, true);
  }
  return before - stats_.pages;
}

std::int64_t PrefixIndex::remove_expired(std::int64_t now) noexcept {
  const std::int64_t before = stats_.pages;
  for (std::int32_t node = 0; node < num_nodes_; ++node) {
    const PrefixNode& entry = nodes_[node];
    if (entry.count == 0 || entry.deadline == 0 || now < entry.deadline) continue;
    // With all behind it, which no match reaches any more.
    remove_tree(node, false);
  }
  return before - stats_.pages;
}

}  // namespace kvcache::internal
