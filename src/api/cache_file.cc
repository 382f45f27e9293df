// CacheFile: arguments are checked here; files are written and read in src/formats, rows copied and
// sequences made in src/cache.
#include "kvcache/cache_file.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "api/cache_file_impl.h"
#include "api/paged_cache_impl.h"
#include "base/door.h"
#include "base/expect.h"
#include "base/file.h"
#include "cache/layer_check.h"
#include "cache/paged/raw_rows.h"
#include "formats/stored_texts.h"

namespace kvcache {
inline namespace v1 {

using internal::at_door;
using internal::File;
using internal::FileHeader;
using internal::PagedSequence;
using internal::PagedStep;
using internal::PagedStore;
using internal::RawRows;
using internal::refusal;
using internal::RowArray;
using internal::RowPiece;
using internal::StoredSequence;

namespace {

std::string hex(const PrefixNamespace& space) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : space.bits) {
    text += kDigits[std::to_integer<int>(byte) / 16];
    text += kDigits[std::to_integer<int>(byte) % 16];
  }
  return text + ", tenant " + std::to_string(space.tenant);
}

// A layer of a file in one of the caches that have the sequence.
struct LayerAt {
  PagedStore* store;
  const PagedSequence* seq;
  std::int64_t layer;

  const LayerSpec& spec() const noexcept { return store->spec_of(layer); }
  // Rows of a coded layer that are coded.
  std::int64_t coded_rows() const noexcept {
    return store->tail_group(layer) >= 0 ? seq->coded : seq->length;
  }
};

void add_layers(PagedStore& store, const PagedSequence& seq, std::vector<LayerAt>* layers) {
  for (std::int64_t layer = 0; layer < store.layout().num_layers(); ++layer) {
    layers->push_back({&store, &seq, layer});
  }
}

Result<StoredSequence> describe(std::span<const LayerAt> layers, const PrefixNamespace& space,
                                std::span<const std::int32_t> tokens) {
  StoredSequence out;
  const PagedSequence& first = *layers.front().seq;
  out.space = space;
  out.length = out.coded = first.length;
  bool any_coded = false;
  for (const LayerAt& at : layers) {
    const std::string name = "layers[" + std::to_string(out.layers.size()) + "]";
    if (at.seq->length != out.length) return refusal(name + ".length", at.seq->length, out.length);
    if (internal::is_coded(at.spec())) {
      if (any_coded && at.coded_rows() != out.coded) {
        return refusal(name, std::to_string(at.coded_rows()) + " coded rows",
                       std::to_string(out.coded) + ", as layers before");
      }
      out.coded = at.coded_rows();
      any_coded = true;
    }
    out.layers.push_back({at.spec(), at.store->table_of(*at.seq, at.layer).first});
  }
  if (tokens.size() > static_cast<std::size_t>(out.length)) {
    return refusal("tokens", static_cast<std::int64_t>(tokens.size()),
                   "at most the length, " + std::to_string(out.length));
  }
  out.tokens.assign(tokens.begin(), tokens.end());
  out.block_tokens = internal::usual_block_tokens(out);
  return out;
}

RawRows rows_of(const RowArray& array, std::byte* block) noexcept {
  return {block + array.codes, block + array.scales, block + array.zeros, array.rows};
}

Status write_to(File& file, std::span<const LayerAt> layers, StoredSequence described) {
  FileHeader header = internal::make_header(std::move(described));
  return write_sequence(
      file, header, [&](const RowPiece& piece, const RowArray& array, std::byte* block) {
        const LayerAt& at = layers[static_cast<std::size_t>(piece.layer)];
        get_raw(*at.store, *at.seq, {at.layer, piece.buffer, piece.begin, piece.end},
                rows_of(array, block), piece.at);
      });
}

// The rows of a block that a sequence holds of a layer: those that it would have dropped are left
// out.
void put_block(std::span<const LayerAt> layers, const StoredSequence& from, std::int64_t block,
               std::span<const std::byte> bytes) noexcept {
  walk_block(from, block, [&](const RowPiece& piece, const RowArray& array) {
    const LayerAt& at = layers[static_cast<std::size_t>(piece.layer)];
    const internal::GroupTable& table = at.store->table_of(*at.seq, at.layer);
    const std::int64_t sinks = at.store->group_of(at.layer).sink_rows(table);
    const RawRows rows = rows_of(array, const_cast<std::byte*>(bytes.data()));
    const auto put = [&](std::int64_t begin, std::int64_t end) {
      if (begin >= end) return;
      put_raw(*at.store, *at.seq, {at.layer, piece.buffer, begin, end}, rows,
              piece.at + begin - piece.begin);
    };
    put(piece.begin, std::min(piece.end, sinks));
    put(std::max(piece.begin, table.first), piece.end);
  });
}

// A step of each cache that takes a part of a sequence: rolled back, unless all are opened.
struct Steps {
  struct One {
    PagedStore* store;
    std::unique_ptr<PagedStep> step;
  };
  std::vector<One> all;

