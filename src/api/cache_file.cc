// CacheFile: arguments are checked here; files are written and read in src/formats, rows copied and
// sequences made in src/cache.
#include "kvcache/cache_file.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "api/paged_cache_impl.h"
#include "base/door.h"
#include "base/expect.h"
#include "base/file.h"
#include "cache/paged/raw_rows.h"
#include "formats/blocks.h"

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

// Blocks that are read at once hold no more than this together, unless one alone does.
constexpr std::int64_t kMostBlockMemory = std::int64_t{64} << 20;

std::string hex(const PrefixNamespace& space) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : space.bits) {
    text += kDigits[std::to_integer<int>(byte) / 16];
    text += kDigits[std::to_integer<int>(byte) % 16];
  }
  return text + ", tenant " + std::to_string(space.tenant);
}

Status expect_same(const std::string& name, std::int64_t found, std::int64_t expected) {
  return found == expected ? Status() : refusal(name, found, expected);
}

Status expect_spec(const std::string& name, const LayerSpec& found, const LayerSpec& expected) {
  KVC_RETURN_IF_ERROR(expect_same(name + ".num_buffers", found.num_buffers, expected.num_buffers));
  KVC_RETURN_IF_ERROR(expect_same(name + ".window", found.life.window, expected.life.window));
  KVC_RETURN_IF_ERROR(expect_same(name + ".chunk", found.life.chunk, expected.life.chunk));
  KVC_RETURN_IF_ERROR(
      expect_same(name + ".sink_tokens", found.life.sink_tokens, expected.life.sink_tokens));
  for (std::int32_t b = 0; b < found.num_buffers; ++b) {
    const std::string buffer = name + ".buffers[" + std::to_string(b) + "]";
    const BufferSpec& mine = found.buffers[b];
    const BufferSpec& its = expected.buffers[b];
    KVC_RETURN_IF_ERROR(expect_same(buffer + ".role", static_cast<std::int64_t>(mine.role),
                                    static_cast<std::int64_t>(its.role)));
    KVC_RETURN_IF_ERROR(expect_same(buffer + ".heads", mine.heads, its.heads));
    KVC_RETURN_IF_ERROR(expect_same(buffer + ".dim", mine.dim, its.dim));
    if (mine.format.kind != its.format.kind) {
      return refusal(buffer + ".form", name_of(mine.format.kind), name_of(its.format.kind));
    }
    if (mine.format.dtype != its.format.dtype) {
      return refusal(buffer + ".dtype", name_of(mine.format.dtype), name_of(its.format.dtype));
    }
    KVC_RETURN_IF_ERROR(
        expect_same(buffer + ".rotate", mine.format.rotate ? 1 : 0, its.format.rotate ? 1 : 0));
  }
  return {};
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
  internal::FileHeader header;
  CacheFileInfo info;

  static Result<CacheFile> open(std::unique_ptr<internal::File> file);
  Result<SequenceId> load(PagedCache& cache, const PrefixNamespace& space,
                          const ExecContext& context) const;
  Status check(const PagedCache& cache, const PrefixNamespace& space) const;

  // Calls fn(block, its bytes), each block once, in tasks of the executor, as long as none fails.
  template <typename Fn>
  Status for_each_block(const ExecContext& context, Fn&& fn) const;
};

