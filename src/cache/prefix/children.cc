#include "cache/prefix/children.h"

#include <algorithm>
#include <cstring>

namespace kvcache::internal {
namespace {

std::uint64_t mix(std::uint64_t a, std::uint64_t b) noexcept {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

// How many leading tokens are equal.
std::int64_t common_tokens(std::span<const std::int32_t> a,
                           std::span<const std::int32_t> b) noexcept {
  const std::size_t most = std::min(a.size(), b.size());
  // Whole pages are mostly equal or differ early.
  if (std::memcmp(a.data(), b.data(), most * sizeof(std::int32_t)) == 0) {
    return static_cast<std::int64_t>(most);
  }
  return std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(most), b.begin()).first -
         a.begin();
}

// The order of two texts of which `common` leading tokens are equal; 0: the same.
int order(std::span<const std::int32_t> a, std::span<const std::int32_t> b,
          std::int64_t common) noexcept {
  const auto at = static_cast<std::size_t>(common);
  if (at == a.size() || at == b.size()) {
    return a.size() == b.size() ? 0 : (a.size() < b.size() ? -1 : 1);
  }
  return a[at] < b[at] ? -1 : 1;
}

}  // namespace

std::uint64_t hash_tokens(std::uint64_t parent, const std::int32_t* tokens,
                          std::int64_t count) noexcept {
  std::uint64_t hash =
      mix(parent ^ 0x9E3779B97F4A7C15U, 0xD6E8FEB86659FD93U ^ static_cast<std::uint64_t>(count));
  std::int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    std::uint64_t two = 0;
    std::memcpy(&two, tokens + i, sizeof two);
    hash = mix(hash ^ two, 0xA0761D6478BD642FU);
  }
  if (i < count) hash = mix(hash ^ static_cast<std::uint32_t>(tokens[i]), 0xE7037ED1A0B428DBU);
  return mix(hash, 0x8EBC6AF09C88C6E3U);
}

std::uint64_t ChildTrees::rank(std::int32_t node) const noexcept {
  return mix(nodes_[node].key ^ seed_, 0x589965CC75374CC3U ^ static_cast<std::uint32_t>(node));
}

ChildMatch ChildTrees::find(std::int32_t root,
                            std::span<const std::int32_t> tokens) const noexcept {
  ChildMatch best;
  // The one that shares the most is among those that a search for the tokens passes: the last
  // before them and the first behind them are.
  for (std::int32_t at = root; at >= 0;) {
    const std::span<const std::int32_t> here = tokens_of(at);
    const std::int64_t common = common_tokens(tokens, here);
    if (common > best.common) best = {at, common};
    const int side = order(tokens, here, common);
    if (side == 0 || common == static_cast<std::int64_t>(tokens.size())) break;
    at = side < 0 ? nodes_[at].left : nodes_[at].right;
  }
  return best;
}

std::int32_t ChildTrees::find_exact(std::int32_t root,
                                    std::span<const std::int32_t> tokens) const noexcept {
  for (std::int32_t at = root; at >= 0;) {
    const std::span<const std::int32_t> here = tokens_of(at);
    const int side = order(tokens, here, common_tokens(tokens, here));
    if (side == 0) return at;
    at = side < 0 ? nodes_[at].left : nodes_[at].right;
  }
  return -1;
}

void ChildTrees::hang(std::int32_t* link, std::int32_t above, std::int32_t node) noexcept {
  *link = node;
  if (node >= 0) nodes_[node].above = above;
}

void ChildTrees::insert(std::int32_t* root, std::int32_t node) noexcept {
  const std::span<const std::int32_t> tokens = tokens_of(node);
  const std::uint64_t mine = rank(node);
  std::int32_t* link = root;
  std::int32_t above = -1;
  while (*link >= 0 && rank(*link) >= mine) {
    above = *link;
    const std::span<const std::int32_t> here = tokens_of(above);
    const bool before = order(tokens, here, common_tokens(tokens, here)) < 0;
    link = before ? &nodes_[above].left : &nodes_[above].right;
  }
  // What hung here falls apart into what lies before the node and what lies behind it.
  std::int32_t rest = *link;
  hang(link, above, node);
  std::int32_t* left = &nodes_[node].left;
  std::int32_t* right = &nodes_[node].right;
  std::int32_t left_above = node;
  std::int32_t right_above = node;
  while (rest >= 0) {
    const std::span<const std::int32_t> here = tokens_of(rest);
    if (order(here, tokens, common_tokens(here, tokens)) < 0) {
      hang(left, left_above, rest);
      left_above = rest;
      left = &nodes_[rest].right;
      rest = *left;
    } else {
      hang(right, right_above, rest);
      right_above = rest;
      right = &nodes_[rest].left;
      rest = *right;
    }
  }
  *left = *right = -1;
}

void ChildTrees::erase(std::int32_t* root, std::int32_t node) noexcept {
  std::int32_t above = nodes_[node].above;
  std::int32_t* link = root;
  if (above >= 0) link = nodes_[above].left == node ? &nodes_[above].left : &nodes_[above].right;
  std::int32_t left = nodes_[node].left;
  std::int32_t right = nodes_[node].right;
  while (left >= 0 && right >= 0) {
    if (rank(left) >= rank(right)) {
      hang(link, above, left);
      above = left;
      link = &nodes_[left].right;
      left = *link;
    } else {
      hang(link, above, right);
      above = right;
      link = &nodes_[right].left;
      right = *link;
    }
  }
  hang(link, above, left >= 0 ? left : right);
  nodes_[node].left = nodes_[node].right = nodes_[node].above = -1;
}

}  // namespace kvcache::internal
