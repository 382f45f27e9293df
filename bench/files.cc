#include "bench/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <random>
#include <utility>

namespace kvcache::bench {
namespace {

Status failed(const std::string& what) { return Status(StatusCode::kIo, what + ": failed"); }

// Memory of the system as any program gets it.
class Buffer {
 public:
  explicit Buffer(std::size_t size) : size_(size) {
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    data_ = data == MAP_FAILED ? nullptr : data;
  }
  ~Buffer() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() const { return static_cast<char*>(data_); }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  void* data_;
};

// Seconds of a read of the whole file.
Result<double> read_all(const std::string& path, const Buffer& buffer) {
  const double start = seconds_now();
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  std::size_t done = 0;
  while (file >= 0 && done < buffer.size()) {
    const ssize_t got = ::read(file, buffer.data() + done, buffer.size() - done);
    if (got <= 0) break;
    done += static_cast<std::size_t>(got);
  }
  if (file >= 0) ::close(file);
  if (done < buffer.size()) return failed(path);
  return seconds_now() - start;
}

Result<double> write_all(const std::string& path, const Buffer& buffer) {
  const double start = seconds_now();
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  std::size_t done = 0;
  while (file >= 0 && done < buffer.size()) {
    const ssize_t put = ::write(file, buffer.data() + done, buffer.size() - done);
    if (put <= 0) break;
    done += static_cast<std::size_t>(put);
  }
  const bool synced = file >= 0 && ::fsync(file) == 0;
  if (file >= 0) ::close(file);
  if (!synced || done < buffer.size()) return failed(path);
  return seconds_now() - start;
}

CacheConfig config_of(const FilesBenchOptions& options) {
  CacheConfig config;
  config.layers.assign(static_cast<std::size_t>(options.layers),
                       LayerSpec::kv(options.heads, options.head_dim, options.head_dim,
                                     options.format, options.format));
  config.page_size = options.page_size;
  config.num_pages = (options.tokens - 1) / options.page_size + 1;
  return config;
}

Result<SequenceId> fill(PagedCache& cache, const FilesBenchOptions& options) {
  KVC_ASSIGN_OR_RETURN(const SequenceId seq, cache.open());
  std::vector<std::int32_t> ids(static_cast<std::size_t>(options.tokens));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
  const Append append{seq, options.tokens, ids};
  KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache.reserve({&append, 1}));
  std::vector<float> rows(
      static_cast<std::size_t>(options.tokens * options.heads * options.head_dim));
  std::mt19937 random(1);
  for (float& x : rows) x = static_cast<float>(random() % 1000) / 500.0f - 1.0f;
  const TensorView view(rows.data(), DType::kF32,
                        {options.tokens, options.heads, options.head_dim});
  for (std::int64_t layer = 0; layer < options.layers; ++layer) {
    KVC_RETURN_IF_ERROR(cache.write(step, layer, view, view));
  }
  KVC_RETURN_IF_ERROR(cache.commit(step));
  return seq;
}

Case make_case(const std::string& name, std::int64_t bytes, const std::vector<double>& times,
               const std::vector<double>& plain, double error) {
  Case result;
  const double size = static_cast<double>(bytes) / 1e9;
  result.name = name;
  result.achieved = size / median(times);
  result.roof = size / median(plain);
  result.ratio = result.achieved / result.roof;
  result.unit = "GB/s";
  result.error = error;
  result.details = {{"seconds", median(times)},
                    {"plain_seconds", median(plain)},
                    {"bytes", static_cast<double>(bytes)}};
  return result;
}

struct TempFolder {
  std::string path;
  ~TempFolder() {
    std::error_code ignored;
    if (!path.empty()) std::filesystem::remove_all(path, ignored);
  }
};

}  // namespace

Result<std::vector<Case>> run_files(const FilesBenchOptions& options,
                                    const std::function<void(int done, int total)>& on_progress) {
  const std::filesystem::path parent = options.directory.empty()
                                           ? std::filesystem::temp_directory_path()
                                           : std::filesystem::path(options.directory);
  std::string pattern = (parent / "kvcache-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) return failed(pattern);
  const TempFolder folder{pattern};
  const std::string path = folder.path + "/cache.kvc";

  const CacheConfig config = config_of(options);
  KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(config));
  KVC_ASSIGN_OR_RETURN(const SequenceId seq, fill(cache, options));
  KVC_RETURN_IF_ERROR(CacheFile::save(cache, seq, path));
  const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(path));
  KVC_ASSIGN_OR_RETURN(PagedCache used, PagedCache::create(config));
  const Buffer warm(static_cast<std::size_t>(bytes));
  std::vector<double> read_fresh, load_fresh, read_warm, load_warm, write, save;
  double error = 0;
  for (int i = -1; i < options.repeats; ++i) {  // the first does not count
    const Buffer fresh(static_cast<std::size_t>(bytes));
    KVC_ASSIGN_OR_RETURN(const double a, read_all(path, fresh));
    KVC_ASSIGN_OR_RETURN(PagedCache empty, PagedCache::create(config));
    double start = seconds_now();
    KVC_ASSIGN_OR_RETURN(const SequenceId first, CacheFile::load(empty, path));
    const double b = seconds_now() - start;
    KVC_ASSIGN_OR_RETURN(const double c, read_all(path, warm));
    start = seconds_now();
    KVC_ASSIGN_OR_RETURN(const SequenceId second, CacheFile::load(used, path));
    const double d = seconds_now() - start;
    if (i < 0) {
      KVC_ASSIGN_OR_RETURN(const auto saved, CacheFile::to_bytes(cache, seq));
      KVC_ASSIGN_OR_RETURN(const auto one, CacheFile::to_bytes(empty, first));
      KVC_ASSIGN_OR_RETURN(const auto two, CacheFile::to_bytes(used, second));
      error = saved == one && saved == two ? 0 : 1;
    }
    KVC_RETURN_IF_ERROR(used.release(second));
    KVC_ASSIGN_OR_RETURN(const double e, write_all(folder.path + "/plain", warm));
    start = seconds_now();
    KVC_RETURN_IF_ERROR(CacheFile::save(cache, seq, path));
    const double f = seconds_now() - start;
    if (on_progress) on_progress(i + 2, options.repeats + 1);
    if (i < 0) continue;
    read_fresh.push_back(a);
    load_fresh.push_back(b);
    read_warm.push_back(c);
    load_warm.push_back(d);
    write.push_back(e);
    save.push_back(f);
  }
  return std::vector<Case>{
      make_case("load into fresh pages", bytes, load_fresh, read_fresh, error),
      make_case("load into pages used before", bytes, load_warm, read_warm, error),
      make_case("save", bytes, save, write, error)};
}

}  // namespace kvcache::bench
