#include "runner/safetensors/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace kvcache::runner {
namespace {

Status system_error(const std::string& path, const char* what) {
  const int code = errno;
  return Status(code == ENOENT || code == ENOTDIR ? StatusCode::kNotFound : StatusCode::kIo,
                path + ": " + what + ": " + std::strerror(code));
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return system_error(path, "cannot be opened");
  struct Closer {
    int file;
    ~Closer() { ::close(file); }
  } closer{file};
  struct stat info = {};
  if (::fstat(file, &info) != 0) return system_error(path, "cannot be examined");
  if (!S_ISREG(info.st_mode)) {
    return Status(StatusCode::kIo, path + ": found something else, expected a regular file");
  }
  if (info.st_size == 0) return MappedFile(nullptr, 0);  // mmap refuses length 0
  const auto size = static_cast<std::size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  if (data == MAP_FAILED) return system_error(path, "cannot be mapped");
  return MappedFile(static_cast<const std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace kvcache::runner
