// A file as read-only memory.
#ifndef KVCACHE_RUNNER_SAFETENSORS_MAPPED_FILE_H_
#define KVCACHE_RUNNER_SAFETENSORS_MAPPED_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kvcache/status.h"

namespace kvcache::runner {

// The bytes are the file's own pages: opening reads nothing. A file that another program shortens
// meanwhile ends the process with SIGBUS when the lost pages are read; no reader of mapped files
// can prevent that.
class MappedFile {
 public:
  // Errors: kNotFound, kIo.
  static Result<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  // Starts on a page boundary. Valid until the file is destroyed; moving it keeps them.
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, std::size_t size) : data_(data), size_(size) {}

  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_SAFETENSORS_MAPPED_FILE_H_