  Steps() = default;
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;
  ~Steps() {
    for (const One& one : all) {
      if (one.step != nullptr) one.store->rollback(*one.step);
    }
    for (const One& one : all) one.store->settle_tables();
  }
  std::vector<SequenceId> open() {
    std::vector<SequenceId> ids(all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      ids[i] = all[i].store->open_restored(*all[i].step);
      all[i].step.reset();
    }
    return ids;
  }
};

}  // namespace

Result<CacheFile> CacheFile::Impl::open(std::unique_ptr<File> file) {
  auto impl = std::make_unique<Impl>();
  KVC_ASSIGN_OR_RETURN(const internal::HeaderBytes start, internal::read_start(*file));
  impl->file = std::move(file);
  CacheFileInfo& info = impl->info;
  info.kind = static_cast<CacheFileInfo::Kind>(start.kind);
  info.version = internal::kFormatVersion;
  if (start.kind == internal::FileKind::kTexts) {
    KVC_RETURN_IF_ERROR(impl->read_texts(start));
  } else {
    KVC_RETURN_IF_ERROR(impl->read_sequence(start));
  }
  info.sums = impl->blocks().sums;
  info.header_bytes = impl->blocks().header_bytes();
  info.file_bytes = impl->blocks().file_bytes();
  return CacheFile(std::move(impl));
}

Status CacheFile::Impl::read_sequence(const internal::HeaderBytes& start) {
  KVC_ASSIGN_OR_RETURN(header, internal::read_header(start));
  const StoredSequence& seq = header.seq;
  info.space = seq.space;
  info.length = seq.length;
  info.tokens = seq.tokens;
  const bool is_layers = seq.kind == internal::FileKind::kLayers;
  for (const internal::StoredLayer& layer : seq.layers) {
    info.layers.push_back(layer.spec);
    info.first_positions.push_back(is_layers ? layer.extents.position : layer.first);
    if (!is_layers) continue;
    info.batches.push_back(layer.extents.batch);
    info.lengths.push_back(layer.extents.length);
  }
  info.coded = seq.coded;
  info.block_tokens = seq.block_tokens;
  return {};
}

Status CacheFile::Impl::read_texts(const internal::HeaderBytes& start) {
  KVC_ASSIGN_OR_RETURN(internal::TextsHeader texts, internal::read_texts_header(start));
  info.layers = texts.texts.layers;
  info.page_size = texts.texts.page_size;
  info.spaces = texts.texts.spaces;
  info.tokens = texts.texts.tokens;
  for (const internal::StoredPage& page : texts.texts.pages) {
    info.pages.push_back({page.parent, page.space, page.count, page.priority});
  }
  header.blocks = std::move(texts.blocks);
  return {};
}

Status CacheFile::Impl::check_start(internal::FileKind kind, const PrefixNamespace& space) const {
  KVC_RETURN_IF_ERROR(internal::expect_kind(static_cast<internal::FileKind>(info.kind), kind));
  if (info.space != space) return refusal("namespace", hex(info.space), hex(space));
  return {};
}

Result<std::vector<SequenceId>> CacheFile::Impl::load(std::span<PagedCache* const> caches,
                                                      SequenceId id, const PrefixNamespace& space,
                                                      const ExecContext& context) const {
  KVC_RETURN_IF_ERROR(check_start(internal::FileKind::kSequence, space));
  std::size_t layers = 0;
  for (const PagedCache* cache : caches) {
    const PagedStore& store = *cache->impl_->store;
    for (std::int64_t i = 0; i < store.layout().num_layers(); ++i, ++layers) {
      if (layers >= info.layers.size()) continue;
      KVC_RETURN_IF_ERROR(internal::expect_spec("layers[" + std::to_string(layers) + "]",
                                                info.layers[layers], store.spec_of(i)));
    }
  }
  if (info.layers.size() != layers) {
    return refusal("layers", static_cast<std::int64_t>(info.layers.size()),
                   static_cast<std::int64_t>(layers));
  }
  std::vector<internal::RestoredSequence> parts;
  bool in_hand = true;
  for (auto first = info.first_positions.begin(); PagedCache* const cache : caches) {
    PagedCache::Impl& paged = *cache->impl_;
    const auto last = first + paged.store->layout().num_layers();
    parts.push_back({info.length, info.coded, {first, last}, info.tokens, {}, id});
    first = last;
    in_hand = in_hand && paged.index == nullptr && paged.store->has_in_hand(parts.back());
  }
  // All sums before a cache is changed, and each again of the bytes that are taken; once is enough
  // where what was taken goes back without a trace: a namespace might need room of others.
  if (!in_hand) KVC_RETURN_IF_ERROR(internal::verify_blocks(*file, header.blocks, context));
  Steps steps;
  steps.all.reserve(caches.size());
  std::vector<LayerAt> places;
  for (std::size_t i = 0; i < caches.size(); ++i) {
    PagedCache::Impl& paged = *caches[i]->impl_;
    steps.all.push_back({paged.store.get(), nullptr});
    if (paged.index != nullptr) {
      KVC_ASSIGN_OR_RETURN(parts[i].space, paged.index->space(space));
    }
    KVC_ASSIGN_OR_RETURN(steps.all.back().step, paged.store->reserve_restored(parts[i]));
    add_layers(*paged.store, *steps.all.back().step->seqs.front().seq, &places);
  }
  KVC_RETURN_IF_ERROR(internal::for_each_block(
      *file, header.blocks, context, [&](std::int64_t block, std::span<const std::byte> bytes) {
        put_block(places, header.seq, block, bytes);
      }));
  return steps.open();
}

