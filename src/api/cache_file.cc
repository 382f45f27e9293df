// CacheFile: arguments are checked here; files are written and read in src/formats, rows copied and
// sequences made in src/cache.
#include "kvcache/cache_file.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "api/paged_cache_impl.h"
#include "base/door.h"
#include "base/expect.h"
#include "base/file.h"
#include "cache/paged/raw_rows.h"
#include "formats/header.h"
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

StoredSequence describe(const PagedStore& store, const PagedSequence& seq,
                        const PrefixNamespace& space) {
  StoredSequence out;
  out.space = space;
  out.length = out.coded = seq.length;
  for (std::int64_t layer = 0; layer < store.layout().num_layers(); ++layer) {
    if (store.tail_group(layer) >= 0) out.coded = seq.coded;
    out.layers.push_back({store.spec_of(layer), store.table_of(seq, layer).first});
  }
  out.tokens = store.tokens(seq);
  out.block_tokens = internal::usual_block_tokens(out);
  return out;
}

RawRows rows_of(const RowArray& array, std::byte* block) noexcept {
  return {block + array.codes, block + array.scales, block + array.zeros, array.rows};
}

Status write_to(File& file, const PagedStore& store, const PagedSequence& seq,
                const PrefixNamespace& space) {
  FileHeader header = internal::make_header(describe(store, seq, space));
  return write_sequence(file, header,
                        [&](const RowPiece& piece, const RowArray& array, std::byte* block) {
                          get_raw(store, seq, {piece.layer, piece.buffer, piece.begin, piece.end},
                                  rows_of(array, block), piece.at);
                        });
}

// The rows of a block that a sequence holds of a layer: those that it would have dropped are left
// out.
void put_block(PagedStore& store, const PagedSequence& seq, const StoredSequence& from,
               std::int64_t block, std::span<const std::byte> bytes) noexcept {
  walk_block(from, block, [&](const RowPiece& piece, const RowArray& array) {
    const internal::GroupTable& table = store.table_of(seq, piece.layer);
    const std::int64_t sinks = store.group_of(piece.layer).sink_rows(table);
    const RawRows rows = rows_of(array, const_cast<std::byte*>(bytes.data()));
    const auto put = [&](std::int64_t begin, std::int64_t end) {
      if (begin >= end) return;
      put_raw(store, seq, {piece.layer, piece.buffer, begin, end}, rows,
              piece.at + begin - piece.begin);
    };
    put(piece.begin, std::min(piece.end, sinks));
    put(std::max(piece.begin, table.first), piece.end);
  });
}

}  // namespace

struct CacheFile::Impl {
  std::unique_ptr<internal::File> file;
  internal::FileHeader header;  // of texts, its blocks alone
  CacheFileInfo info;

  [[gnu::visibility("hidden")]] static Result<CacheFile> open(std::unique_ptr<internal::File> file);
  [[gnu::visibility("hidden")]] Status read_sequence(const internal::HeaderBytes& start);
  [[gnu::visibility("hidden")]] Status read_texts(const internal::HeaderBytes& start);
  const internal::BlockTable& blocks() const noexcept { return header.blocks; }
  [[gnu::visibility("hidden")]] Result<SequenceId> load(PagedCache& cache,
                                                        const PrefixNamespace& space,
                                                        const ExecContext& context) const;
  [[gnu::visibility("hidden")]] Status check(const PagedCache& cache,
                                             const PrefixNamespace& space) const;
};

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
  for (const internal::StoredLayer& layer : seq.layers) {
    info.layers.push_back(layer.spec);
    info.first_positions.push_back(layer.first);
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

// Whether the file is of such a cache.
Status CacheFile::Impl::check(const PagedCache& cache, const PrefixNamespace& space) const {
  const PagedStore& store = *cache.impl_->store;
  KVC_RETURN_IF_ERROR(internal::expect_kind(static_cast<internal::FileKind>(info.kind),
                                            internal::FileKind::kSequence));
  if (info.space != space) return refusal("namespace", hex(info.space), hex(space));
  const auto found = static_cast<std::int64_t>(info.layers.size());
  if (found != store.layout().num_layers()) {
    return refusal("layers", found, store.layout().num_layers());
  }
  for (std::int64_t layer = 0; layer < found; ++layer) {
    const std::string name = "layers[" + std::to_string(layer) + "]";
    KVC_RETURN_IF_ERROR(internal::expect_spec(name, info.layers[static_cast<std::size_t>(layer)],
                                              store.spec_of(layer)));
  }
  return {};
}

Result<SequenceId> CacheFile::Impl::load(PagedCache& cache, const PrefixNamespace& space,
                                         const ExecContext& context) const {
  KVC_RETURN_IF_ERROR(check(cache, space));
  PagedCache::Impl& paged = *cache.impl_;
  PagedStore& store = *paged.store;
  const PagedStore::SettleTables settle{store};
  internal::RestoredSequence from{info.length, info.coded, info.first_positions, info.tokens, {}};
  // All sums before the cache is changed, and each again of the bytes that are taken; once is
  // enough where what was taken goes back without a trace: a namespace might need room of others.
  if (paged.index != nullptr || !store.has_in_hand(from)) {
    KVC_RETURN_IF_ERROR(internal::verify_blocks(*file, header.blocks, context));
  }
  if (paged.index != nullptr) {
    KVC_ASSIGN_OR_RETURN(from.space, paged.index->space(space));
  }
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<PagedStep> step, store.reserve_restored(from));
  internal::RollBack unfinished{store, step.get()};
  const PagedSequence& seq = *step->seqs.front().seq;
  KVC_RETURN_IF_ERROR(internal::for_each_block(
      *file, header.blocks, context, [&](std::int64_t block, std::span<const std::byte> bytes) {
        put_block(store, seq, header.seq, block, bytes);
      }));
  unfinished.step = nullptr;
  return store.open_restored(*step);
}

CacheFile::CacheFile(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
CacheFile::CacheFile(CacheFile&&) noexcept = default;
CacheFile& CacheFile::operator=(CacheFile&&) noexcept = default;
CacheFile::~CacheFile() = default;

Status CacheFile::save(const PagedCache& cache, SequenceId seq, const std::string& path,
                       const PrefixNamespace& space) {
  return at_door([&]() -> Status {
    const PagedStore& store = *cache.impl_->store;
    KVC_ASSIGN_OR_RETURN(const PagedSequence* found, store.find(seq));
    return internal::replace_file(internal::files(), path,
                                  [&](File& file) { return write_to(file, store, *found, space); });
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
    const PagedStore& store = *cache.impl_->store;
    KVC_ASSIGN_OR_RETURN(const PagedSequence* found, store.find(seq));
    internal::MemoryFile file;
    KVC_RETURN_IF_ERROR(write_to(file, store, *found, space));
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
  return at_door([&] { return impl_->load(cache, space, context); });
}

}  // namespace v1
}  // namespace kvcache
