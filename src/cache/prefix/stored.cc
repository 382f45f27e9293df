// Pages that were stored elsewhere: which are worth it, and what makes them known again.
#include <algorithm>

#include "cache/prefix/index.h"

namespace kvcache::internal {

std::vector<std::int32_t> PrefixIndex::by_use() const {
  // Who would leave first comes first, as far as it is known.
  std::vector<std::int32_t> leaving;
  const auto list = [&](const NodeList& nodes) {
    for (std::int32_t node = nodes.oldest; node >= 0; node = nodes_[node].newer) {
      leaving.push_back(node);
    }
  };
  list(aside_);
  for (std::int32_t p = 0; p < kUsualPriority; ++p) list(others_.lists[p]);
  if (own_policy_ != nullptr) {
    own_policy_->list(leaving);
  } else {
    for (std::int32_t node = 0; node < num_nodes_; ++node) {
      if (nodes_[node].count > 0 && nodes_[node].in_policy && !nodes_[node].aside) {
        leaving.push_back(node);
      }
    }
  }
  for (const auto& [id, tenant] : tenants_) {
    for (const NodeList& nodes : tenant.leaving.lists) list(nodes);
  }
  for (std::int32_t p = kUsualPriority; p < kPriorities; ++p) list(others_.lists[p]);
  std::vector<std::int32_t> order, chain;
  order.reserve(leaving.size());
  std::vector<bool> listed(static_cast<std::size_t>(num_nodes_));
  for (std::size_t i = leaving.size(); i-- > 0;) {
    for (std::int32_t node = leaving[i]; node >= 0; node = nodes_[node].parent) {
      if (listed[static_cast<std::size_t>(node)]) break;
      listed[static_cast<std::size_t>(node)] = true;
      chain.push_back(node);
    }
    order.insert(order.end(), chain.rbegin(), chain.rend());
    chain.clear();
  }
  return order;
}

std::int32_t PrefixIndex::child(PrefixSpace& space, std::int32_t parent,
                                std::span<const std::int32_t> tokens) noexcept {
  const ChildMatch match = trees_.find(*root_of(parent, space), tokens);
  return match.node >= 0 && match.common == static_cast<std::int64_t>(tokens.size()) ? match.node
                                                                                     : -1;
}

std::int32_t PrefixIndex::add(PrefixSpace& space, std::int32_t parent, PagedStep& step,
                              std::span<const std::int32_t> tokens, std::int32_t priority,
                              NodeRef* shorter) noexcept {
  const std::int32_t block = step.rooms.back().pages.front();
  std::copy(tokens.begin(), tokens.end(), store_->token_slots(block));
  for (std::size_t g = 0; g < num_groups(); ++g) {
    const std::vector<std::int32_t>& pages = step.rooms[g].pages;
    pages_[g] = pages.empty() ? -1 : pages.front();
  }
  store_->hold_pages(step);
  const std::int64_t position = parent < 0 ? 0 : nodes_[parent].position + 1;
  const std::int32_t node =
      attach(space, parent, block, static_cast<std::int64_t>(tokens.size()), position, shorter);
  if (node == block && priority != kUsualPriority) {
    leave(node, false);
    nodes_[node].priority = static_cast<std::uint8_t>(priority);
    enter(node);
  }
  store_->drop_pages(step);
  return node;
}

void PrefixIndex::use_again(std::span<const NodeRef> nodes) noexcept {
  for (std::size_t i = nodes.size(); i-- > 0;) {
    if (!is_there(nodes[i])) continue;
    touch(nodes[i].node, true);
    for (std::size_t g = 0; g < num_groups(); ++g) {
      const std::int32_t page = page_of(g, nodes[i].node);
      if (groups_[g].keeps_all || page < 0) continue;
      if (store_->group(g).pool().is_cached(page)) list_page(groups_[g], page);
    }
  }
}

void PrefixIndex::take_back(std::span<const NodeRef> nodes) noexcept {
  for (std::size_t i = nodes.size(); i-- > 0;) {
    if (is_there(nodes[i]) && can_leave(nodes[i].node)) remove(nodes[i].node, false);
  }
}

}  // namespace kvcache::internal
