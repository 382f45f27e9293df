// Caches in files: loading one against a plain read of the same file.
#ifndef KVCACHE_BENCH_FILES_H_
#define KVCACHE_BENCH_FILES_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bench/case.h"
#include "kvcache/kvcache.h"

namespace kvcache::bench {

struct FilesBenchOptions {
  std::int64_t layers = 24, heads = 2, head_dim = 64;  // a model of 0.5 G parameters
  std::int64_t tokens = 8192;
  std::int64_t page_size = 16;
  RowFormat format = plain(DType::kF16);
  std::string directory;  // of the file, which is removed again; empty: that of the system
  int repeats = 9;        // medians of so many
};

// GB/s of CacheFile::load from a file that is in the system's cache, into pages that were never
// used and into those of before, and of CacheFile::save. The roof of a load is a read of the whole
// file in turn with it, into memory likewise; that of a save a write of as many bytes with fsync.
// `error` is 1 where what was loaded is not what was saved. Errors: those of the calls.
Result<std::vector<Case>> run_files(const FilesBenchOptions& options,
                                    const std::function<void(int done, int total)>& on_progress);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_FILES_H_
