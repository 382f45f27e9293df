// What is behind a CacheFile, for those who bring files of their own.
#ifndef KVCACHE_SRC_API_CACHE_FILE_IMPL_H_
#define KVCACHE_SRC_API_CACHE_FILE_IMPL_H_

#include <memory>
#include <string>

#include "base/file.h"
#include "formats/header.h"
#include "kvcache/cache_file.h"

namespace kvcache {
inline namespace v1 {

struct CacheFile::Impl {
  std::unique_ptr<internal::File> file;
  internal::FileHeader header;
  CacheFileInfo info;

  static Result<CacheFile> open(std::unique_ptr<internal::File> file);
  static Status save(internal::FileSystem& files, const PagedCache& cache, SequenceId seq,
                     const std::string& path, const PrefixNamespace& space);
  Result<SequenceId> load(PagedCache& cache, const PrefixNamespace& space,
                          const ExecContext& context) const;
  Status check(const PagedCache& cache, const PrefixNamespace& space) const;

  // Calls fn(block, its bytes), each block once, in tasks of the executor, as long as none fails.
  template <typename Fn>
  Status for_each_block(const ExecContext& context, Fn&& fn) const;
};

}  // namespace v1
}  // namespace kvcache

#endif  // KVCACHE_SRC_API_CACHE_FILE_IMPL_H_
