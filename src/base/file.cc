#include "base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/expect.h"
#include "base/immortal.h"

namespace kvcache::internal {
namespace {

// "PATH: write: No space left on device", of errno.
Status system_error(const std::string& path, const char* what) {
  const int code = errno;
  const bool missing = code == ENOENT || code == ENOTDIR;
  return Status(missing ? StatusCode::kNotFound : StatusCode::kIo,
                path + ": " + what + ": " + std::strerror(code));
}

Status ends_before(const std::string& path, std::int64_t end) {
  return refusal(StatusCode::kCorrupt, path, "an end before byte " + std::to_string(end),
                 "more bytes");
}

class SystemFile final : public File {
 public:
  SystemFile(std::string path, int descriptor) noexcept
      : path_(std::move(path)), descriptor_(descriptor) {}
  ~SystemFile() override { ::close(descriptor_); }

  int descriptor() const noexcept { return descriptor_; }

  Result<std::int64_t> size() const override {
    struct stat info = {};
    if (::fstat(descriptor_, &info) != 0) return system_error(path_, "stat");
    if (!S_ISREG(info.st_mode)) {
      return refusal(StatusCode::kIo, path_, "something else", "a regular file");
    }
    return static_cast<std::int64_t>(info.st_size);
  }

  Status read_at(std::int64_t offset, std::span<std::byte> out) const override {
    while (!out.empty()) {
      const ssize_t got = ::pread(descriptor_, out.data(), out.size(), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return system_error(path_, "read");
      if (got == 0) return ends_before(path_, offset + static_cast<std::int64_t>(out.size()));
      out = out.subspan(static_cast<std::size_t>(got));
      offset += got;
    }
    return {};
  }

  Status write_at(std::int64_t offset, std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t put = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return system_error(path_, "write");
      if (put == 0) return refusal(StatusCode::kIo, path_, "nothing written", "bytes");
      bytes = bytes.subspan(static_cast<std::size_t>(put));
      offset += put;
    }
    return {};
  }

  Status sync() override {
    if (::fsync(descriptor_) != 0) return system_error(path_, "fsync");
    return {};
  }

 private:
  std::string path_;
  int descriptor_;
};

Result<std::unique_ptr<SystemFile>> open_file(const std::string& path, int flags) {
  int descriptor = -1;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) return system_error(path, "open");
  // Its own from here on, whatever is thrown.
  struct Closed {
    int descriptor;
    ~Closed() {
      if (descriptor >= 0) ::close(descriptor);
    }
  } closed{descriptor};
  auto file = std::make_unique<SystemFile>(path, descriptor);
  closed.descriptor = -1;
  return file;
}

// The system's error about a file that was made and that nobody writes.
Status without(const std::string& path, const char* what) {
  const Status status = system_error(path, what);
  ::unlink(path.c_str());
  return status;
}

class SystemFiles final : public FileSystem {
 public:
  Result<std::unique_ptr<File>> open(const std::string& path) override {
    // Without O_NONBLOCK one waits for who writes to a pipe; of files it changes nothing.
    KVC_ASSIGN_OR_RETURN(auto file, open_file(path, O_RDONLY | O_NONBLOCK));
    KVC_RETURN_IF_ERROR(file->size().status());  // of regular files alone
    return std::unique_ptr<File>(std::move(file));
  }

  // The lock is on the file, the name may go to another while one waits for it: a writer before us
  // has then renamed it.
  Result<std::unique_ptr<File>> create(const std::string& path) override {
    for (;;) {
      KVC_ASSIGN_OR_RETURN(auto file, open_file(path, O_RDWR | O_CREAT | O_NOFOLLOW));
      while (::flock(file->descriptor(), LOCK_EX) != 0) {
        if (errno == EINTR) continue;
        // A file system without locks: two writers of one file are then not kept apart.
        if (errno == ENOSYS || errno == ENOLCK || errno == EOPNOTSUPP) break;
        return without(path, "lock");
      }
      struct stat ours = {}, named = {};
      if (::fstat(file->descriptor(), &ours) != 0) return without(path, "stat");
      if (::stat(path.c_str(), &named) != 0 || named.st_ino != ours.st_ino ||
          named.st_dev != ours.st_dev) {
        continue;
      }
      if (::ftruncate(file->descriptor(), 0) != 0) return without(path, "truncate");
      return std::unique_ptr<File>(std::move(file));
    }
  }

  // The file that is replaced keeps its mode.
  Status rename(const std::string& from, const std::string& to) override {
    struct stat old = {};
    if (::stat(to.c_str(), &old) == 0 && S_ISREG(old.st_mode) &&
        ::chmod(from.c_str(), old.st_mode & 07777) != 0) {
      return system_error(from, "chmod");
    }
    if (std::rename(from.c_str(), to.c_str()) != 0) return system_error(to, "rename");
    return {};
  }

  Status remove(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) return system_error(path, "remove");
    return {};
  }

  Status sync_directory(const std::string& path) override {
    std::string directory = std::filesystem::path(path).parent_path().string();
    if (directory.empty()) directory = ".";
    KVC_ASSIGN_OR_RETURN(const auto file, open_file(directory, O_RDONLY | O_DIRECTORY));
    return file->sync();
  }
};

}  // namespace

File::~File() = default;
FileSystem::~FileSystem() = default;

FileSystem& system_files() noexcept {
  static Immortal<SystemFiles> files;
  return *files;
}

namespace {
std::atomic<FileSystem*> in_place{nullptr};
}

FileSystem& files() noexcept {
  FileSystem* const others = in_place.load();
  return others != nullptr ? *others : system_files();
}

FilesInPlace::FilesInPlace(FileSystem& others) noexcept { in_place = &others; }
FilesInPlace::~FilesInPlace() { in_place = nullptr; }

Status BytesFile::read_at(std::int64_t offset, std::span<std::byte> out) const {
  const auto at = static_cast<std::size_t>(offset);
  if (at > bytes_.size() || out.size() > bytes_.size() - at) {
    return ends_before("bytes", offset + static_cast<std::int64_t>(out.size()));
  }
  std::copy_n(bytes_.begin() + offset, out.size(), out.begin());
  return {};
}

Status BytesFile::write_at(std::int64_t, std::span<const std::byte>) {
  return refusal(StatusCode::kUnsupported, "bytes", "a write", "none: they are the caller's");
}

Status MemoryFile::write_at(std::int64_t offset, std::span<const std::byte> bytes) {
  const auto at = static_cast<std::size_t>(offset);
  if (bytes_.size() < at + bytes.size()) bytes_.resize(at + bytes.size());
  std::copy(bytes.begin(), bytes.end(), bytes_.begin() + offset);
  return {};
}

}  // namespace kvcache::internal
