// PrefixIndex: which pages of tokens are known, in a tree of texts, and which of them leaves when
// room is needed. The bookkeeping behind PrefixCache.
//
// A node is a page of tokens behind its parent, with one page, or none, in each group. It is named
// by its block of token ids, so that a node has its ids at hand and there are never more of them
// than blocks. What a node is known by is its parent and its ids, which every search compares;
// hashes decide nothing.
//
// Pages enter when a step commits (grown), and a text's last, incomplete page when its sequence is
// released (leaving). Nothing of it allocates: all memory is reserved from the start, is written
// when a page is touched (touched) and counts from then on, and room for namespaces was charged by
// who opened them.
#ifndef KVCACHE_SRC_CACHE_PREFIX_INDEX_H_
#define KVCACHE_SRC_CACHE_PREFIX_INDEX_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "cache/paged/store.h"
#include "cache/prefix/children.h"
#include "cache/prefix/events.h"
#include "cache/prefix/node.h"
#include "cache/prefix/places.h"
#include "cache/prefix/slot_policy.h"
#include "kvcache/eviction.h"
#include "kvcache/prefix.h"
#include "kvcache/status.h"

namespace kvcache::internal {

class PrefixIndex;

inline constexpr std::int32_t kPriorities = 101;
inline constexpr std::int32_t kUsualPriority = 50;

// Nodes that leave apart from the others: the lowest priority first, the oldest of it first.
struct NodeClass {
  NodeList lists[kPriorities];
};

// A tenant with a quota.
struct PrefixTenant {
  std::int64_t quota = 0;   // pages
  std::int64_t nodes = 0;   // that it has,
  std::int64_t unheld = 0;  // and of these, that no sequence holds
  NodeClass leaving;

  // Of the unheld ones, those that others may not take.
  std::int64_t spared() const noexcept {
    return std::min(unheld, std::max<std::int64_t>(0, quota - (nodes - unheld)));
  }
  bool exceeds() const noexcept { return nodes > quota; }
};

// The texts of one namespace. It lives as long as it has nodes or sequences.
struct PrefixSpace {
  PrefixIndex* index = nullptr;  // null once the index is gone
  PrefixNamespace name;
  std::uint64_t key = 0;
  std::int32_t number = 0;
  std::int32_t root = -1;  // the tree of its first pages
  std::int64_t nodes = 0;
  PrefixTenant* tenant = nullptr;  // null: one without a quota
  std::weak_ptr<PrefixSpace> weak;
  std::shared_ptr<PrefixSpace> self;  // while it has nodes
};

// What a search found.
struct PrefixFound {
  std::vector<std::int32_t> nodes;  // of which the last may be known in part
  std::int64_t stored = 0;          // leading tokens that are stored,
  std::int64_t length = 0;          // and of these, that every group can serve
  PrefixMiss reason = PrefixMiss::kNone;
  std::int64_t group = -1;  // the one that was the limit
};

class PrefixIndex final : public PageKeeper {
 public:
  // REQUIRES: `store` has room for an index (prefix_memory) and outlives this, or close() is called
  // before. `policy` null: the built-in one of the options, in that room.
  static Result<std::unique_ptr<PrefixIndex>> create(PagedStore& store,
                                                     const PrefixOptions& options, TokenHash hash);
  ~PrefixIndex() override;
  // Every page that it names is free or its sequences' own, and none is known any more.
  void close() noexcept;

  // --- Searches (find.cc). May throw bad_alloc, and then change nothing. ---

  // The space of that name, made if there is none. Errors: kRetryLater, kOutOfMemory.
  Result<std::shared_ptr<PrefixSpace>> space(const PrefixNamespace& name);
  // Whether there is one, or room for it without that anything leaves.
  bool has_room_for(const PrefixNamespace& name) const noexcept {
    return find_space(name) != nullptr || store_->has_room_for_records(kSpaceRecords);
  }
  // The same, null if there is none.
  PrefixSpace* find_space(const PrefixNamespace& name) const noexcept;
  PrefixFound find(const PrefixNamespace& name, std::span<const std::int32_t> tokens) const;
  // A sequence of the store that holds what was found, not open to anybody.
  Result<SequenceId> hold(const PrefixFound& found, std::shared_ptr<PrefixSpace> space);
  // What was found counts as used.
  void use(const PrefixFound& found) noexcept;

