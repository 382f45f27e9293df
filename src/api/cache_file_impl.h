// What is behind a CacheFile, for the files that share it.
#ifndef KVCACHE_SRC_API_CACHE_FILE_IMPL_H_
#define KVCACHE_SRC_API_CACHE_FILE_IMPL_H_

#include <memory>
#include <span>
#include <vector>

#include "base/file.h"
#include "formats/header.h"
#include "kvcache/cache_file.h"

namespace kvcache {
inline namespace v1 {

struct CacheFile::Impl {
  std::unique_ptr<internal::File> file;
  internal::FileHeader header;  // of texts, its blocks alone
  CacheFileInfo info;

  // Hidden one by one: a class within an exported class is exported too.
  [[gnu::visibility("hidden")]] static Result<CacheFile> open(std::unique_ptr<internal::File> file);
  [[gnu::visibility("hidden")]] Status read_sequence(const internal::HeaderBytes& start);
  [[gnu::visibility("hidden")]] Status read_texts(const internal::HeaderBytes& start);
  const internal::BlockTable& blocks() const noexcept { return header.blocks; }

  // Errors: kInvalidArgument, kUnsupported for what is of another kind.
  [[gnu::visibility("hidden")]] Status check_start(internal::FileKind kind,
                                                   const PrefixNamespace& space) const;
  // `id`: of the sequence, in one cache; 0: a new one.
  [[gnu::visibility("hidden")]] Result<std::vector<SequenceId>> load(
      std::span<PagedCache* const> caches, SequenceId id, const PrefixNamespace& space,
      const ExecContext& context) const;
  [[gnu::visibility("hidden")]] Result<SequenceId> load_one(PagedCache& cache, SequenceId id,
                                                            const PrefixNamespace& space,
                                                            const ExecContext& context) const;
  [[gnu::visibility("hidden")]] Status load(Cache& cache, const PrefixNamespace& space) const;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_SRC_API_CACHE_FILE_IMPL_H_
