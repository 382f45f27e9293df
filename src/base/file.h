// Files, behind an interface that tests can make fail.
#ifndef KVCACHE_SRC_BASE_FILE_H_
#define KVCACHE_SRC_BASE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvcache/status.h"

namespace kvcache::internal {

// An open file. Errors: kIo, naming the file and what the system says. Thread safety: reads may run
// together.
class File {
 public:
  virtual ~File();

  virtual Result<std::int64_t> size() const = 0;
  // All of `out`, from `offset` on. Errors: kCorrupt where the file ends before.
  virtual Status read_at(std::int64_t offset, std::span<std::byte> out) const = 0;
  virtual Status write_at(std::int64_t offset, std::span<const std::byte> bytes) = 0;
  virtual Status sync() = 0;  // returns once the storage has what was written
};

class FileSystem {
 public:
  virtual ~FileSystem();

  // To read. Errors: kNotFound, kIo.
  virtual Result<std::unique_ptr<File>> open(const std::string& path) = 0;
  // To write, empty, and nobody else's as long as it is open: who creates it too waits.
  virtual Result<std::unique_ptr<File>> create(const std::string& path) = 0;
  virtual Status rename(const std::string& from, const std::string& to) = 0;
  virtual Status remove(const std::string& path) = 0;
  // The directory that `path` is in: renames are on storage once it returns.
  virtual Status sync_directory(const std::string& path) = 0;
};

// The system's. Lives as long as the process.
FileSystem& system_files() noexcept;

// Those that the library uses: the system's, unless a test has put others in their place.
FileSystem& files() noexcept;
class FilesInPlace {
 public:
  explicit FilesInPlace(FileSystem& others) noexcept;
  ~FilesInPlace();
  FilesInPlace(const FilesInPlace&) = delete;
  FilesInPlace& operator=(const FilesInPlace&) = delete;
};

// Bytes of the caller's as a file that can be read; they must outlive it.
class BytesFile final : public File {
 public:
  explicit BytesFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  Result<std::int64_t> size() const override { return static_cast<std::int64_t>(bytes_.size()); }
  Status read_at(std::int64_t offset, std::span<std::byte> out) const override;
  Status write_at(std::int64_t offset, std::span<const std::byte> bytes) override;
  Status sync() override { return {}; }

 private:
  std::span<const std::byte> bytes_;
};

// A file in memory, to write. May throw bad_alloc.
class MemoryFile final : public File {
 public:
  std::vector<std::byte>& bytes() noexcept { return bytes_; }
  Result<std::int64_t> size() const override { return static_cast<std::int64_t>(bytes_.size()); }
  Status read_at(std::int64_t offset, std::span<std::byte> out) const override {
    return BytesFile(bytes_).read_at(offset, out);
  }
  Status write_at(std::int64_t offset, std::span<const std::byte> bytes) override;
  Status sync() override { return {}; }

 private:
  std::vector<std::byte> bytes_;
};

// What `write` puts into an empty file becomes the file `path`, whole: beside it first, and in its
// place once all of it is on storage. Errors: those of `write` and of the files; then the file that
// was there is as it was. Where all has gone well but syncing the directory, the new one is there
// already, whole, and the old one may come back if the system stops before it has been.
template <typename Write>
Status replace_file(FileSystem& files, const std::string& path, Write&& write) {
  const std::string beside = path + ".tmp";
  {
    KVC_ASSIGN_OR_RETURN(const std::unique_ptr<File> file, files.create(beside));
    struct Unfinished {
      FileSystem& files;
      const std::string& name;
      bool there = true;
      ~Unfinished() {
        if (there) (void)files.remove(name);
      }
    } unfinished{files, beside};
    KVC_RETURN_IF_ERROR(write(*file));
    KVC_RETURN_IF_ERROR(file->sync());
    KVC_RETURN_IF_ERROR(files.rename(beside, path));
    unfinished.there = false;
  }
  return files.sync_directory(path);
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_FILE_H_
