// What the index knows of a page of tokens. A node is named by the block of token ids that it has:
// its ids lie there, one after the other, and whatever is known of it lies at that number.
#ifndef KVCACHE_SRC_CACHE_PREFIX_NODE_H_
#define KVCACHE_SRC_CACHE_PREFIX_NODE_H_

#include <cstddef>
#include <cstdint>

namespace kvcache::internal {

struct PrefixNode {
  std::uint64_t key = 0;               // of its tokens and all before them, for policies and events
  std::int64_t deadline = 0;           // of the cache's clock; 0: none
  std::int32_t parent = -1;            // the node before; -1: the first of its space
  std::int32_t children = -1;          // the tree of the nodes behind it
  std::int32_t left = -1, right = -1;  // its place in the tree of its parent's children
  std::int32_t above = -1;             // likewise; -1: that tree begins with it
  std::int32_t space = -1;             // see PrefixSpace
  std::int32_t count = 0;              // its tokens: a page, or fewer at a text's end; 0: no node
  std::uint32_t serial = 0;            // another one each time the number becomes a node
  std::int32_t older = -1, newer = -1;  // in the list that it is in
  std::int32_t position = 0;            // its page number in the text
  std::uint8_t priority = 0;            // 0 .. 100
  bool in_policy = false;               // whether the policy knows it; else a list does
  bool aside = false;                   // it could not leave when it was asked to
  bool unheld = false;                  // no sequence holds its block
};
static_assert(sizeof(PrefixNode) == 64, "one line of cache");

// Nodes in the order in which they leave. An element is in one list at most.
struct NodeList {
  std::int32_t oldest = -1, newest = -1;

  void push_newest(PrefixNode* nodes, std::int32_t node) noexcept {
    nodes[node].older = newest;
    nodes[node].newer = -1;
    (newest < 0 ? oldest : nodes[newest].newer) = node;
    newest = node;
  }
  void push_oldest(PrefixNode* nodes, std::int32_t node) noexcept {
    nodes[node].newer = oldest;
    nodes[node].older = -1;
    (oldest < 0 ? newest : nodes[oldest].older) = node;
    oldest = node;
  }
  void erase(PrefixNode* nodes, std::int32_t node) noexcept {
    const std::int32_t older = nodes[node].older;
    const std::int32_t newer = nodes[node].newer;
    (older < 0 ? oldest : nodes[older].newer) = newer;
    (newer < 0 ? newest : nodes[newer].older) = older;
  }
};

// A hash of token ids behind `parent`. Texts that begin alike have equal keys as long as they do.
using TokenHash = std::uint64_t (*)(std::uint64_t parent, const std::int32_t* tokens,
                                    std::int64_t count) noexcept;
std::uint64_t hash_tokens(std::uint64_t parent, const std::int32_t* tokens,
                          std::int64_t count) noexcept;

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_NODE_H_
