// CacheFile: caches that outlive their process. docs/formats.md says what is in a file.
//
//   save -> (another day, another process) -> load
#ifndef KVCACHE_CACHE_FILE_H_
#define KVCACHE_CACHE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvcache/cache.h"
#include "kvcache/executor.h"
#include "kvcache/layer_spec.h"
#include "kvcache/paged_cache.h"
#include "kvcache/prefix.h"
#include "kvcache/status.h"
#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// A page of tokens in a file of PrefixCache::save.
struct CacheFilePage {
  std::int64_t parent = -1;  // the page before it; -1: none
  std::int64_t space = 0;    // in `spaces`
  std::int64_t count = 0;    // tokens
  std::int64_t priority = 0;
};

// What a file says of itself.
struct CacheFileInfo {
  enum class Kind : std::uint8_t {
    kSequence = 1,  // of CacheFile::save
    kTexts = 2,     // of PrefixCache::save: pages, in place of length, space, coded, block_tokens
    kLayers = 3,    // of a layered cache: `length` is that of its longest layer
  };
  Kind kind = Kind::kSequence;
  std::int64_t version = 0;
  PrefixNamespace space;
  std::int64_t length = 0;           // tokens
  std::vector<std::int32_t> tokens;  // ids of leading ones, as far as they are known
  std::vector<LayerSpec> layers;
  // [num_layers] the oldest row that is there beside the sinks; of a layered cache the position of
  // the first row.
  std::vector<std::int64_t> first_positions;
  // [num_layers] of a layered cache; batch 0 and a spec without buffers: never populated.
  std::vector<std::int64_t> batches, lengths;
  // Rows of coded layers that are codes; those behind them are plain
  // (CacheConfig::residual_tokens).
  std::int64_t coded = 0;
  std::int64_t block_tokens = 0;
  std::int64_t page_size = 0;
  std::vector<PrefixNamespace> spaces;
  std::vector<CacheFilePage> pages;  // each behind its parent, what was used last first
  std::vector<std::uint64_t> sums;   // of each block or page, XXH3-64
  std::int64_t header_bytes = 0;
  std::int64_t file_bytes = 0;
};

// Rows go as they are stored, byte for byte, whatever pages and layout are: what is loaded has the
// bits of what was saved. The namespace stands for all that decides what rows a token gets (see
// namespace_of); a file of another one is refused.
//
// Every failing call leaves the cache as it was. Errors of all: kIo of the system, kNotFound
// without a file, kCorrupt for bytes that are not what was written, kUnsupported for a version of
// the format that is not known here; each names the file or the field.
//
// Thread safety: save is a const call of the cache, load a changing one.
class KVC_API CacheFile final {
 public:
  // --- A sequence of a PagedCache. ---

  // Writes the committed rows of a sequence to `path`: beside it first, then in its place, so that
  // it is at every moment the old file or the new one, whole. Two that write one file take turns.
  // Errors: as above, also kNotFound for `seq`; the old file is as it was. (Where syncing the
  // directory fails at the end, the new one is there.)
  static Status save(const PagedCache& cache, SequenceId seq, const std::string& path,
                     const PrefixNamespace& space = {});

  // A new sequence of what `path` has: open(), then load().
  static Result<SequenceId> load(PagedCache& cache, const std::string& path,
                                 const PrefixNamespace& space = {},
                                 const ExecContext& context = {});

  // A sequence whose layers lie in several caches: those of the first part, then those of the
  // next. `tokens`: ids of its leading tokens; none: as the first cache knows them. Errors: also
  // kInvalidArgument for no part, and for parts of other lengths, or of which other rows are coded.
  struct Part {
    const PagedCache* cache = nullptr;
    SequenceId seq{};
  };
  static Status save(std::span<const Part> parts, const std::string& path,
                     const PrefixNamespace& space = {}, std::span<const std::int32_t> tokens = {});

  // The same bytes in memory. `over`: they must outlive the object.
  static Result<std::vector<std::byte>> to_bytes(const PagedCache& cache, SequenceId seq,
                                                 const PrefixNamespace& space = {});
  static Result<CacheFile> over(std::span<const std::byte> bytes);

  // --- A layered cache. ---

  // Writes the rows of all layers, as above. / What `path` has takes the place of all rows of the
  // cache, whose options stay; until all have come the memory of both is held. Errors: as above,
  // and kInvalidArgument or kOutOfRange for layers, dtypes or lengths that the cache cannot have.
  static Status save(const Cache& cache, const std::string& path,
                     const PrefixNamespace& space = {});
  static Status load(Cache& cache, const std::string& path, const PrefixNamespace& space = {});
  static Result<std::vector<std::byte>> to_bytes(const Cache& cache,
                                                 const PrefixNamespace& space = {});

  // --- What a file has. ---

  // Reads and checks the header, of a PrefixCache's file too; the file stays open.
  static Result<CacheFile> open(const std::string& path);
  CacheFile(CacheFile&&) noexcept;
  CacheFile& operator=(CacheFile&&) noexcept;
  ~CacheFile();

  const CacheFileInfo& info() const noexcept;

  // Reads all blocks and compares their sums. Errors: kCorrupt naming the first that is another.
  Status verify(const ExecContext& context = {}) const;

  // Into a cache whose layers are those of the file, of any page size and layout. Where it has a
  // PrefixCache, pages whose ids are known can be found under `space`. Layers that drop rows drop
  // what they would have dropped. Errors: kInvalidArgument naming the layer or the namespace that
  // is another, or residual_tokens where the newest rows of coded layers are plain and the cache
  // has no place for these; kUnsupported for what is no sequence; kRetryLater, kNeverFits and
  // kOutOfMemory as PagedCache::reserve.
  Result<SequenceId> load(PagedCache& cache, const PrefixNamespace& space = {},
                          const ExecContext& context = {}) const;

  // The same under the id that the sequence had elsewhere. Errors: also kInvalidArgument for one
  // that is open here, or that no sequence has.
  Result<SequenceId> load_as(SequenceId id, PagedCache& cache, const PrefixNamespace& space = {},
                             const ExecContext& context = {}) const;

  // Into several caches, as save() took it out of them: all, or none. Returns a sequence of each.
  Result<std::vector<SequenceId>> load(std::span<PagedCache* const> caches,
                                       const PrefixNamespace& space = {},
                                       const ExecContext& context = {}) const;

  // See the call above that opens a file by itself.
  Status load(Cache& cache, const PrefixNamespace& space = {}) const;

 private:
  struct Impl;
  explicit CacheFile(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_CACHE_FILE_H_
