// CacheFile: sequences that outlive their process. docs/formats.md says what is in a file.
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
  };
  Kind kind = Kind::kSequence;
  std::int64_t version = 0;
  PrefixNamespace space;
  std::int64_t length = 0;           // tokens
  std::vector<std::int32_t> tokens;  // ids of leading ones, as far as they are known
  std::vector<LayerSpec> layers;
  // [num_layers] the oldest row that is there beside the sinks.
  std::vector<std::int64_t> first_positions;
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

  // The same bytes in memory. `over`: they must outlive the object.
  static Result<std::vector<std::byte>> to_bytes(const PagedCache& cache, SequenceId seq,
                                                 const PrefixNamespace& space = {});
  static Result<CacheFile> over(std::span<const std::byte> bytes);

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
  // has no place for these; kUnsupported for texts of a prefix cache; kRetryLater, kNeverFits and
  // kOutOfMemory as PagedCache::reserve.
  Result<SequenceId> load(PagedCache& cache, const PrefixNamespace& space = {},
                          const ExecContext& context = {}) const;

 private:
  struct Impl;
  explicit CacheFile(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_CACHE_FILE_H_