  // --- Who leaves first (leave.cc). ---
  void set_priority(const PagedSequence& seq, std::int32_t priority) noexcept;
  void set_deadline(const PagedSequence& seq, std::int64_t deadline) noexcept;
  // Pages that the tenant may keep; -1: no quota. May throw bad_alloc.
  void set_quota(std::int64_t tenant, std::int64_t pages);
  // Evicts as many unheld nodes, or all of them; those past their deadline. Returns how many.
  std::int64_t evict(std::int64_t pages) noexcept;
  std::int64_t remove_expired(std::int64_t now) noexcept;

  // --- Pages that were stored elsewhere (stored.cc). May throw bad_alloc. ---

  // All nodes, the most recently used first, each behind its parent.
  std::vector<std::int32_t> by_use() const;
  const PrefixNode& node(std::int32_t number) const noexcept { return nodes_[number]; }
  const PrefixNamespace& name_of(std::int32_t node) const noexcept { return space_of(node).name; }
  // The node's page in a group; -1: none.
  std::int32_t page_of(std::size_t group, std::int32_t node) const noexcept {
    return groups_[group].pages[node] - 1;
  }
  bool is_expired(std::int32_t node) const {
    return nodes_[node].deadline != 0 && clock_() >= nodes_[node].deadline;
  }
  // The node behind `parent` (-1: the first of its space) that begins with these ids; -1: none.
  std::int32_t child(PrefixSpace& space, std::int32_t parent,
                     std::span<const std::int32_t> tokens) noexcept;
  // A number names another node once its own has left.
  struct NodeRef {
    std::int32_t node = -1;  // -1: none
    std::uint32_t serial = 0;
  };
  NodeRef ref(std::int32_t node) const noexcept {
    return node < 0 ? NodeRef() : NodeRef{node, nodes_[node].serial};
  }
  bool is_there(const NodeRef& ref) const noexcept {
    return ref.node >= 0 && nodes_[ref.node].count > 0 && nodes_[ref.node].serial == ref.serial;
  }
  // What a step has of one page (PagedStore::reserve_pages) becomes a node, unheld, and ends the
  // step. Returns it, or one that is known already; -1: none. `shorter`: the node, if any, that it
  // makes superfluous, and that stays.
  std::int32_t add(PrefixSpace& space, std::int32_t parent, PagedStep& step,
                   std::span<const std::int32_t> tokens, std::int32_t priority,
                   NodeRef* shorter) noexcept;
  // The nodes count as used, the first as the last of all. / They are gone, from the last on, as
  // far as they may leave. Of both, those that are there.
  void use_again(std::span<const NodeRef> nodes) noexcept;
  void take_back(std::span<const NodeRef> nodes) noexcept;

  // --- PageKeeper (index.cc). ---
  void touched(const PageGroup& group, std::int32_t begin, std::int32_t end) noexcept override;
  bool keeps(const PageGroup& group, std::int32_t page) noexcept override;
  void make_room(PageGroup& group, std::int64_t count) noexcept override;
  bool names(const PageGroup& group, std::int32_t page) const noexcept override;
  void reserving(const PagedStep* step) noexcept override;
  std::int64_t spared(const PageGroup& group) const noexcept override;
  void grown(PagedSequence& seq, const PagedStep& step, std::size_t i,
             std::int64_t accepted) noexcept override;
  void leaving(PagedSequence& seq) noexcept override;

  std::int64_t now() const { return clock_(); }
  std::int64_t page_bytes() const noexcept;  // of a node: rows, ids and index
  PrefixStats& stats() noexcept { return stats_; }
  const PrefixStats& stats() const noexcept { return stats_; }
  PrefixEvents& events() noexcept { return events_; }
  std::int64_t num_spaces() const noexcept { return static_cast<std::int64_t>(names_.size()); }
  std::int64_t tenant_pages(std::int64_t tenant) const noexcept;

  // The bookkeeping counted again. Errors: kInternal. For tests.
  Status check() const;

 private:
  friend struct PrefixSpaceGone;
  static constexpr std::int64_t kSpaceRecords = 2;  // what a namespace is charged

  PrefixIndex(PagedStore& store, const PrefixOptions& options, TokenHash hash);
  void lay_out(Eviction eviction);
  void init_places(std::size_t group, std::int32_t begin, std::int32_t end) noexcept;

