// PrefixCache in files: files are written and read in src/formats, pages and nodes made in
// src/cache.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/prefix_cache_impl.h"
#include "base/door.h"
#include "base/expect.h"
#include "base/file.h"
#include "cache/paged/raw_rows.h"
#include "formats/stored_texts.h"

namespace kvcache {
inline namespace v1 {

using internal::at_door;
using internal::File;
using internal::PagedStep;
using internal::PagedStore;
using internal::PrefixIndex;
using internal::PrefixNode;
using internal::PrefixSpace;
using internal::RawRows;
using internal::refusal;
using internal::RowArray;
using internal::StoredPage;
using internal::StoredTexts;
using internal::TextsHeader;

namespace {

std::size_t group_of(const PagedStore& store, std::size_t layer) noexcept {
  return static_cast<std::size_t>(store.place(static_cast<std::int64_t>(layer)).group);
}

RawRows rows_of(const RowArray& array, const std::byte* block) noexcept {
  auto* const bytes = const_cast<std::byte*>(block);
  return {bytes + array.codes, bytes + array.scales, bytes + array.zeros, array.rows};
}

// What is known, in the order of `nodes`, those left out that are too much or past their time; what
// lies behind them goes with them.
StoredTexts describe(const PagedStore& store, const PrefixIndex& index,
                     std::vector<std::int32_t>& nodes, std::int64_t most_bytes) {
  StoredTexts texts;
  texts.page_size = store.page_size();
  std::int64_t row_bytes = 0;
  for (std::int64_t layer = 0; layer < store.layout().num_layers(); ++layer) {
    texts.layers.push_back(store.spec_of(layer));
    row_bytes += bytes_per_token(texts.layers.back());
  }
  std::map<PrefixNamespace, std::int32_t> spaces;
  std::map<std::int32_t, std::int32_t> numbers;  // of nodes that go, in the file
  std::vector<std::int32_t> kept;
  std::int64_t bytes = 0;
  for (const std::int32_t number : nodes) {
    const PrefixNode& node = index.node(number);
    const auto parent = numbers.find(node.parent);
    if (index.is_expired(number) || (node.parent >= 0 && parent == numbers.end())) continue;
    if (most_bytes > 0 && bytes + node.count * row_bytes > most_bytes) continue;
    bytes += node.count * row_bytes;
    const PrefixNamespace& name = index.name_of(number);
    const auto [space, is_new] =
        spaces.emplace(name, static_cast<std::int32_t>(texts.spaces.size()));
    if (is_new) texts.spaces.push_back(name);
    texts.pages.push_back({node.parent < 0 ? -1 : parent->second, space->second, node.count,
                           node.priority, static_cast<std::int64_t>(texts.tokens.size())});
    const std::int32_t* const ids = store.token_slots(number);
    texts.tokens.insert(texts.tokens.end(), ids, ids + node.count);
    std::vector<std::uint8_t> present(texts.present_bytes());
    for (std::size_t layer = 0; layer < texts.layers.size(); ++layer) {
      if (index.page_of(group_of(store, layer), number) < 0) continue;
      present[layer / 8] = static_cast<std::uint8_t>(present[layer / 8] | 1U << layer % 8);
    }
    texts.present.insert(texts.present.end(), present.begin(), present.end());
    numbers.emplace(number, static_cast<std::int32_t>(kept.size()));
    kept.push_back(number);
  }
  nodes = std::move(kept);
  return texts;
}

// Whether a file's texts are of such a cache.
Status check_texts(const PagedStore& store, const StoredTexts& texts) {
  const auto found = static_cast<std::int64_t>(texts.layers.size());
  if (found != store.layout().num_layers()) {
    return refusal("layers", found, store.layout().num_layers());
  }
  if (texts.page_size != store.page_size()) {
    return refusal("page_size", texts.page_size, store.page_size());
  }
  for (std::size_t layer = 0; layer < texts.layers.size(); ++layer) {
    KVC_RETURN_IF_ERROR(internal::expect_spec("layers[" + std::to_string(layer) + "]",
                                              texts.layers[layer],
                                              store.spec_of(static_cast<std::int64_t>(layer))));
  }
  // Layers that live alike have their rows alike, and those that keep all have them.
  for (std::size_t page = 0; page < texts.pages.size(); ++page) {
    for (std::size_t layer = 0; layer < texts.layers.size(); ++layer) {
      const auto& group = store.layout().groups[group_of(store, layer)];
      const bool has = texts.has(page, layer);
      if (has == texts.has(page, static_cast<std::size_t>(group.layers.front().layer)) &&
          (has || !group.rule.keeps_all())) {
        continue;
      }
      return refusal(StatusCode::kCorrupt, "pages[" + std::to_string(page) + "].present",
                     "layer " + std::to_string(layer) + (has ? " there" : " missing"),
                     "the layers that live alike, and those that keep all");
    }
  }
  return {};
}

// Takes the pages of a file, one after the other, as far as there is room for them.
class Taker {
 public:
  // `wanted`: of each namespace, whether its texts are.
  Taker(PagedStore& store, PrefixIndex& index, const File& file, const TextsHeader& header,
        const std::vector<bool>& wanted)
      : store_(store), index_(index), file_(file), header_(header), wanted_(wanted) {}

  Status run() {
    const StoredTexts& texts = header_.texts;
    room_.resize(static_cast<std::size_t>(header_.blocks.most_bytes()));
    spaces_.resize(texts.spaces.size());
    nodes_.resize(texts.pages.size());
    added_.reserve(texts.pages.size());
    shorter_.reserve(texts.pages.size());
    struct Unfinished {  // of an error, and of memory that is refused
      Taker& taker;
      bool there = true;
      ~Unfinished() {
        if (there) taker.index_.take_back(taker.added_);
      }
    } unfinished{*this};
    for (std::size_t page = 0; page < texts.pages.size() && !full_; ++page) {
      KVC_RETURN_IF_ERROR(take(page));
    }
    unfinished.there = false;
    index_.take_back(shorter_);
    index_.use_again(added_);
    return {};
  }
  // Those that are there: a longer one may have come in another's place.
  std::int64_t taken() const {
    return std::count_if(added_.begin(), added_.end(),
                         [&](const NodeRef& added) { return index_.is_there(added); });
  }

 private:
  using NodeRef = PrefixIndex::NodeRef;

  // The namespace of a page, held until the end; null where it would take room of others.
  PrefixSpace* space_of(const StoredPage& page) {
    const auto number = static_cast<std::size_t>(page.space);
    if (spaces_[number] == nullptr) {
      const PrefixNamespace& name = header_.texts.spaces[number];
      if (!index_.has_room_for(name)) return nullptr;
      auto made = index_.space(name);
      if (!made.ok()) return nullptr;
      spaces_[number] = std::move(*made);
    }
    return spaces_[number].get();
  }

  Status take(std::size_t number) {
    const StoredTexts& texts = header_.texts;
    const StoredPage& page = texts.pages[number];
    if (!wanted_[static_cast<std::size_t>(page.space)]) return {};
    std::int32_t parent = -1;
    if (page.parent >= 0) {
      const NodeRef& before = nodes_[static_cast<std::size_t>(page.parent)];
      if (!index_.is_there(before)) return {};
      parent = before.node;
    }
    PrefixSpace* const space = space_of(page);
    if (space == nullptr) {
      full_ = true;
      return {};
    }
    NodeRef& node = nodes_[number];
    node = index_.ref(index_.child(*space, parent, texts.tokens_of(page)));
    if (node.node >= 0) return {};
    std::vector<bool> wanted(static_cast<std::size_t>(store_.layout().num_groups()));
    for (std::size_t layer = 0; layer < texts.layers.size(); ++layer) {
      if (texts.has(number, layer)) wanted[group_of(store_, layer)] = true;
    }
    Result<std::unique_ptr<PagedStep>> reserved = store_.reserve_pages(wanted);
    if (!reserved.ok() || *reserved == nullptr) {
      full_ = true;
      return {};
    }
    PagedStep& step = **reserved;
    internal::RollBack unfinished{store_, &step};
    KVC_ASSIGN_OR_RETURN(const auto bytes,
                         internal::read_block(file_, header_.blocks, number, room_));
    unfinished.step = nullptr;
    walk_page(texts, number, [&](std::int64_t layer, std::int32_t buffer, const RowArray& array) {
      const auto& pages = step.rooms[group_of(store_, static_cast<std::size_t>(layer))].pages;
      put_page(store_, layer, buffer, pages.front(), rows_of(array, bytes.data()));
    });
    NodeRef shorter;
    node = index_.ref(
        index_.add(*space, parent, step, texts.tokens_of(page), page.priority, &shorter));
    if (node.node >= 0) added_.push_back(node);
    if (shorter.node >= 0) shorter_.push_back(shorter);
    return {};
  }

  PagedStore& store_;
  PrefixIndex& index_;
  const File& file_;
  const TextsHeader& header_;
  const std::vector<bool>& wanted_;
  std::vector<std::byte> room_;
  std::vector<std::shared_ptr<PrefixSpace>> spaces_;  // [num_spaces] null: not met yet
  std::vector<NodeRef> nodes_;                        // [num_pages] none: it did not come
  std::vector<NodeRef> added_;
  std::vector<NodeRef> shorter_;  // that leave in the end: longer ones have come
  bool full_ = false;
};

}  // namespace

Result<std::int64_t> PrefixCache::save(const std::string& path, std::int64_t most_bytes) const {
  return at_door([&]() -> Result<std::int64_t> {
    KVC_RETURN_IF_ERROR(impl_->check_cache());
    KVC_RETURN_IF_ERROR(internal::expect_at_least("most_bytes", most_bytes, 0));
    const PagedStore& store = *impl_->cache->store;
    const PrefixIndex& index = impl_->index();
    std::vector<std::int32_t> nodes = index.by_use();
    TextsHeader header = internal::make_texts_header(describe(store, index, nodes, most_bytes));
    const auto fill = [&](std::int64_t page, std::span<std::byte> bytes) {
      const auto number = static_cast<std::size_t>(page);
      walk_page(header.texts, number,
                [&](std::int64_t layer, std::int32_t buffer, const RowArray& array) {
                  const std::size_t group = group_of(store, static_cast<std::size_t>(layer));
                  get_page(store, layer, buffer, index.page_of(group, nodes[number]),
                           rows_of(array, bytes.data()));
                });
    };
    const auto write = [&](File& file) -> Status {
      KVC_RETURN_IF_ERROR(internal::write_blocks(file, header.blocks, fill));
      return file.write_at(0, internal::encode_texts_header(header));
    };
    KVC_RETURN_IF_ERROR(internal::replace_file(internal::files(), path, write));
    return static_cast<std::int64_t>(nodes.size());
  });
}

Result<std::int64_t> PrefixCache::load(const std::string& path, const ExecContext& context) {
  return at_door([&] { return impl_->load(path, nullptr, context); });
}

Result<std::int64_t> PrefixCache::load(const std::string& path, const PrefixNamespace& only,
                                       const ExecContext& context) {
  return at_door([&] { return impl_->load(path, &only, context); });
}

Result<std::int64_t> PrefixCache::Impl::load(const std::string& path, const PrefixNamespace* only,
                                             const ExecContext& context) const {
  KVC_RETURN_IF_ERROR(check_cache());
  PagedStore& store = *cache->store;
  KVC_ASSIGN_OR_RETURN(const auto file, internal::files().open(path));
  KVC_ASSIGN_OR_RETURN(const TextsHeader header, internal::read_texts_header(*file));
  KVC_RETURN_IF_ERROR(check_texts(store, header.texts));
  std::vector<bool> wanted;
  for (const PrefixNamespace& space : header.texts.spaces) {
    wanted.push_back(only == nullptr || space == *only);
  }
  // All sums before anything is changed, and each again of the bytes that are taken.
  KVC_RETURN_IF_ERROR(
      internal::verify_blocks(*file, header.blocks, context, [&](std::int64_t page) {
        const auto number = static_cast<std::size_t>(page);
        return wanted[static_cast<std::size_t>(header.texts.pages[number].space)];
      }));
  const PagedStore::SettleTables settle{store};
  Taker taker(store, index(), *file, header, wanted);
  KVC_RETURN_IF_ERROR(taker.run());
  return taker.taken();
}

}  // namespace v1
}  // namespace kvcache
