// The bookkeeping of a PrefixIndex, counted again from scratch.
#include <string>
#include <vector>

#include "base/expect.h"
#include "cache/prefix/index.h"

namespace kvcache::internal {
namespace {

Status broken(std::int32_t node, const char* what) {
  return refusal(StatusCode::kInternal, "node " + std::to_string(node), what, "otherwise");
}

}  // namespace

Status PrefixIndex::check() const {
  std::int64_t nodes = 0, unheld = 0, linked = 0;
  std::vector<std::int64_t> of_space(spaces_.size());
  const auto count_tree = [&](std::int32_t root, std::int32_t parent,
                              std::int32_t space) -> Status {
    std::vector<std::int32_t> open;
    if (root >= 0) open.push_back(root);
    while (!open.empty()) {
      const std::int32_t at = open.back();
      open.pop_back();
      const PrefixNode& node = nodes_[at];
      ++linked;
      if (node.count == 0) return broken(at, "a link to none");
      if (node.parent != parent || node.space != space) return broken(at, "another parent");
      if (node.count < page_size_ && node.children >= 0) return broken(at, "children of a part");
      if (trees_.find_exact(root, trees_.tokens_of(at)) != at) return broken(at, "out of order");
      for (const std::int32_t side : {node.left, node.right}) {
        if (side < 0) continue;
        if (nodes_[side].above != at) return broken(side, "another above");
        open.push_back(side);
      }
    }
    return {};
  };
  for (std::int32_t n = 0; n < num_nodes_; ++n) {
    const PrefixNode& node = nodes_[n];
    if (node.count == 0) continue;
    ++nodes;
    ++of_space[static_cast<std::size_t>(node.space)];
    KVC_RETURN_IF_ERROR(count_tree(node.children, n, node.space));
    const PagePool& pool = store_->blocks().pool();
    const bool held = pool.references(n) > 0;
    if (!held && !pool.is_cached(n)) return broken(n, "a block that is free");
    if (node.unheld == held) return broken(n, "held and not counted so");
    unheld += held ? 0 : 1;
    for (std::size_t g = 0; g < num_groups(); ++g) {
      const std::int32_t page = page_of(g, n);
      if (page < 0) {
        if (groups_[g].keeps_all) return broken(n, "no page");
        continue;
      }
      const PagePool& pages = store_->group(g).pool();
      if (owner_of(g, page) != n) return broken(n, "a page of another");
      if (pages.references(page) == 0 && !pages.is_cached(page)) return broken(n, "a free page");
      if (!groups_[g].keeps_all && pages.is_cached(page) && !is_listed(groups_[g], page)) {
        return broken(n, "a cached page in no list");
      }
    }
  }
  for (const PrefixSpace* space : spaces_) {
    if (space == nullptr) continue;
    KVC_RETURN_IF_ERROR(count_tree(space->root, -1, space->number));
    if (space->nodes != of_space[static_cast<std::size_t>(space->number)]) {
      return refusal(StatusCode::kInternal, "nodes of a namespace", space->nodes,
                     of_space[static_cast<std::size_t>(space->number)]);
    }
  }
  if (nodes != stats_.pages || linked != nodes || unheld != stats_.pages_unheld) {
    return refusal(
        StatusCode::kInternal, "nodes",
        std::to_string(stats_.pages) + ", " + std::to_string(stats_.pages_unheld) + " unheld",
        std::to_string(nodes) + ", " + std::to_string(linked) + " linked, " +
            std::to_string(unheld) + " unheld");
  }
  // Every cached page is named by a node.
  for (std::size_t g = 0; g <= num_groups(); ++g) {
    const PagePool& pool = g == blocks() ? store_->blocks().pool() : store_->group(g).pool();
    for (std::int32_t page = 0; page < static_cast<std::int32_t>(pool.touched()); ++page) {
      const bool named = g == blocks() ? nodes_[page].count > 0 : owner_of(g, page) >= 0;
      if (pool.is_cached(page) && !named) return broken(page, "cached and not known");
      if (g < blocks() && owner_of(g, page) >= 0 && page_of(g, owner_of(g, page)) != page) {
        return broken(owner_of(g, page), "a page that says otherwise");
      }
    }
  }
  return {};
}

}  // namespace kvcache::internal