Result<SequenceId> CacheFile::Impl::load_one(PagedCache& cache, SequenceId id,
                                             const PrefixNamespace& space,
                                             const ExecContext& context) const {
  PagedCache* const one = &cache;
  KVC_ASSIGN_OR_RETURN(const auto loaded, load(std::span(&one, 1), id, space, context));
  return loaded.front();
}

CacheFile::CacheFile(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
CacheFile::CacheFile(CacheFile&&) noexcept = default;
CacheFile& CacheFile::operator=(CacheFile&&) noexcept = default;
CacheFile::~CacheFile() = default;

Status CacheFile::save(const PagedCache& cache, SequenceId seq, const std::string& path,
                       const PrefixNamespace& space) {
  const Part part{&cache, seq};
  return save(std::span(&part, 1), path, space);
}

Status CacheFile::save(std::span<const Part> parts, const std::string& path,
                       const PrefixNamespace& space, std::span<const std::int32_t> tokens) {
  return at_door([&]() -> Status {
    if (parts.empty()) return refusal("parts", "none", "at least one");
    std::vector<LayerAt> layers;
    for (const Part& part : parts) {
      PagedStore& store = *part.cache->impl_->store;
      KVC_ASSIGN_OR_RETURN(const PagedSequence* seq, store.find(part.seq));
      add_layers(store, *seq, &layers);
    }
    const LayerAt& first = layers.front();
    const std::vector<std::int32_t> known =
        tokens.empty() ? first.store->tokens(*first.seq) : std::vector<std::int32_t>();
    KVC_ASSIGN_OR_RETURN(StoredSequence described,
                         describe(layers, space, tokens.empty() ? known : tokens));
    return internal::replace_file(internal::files(), path, [&](File& file) {
      return write_to(file, layers, std::move(described));
    });
  });
}

Result<SequenceId> CacheFile::load(PagedCache& cache, const std::string& path,
                                   const PrefixNamespace& space, const ExecContext& context) {
  return at_door([&]() -> Result<SequenceId> {
    KVC_ASSIGN_OR_RETURN(const CacheFile file, open(path));
    return file.load(cache, space, context);
  });
}

Result<std::vector<std::byte>> CacheFile::to_bytes(const PagedCache& cache, SequenceId seq,
                                                   const PrefixNamespace& space) {
  return at_door([&]() -> Result<std::vector<std::byte>> {
    PagedStore& store = *cache.impl_->store;
    KVC_ASSIGN_OR_RETURN(const PagedSequence* found, store.find(seq));
    std::vector<LayerAt> layers;
    add_layers(store, *found, &layers);
    KVC_ASSIGN_OR_RETURN(StoredSequence described, describe(layers, space, store.tokens(*found)));
    internal::MemoryFile file;
    KVC_RETURN_IF_ERROR(write_to(file, layers, std::move(described)));
    return std::move(file.bytes());
  });
}

Result<CacheFile> CacheFile::over(std::span<const std::byte> bytes) {
  return at_door([&] { return Impl::open(std::make_unique<internal::BytesFile>(bytes)); });
}

Result<CacheFile> CacheFile::open(const std::string& path) {
  return at_door([&]() -> Result<CacheFile> {
    KVC_ASSIGN_OR_RETURN(auto file, internal::files().open(path));
    Result<CacheFile> opened = Impl::open(std::move(file));
    const Status status = opened.status();
    if (status.ok() || status.message().starts_with(path)) return opened;
    return Status(status.code(), path + ": " + status.message());
  });
}

const CacheFileInfo& CacheFile::info() const noexcept { return impl_->info; }

Status CacheFile::verify(const ExecContext& context) const {
  return at_door(
      [&] { return internal::verify_blocks(*impl_->file, impl_->header.blocks, context); });
}

Result<SequenceId> CacheFile::load(PagedCache& cache, const PrefixNamespace& space,
                                   const ExecContext& context) const {
  return at_door([&] { return impl_->load_one(cache, {}, space, context); });
}

Result<SequenceId> CacheFile::load_as(SequenceId id, PagedCache& cache,
                                      const PrefixNamespace& space,
                                      const ExecContext& context) const {
  return at_door([&]() -> Result<SequenceId> {
    if (id == SequenceId{}) return refusal("id", 0, "1 .. 2^62");
    return impl_->load_one(cache, id, space, context);
  });
}

Result<std::vector<SequenceId>> CacheFile::load(std::span<PagedCache* const> caches,
                                                const PrefixNamespace& space,
                                                const ExecContext& context) const {
  return at_door([&] { return impl_->load(caches, {}, space, context); });
}

}  // namespace v1
}  // namespace kvcache
