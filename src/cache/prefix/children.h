// The children of a node, in the order of their token ids: a treap, so that the child with the
// longest common beginning is found in the logarithm of their number, and by comparing tokens
// alone. Most nodes have one child, which costs one look.
#ifndef KVCACHE_SRC_CACHE_PREFIX_CHILDREN_H_
#define KVCACHE_SRC_CACHE_PREFIX_CHILDREN_H_

#include <cstdint>
#include <span>

#include "cache/prefix/node.h"

namespace kvcache::internal {

// The child that shares the most leading tokens, and how many. node -1: none shares any.
struct ChildMatch {
  std::int32_t node = -1;
  std::int64_t common = 0;
};

class ChildTrees {
 public:
  // `tokens` [num_nodes, page_size] and `nodes` live as long. `seed` decides the trees' shapes,
  // never what is found.
  ChildTrees(PrefixNode* nodes, const std::int32_t* tokens, std::int64_t page_size,
             std::uint64_t seed) noexcept
      : nodes_(nodes), tokens_(tokens), page_size_(page_size), seed_(seed) {}

  // `root` is a tree's first node, -1 for an empty one.
  ChildMatch find(std::int32_t root, std::span<const std::int32_t> tokens) const noexcept;
  // The node of just these tokens, or -1.
  std::int32_t find_exact(std::int32_t root, std::span<const std::int32_t> tokens) const noexcept;
  // REQUIRES: no node of the tree has the same tokens; the node's count is set.
  void insert(std::int32_t* root, std::int32_t node) noexcept;
  void erase(std::int32_t* root, std::int32_t node) noexcept;

  std::span<const std::int32_t> tokens_of(std::int32_t node) const noexcept {
    return {tokens_ + node * page_size_, static_cast<std::size_t>(nodes_[node].count)};
  }

 private:
  std::uint64_t rank(std::int32_t node) const noexcept;
  void hang(std::int32_t* link, std::int32_t above, std::int32_t node) noexcept;

  PrefixNode* nodes_;
  const std::int32_t* tokens_;
  std::int64_t page_size_;
  std::uint64_t seed_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_CHILDREN_H_