  std::size_t num_groups() const noexcept { return groups_.size(); }
  std::size_t blocks() const noexcept { return groups_.size(); }  // their number as a group
  std::int32_t owner_of(std::size_t group, std::int32_t page) const noexcept {
    return groups_[group].owners[page] - 1;
  }
  void give_page(std::size_t group, std::int32_t node, std::int32_t page) noexcept;
  std::int32_t* root_of(std::int32_t parent, PrefixSpace& space) noexcept {
    return parent >= 0 ? &nodes_[parent].children : &space.root;
  }
  PrefixSpace& space_of(std::int32_t node) const noexcept {
    return *spaces_[static_cast<std::size_t>(nodes_[node].space)];
  }
  std::uint64_t key_of(const PrefixNamespace& name) const noexcept;
  // Where the tag of an evicted key is kept; and the tag, never 0. REQUIRES: num_nodes_ > 0.
  std::uint32_t& gone(std::uint64_t key) const noexcept {
    return gone_[place_of(key, static_cast<std::uint32_t>(num_nodes_))];
  }
  static std::uint32_t tag_of(std::uint64_t key) noexcept {
    return static_cast<std::uint32_t>(key >> 32) | 1U;
  }
  std::int32_t refresh(PrefixCursor& cursor, std::int64_t pages) noexcept;
  // The node of `count` tokens in `block` behind `parent`, made of it if there is none: then its
  // pages are in `pages_`. -1: there is a longer one. A node of which it is a longer one leaves,
  // or stays and is told where `shorter` is given.
  std::int32_t attach(PrefixSpace& space, std::int32_t parent, std::int32_t block,
                      std::int64_t count, std::int64_t position,
                      NodeRef* shorter = nullptr) noexcept;
  void remove(std::int32_t node, bool evicted) noexcept;
  void remove_tree(std::int32_t node, bool evicted) noexcept;

  std::int64_t limit_of(std::size_t group, const PrefixFound& found,
                        std::int64_t length) const noexcept;
  bool has(std::size_t group, const PrefixFound& found, std::int64_t page) const noexcept;

  // Where a node waits for its turn to leave; null: in the policy.
  NodeList* list_of(std::int32_t node) noexcept;
  void enter(std::int32_t node) noexcept;
  void leave(std::int32_t node, bool evicted) noexcept;
  void touch(std::int32_t node, bool is_released) noexcept;
  void set_aside(std::int32_t node) noexcept;
  void put_back(std::int32_t node) noexcept;
  // Whether no sequence holds its block any more.
  void set_unheld(std::int32_t node, bool unheld) noexcept;
  bool can_leave(std::int32_t node) const noexcept;
  std::int32_t next_of(NodeClass& leaving, std::int32_t begin, std::int32_t end) noexcept;
  std::int32_t next_victim() noexcept;
  std::int32_t any_cached(std::size_t group) const noexcept;

  // Pages of a group whose layers drop rows, in the order in which they leave.
  struct PageLinks {
    std::int32_t older = 0, newer = 0;  // one more than the page; 0: none
  };
  struct Group {
    std::int32_t* pages = nullptr;   // [num_nodes] one more than the node's page
    std::int32_t* owners = nullptr;  // [num_pages] one more than the node whose page it is
    PageLinks* links = nullptr;      // [num_pages]
    std::int32_t oldest = 0, newest = 0;
    bool keeps_all = true;
  };
  bool is_listed(const Group& group, std::int32_t page) const noexcept {
    return group.oldest == page + 1 || group.links[page].older != 0;
  }
  void list_page(Group& group, std::int32_t page) noexcept;
  void unlist_page(Group& group, std::int32_t page) noexcept;
  void make_page_room(PageGroup& group, std::int64_t count) noexcept;

  PagedStore* store_;
  const std::int64_t page_size_;
  std::int32_t num_nodes_ = 0;  // places of nodes: blocks that were touched
  const TokenHash hash_;
  PrefixClock clock_;
  const std::int64_t ttl_;
  PrefixNode* nodes_ = nullptr;    // [num_nodes], by block
  std::uint32_t* gone_ = nullptr;  // [num_nodes] tags of evicted keys, by place_of()
  std::vector<Group> groups_;
  std::vector<std::int32_t> pages_;  // [num_groups] what attach() makes a node of; -1: none
  std::unique_ptr<SlotPolicy> own_policy_;
  EvictionPolicy* policy_ = nullptr;
  ChildTrees trees_;
  NodeClass others_;  // of another priority than usual
  NodeList aside_;
  std::map<PrefixNamespace, PrefixSpace*> names_;
  std::vector<PrefixSpace*> spaces_;  // by number
  std::vector<std::int32_t> free_numbers_;
  std::map<std::int64_t, PrefixTenant> tenants_;
  const PrefixTenant* requester_ = nullptr;
  bool has_deadlines_ = false;
  PrefixStats stats_;
  PrefixEvents events_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_PREFIX_INDEX_H_