template <typename Fn>
Status CacheFile::Impl::for_each_block(const ExecContext& context, Fn&& fn) const {
  const auto blocks = static_cast<std::int64_t>(header.sums.size());
  const std::int64_t most = header.most_block_bytes();
  if (most == 0) return {};
  const std::int64_t tasks = std::max<std::int64_t>(
      1, std::min({blocks, kMostBlockMemory / most, std::int64_t{context.get().concurrency()}}));
  struct Work {
    const Impl& impl;
    Fn& fn;
    std::int64_t blocks, tasks, most;
    std::vector<std::byte> room;
    std::vector<Status> status;
    std::atomic<bool> failed{false};

    void run(std::int64_t task) noexcept {
      auto& result = status[static_cast<std::size_t>(task)];
      for (std::int64_t b = task; b < blocks && !failed.load(std::memory_order_relaxed);
           b += tasks) {
        result = at_door([&]() -> Status {
          const std::span<std::byte> mine(room.data() + task * most,
                                          static_cast<std::size_t>(most));
          KVC_ASSIGN_OR_RETURN(const auto bytes,
                               internal::read_block(*impl.file, impl.header, b, mine));
          fn(b, bytes);
          return {};
        });
        if (!result.ok()) failed.store(true, std::memory_order_relaxed);
      }
    }
  } work{*this, fn, blocks, tasks, most, {}, {}};
  work.room.resize(static_cast<std::size_t>(tasks * most));
  work.status.resize(static_cast<std::size_t>(tasks));
  context.get().parallel_for(
      tasks,
      [](void* data, std::int64_t task, std::int32_t) noexcept {
        static_cast<Work*>(data)->run(task);
      },
      &work);
  const auto bad = std::find_if(work.status.begin(), work.status.end(),
                                [](const Status& status) { return !status.ok(); });
  return bad == work.status.end() ? Status() : *bad;
}

Result<CacheFile> CacheFile::Impl::open(std::unique_ptr<File> file) {
  auto impl = std::make_unique<Impl>();
  KVC_ASSIGN_OR_RETURN(impl->header, internal::read_header(*file));
  impl->file = std::move(file);
  const StoredSequence& seq = impl->header.seq;
  CacheFileInfo& info = impl->info;
  info.version = internal::kFormatVersion;
  info.space = seq.space;
  info.length = seq.length;
  info.tokens = seq.tokens;
  for (const internal::StoredLayer& layer : seq.layers) {
    info.layers.push_back(layer.spec);
    info.first_positions.push_back(layer.first);
  }
  info.coded = seq.coded;
  info.block_tokens = seq.block_tokens;
  info.sums = impl->header.sums;
  info.header_bytes = impl->header.header_bytes();
  info.file_bytes = impl->header.file_bytes();
  return CacheFile(std::move(impl));
}

// Whether the file is of such a cache.
Status CacheFile::Impl::check(const PagedCache& cache, const PrefixNamespace& space) const {
  const PagedStore& store = *cache.impl_->store;
  if (info.space != space) return refusal("namespace", hex(info.space), hex(space));
  const auto found = static_cast<std::int64_t>(info.layers.size());
  if (found != store.layout().num_layers()) {
    return refusal("layers", found, store.layout().num_layers());
  }
  for (std::int64_t layer = 0; layer < found; ++layer) {
    const std::string name = "layers[" + std::to_string(layer) + "]";
    KVC_RETURN_IF_ERROR(
        expect_spec(name, info.layers[static_cast<std::size_t>(layer)], store.spec_of(layer)));
  }
  return {};
}

Result<SequenceId> CacheFile::Impl::load(PagedCache& cache, const PrefixNamespace& space,
                                         const ExecContext& context) const {
  KVC_RETURN_IF_ERROR(check(cache, space));
  // All sums before the cache is changed, and each again of the bytes that are taken.
  KVC_RETURN_IF_ERROR(for_each_block(context, [](std::int64_t, std::span<const std::byte>) {}));
  PagedCache::Impl& paged = *cache.impl_;
  PagedStore& store = *paged.store;
  const PagedStore::SettleTables settle{store};
  internal::RestoredSequence from{info.length, info.coded, info.first_positions, info.tokens, {}};
  if (paged.index != nullptr) {
    KVC_ASSIGN_OR_RETURN(from.space, paged.index->space(space));
  }
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<PagedStep> step, store.reserve_restored(from));
  const PagedSequence& seq = *step->seqs.front().seq;
  const Status status =
      for_each_block(context, [&](std::int64_t block, std::span<const std::byte> bytes) {
        put_block(store, seq, header.seq, block, bytes);
      });
  if (status.ok()) return store.open_restored(*step);
  store.rollback(*step);
  return status;
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
  return at_door([&] {
    return impl_->for_each_block(context, [](std::int64_t, std::span<const std::byte>) {});
  });
}

Result<SequenceId> CacheFile::load(PagedCache& cache, const PrefixNamespace& space,
                                   const ExecContext& context) const {
  return at_door([&] { return impl_->load(cache, space, context); });
}

}  // namespace v1
}  // namespace kvcache
