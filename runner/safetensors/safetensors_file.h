// One .safetensors file, read in place.
#ifndef KVCACHE_RUNNER_SAFETENSORS_SAFETENSORS_FILE_H_
#define KVCACHE_RUNNER_SAFETENSORS_SAFETENSORS_FILE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/status.h"
#include "kvcache/tensor_view.h"
#include "runner/safetensors/mapped_file.h"

namespace kvcache::runner {

// A tensor as the header describes it. Offsets count bytes from the start of the data.
struct TensorEntry {
  std::string dtype;  // as written: "F32", "BF16", "I8", ...
  std::vector<std::int64_t> shape;
  std::int64_t num_elements = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// Parses and checks a header (the JSON after the length) against the `data_bytes` that follow it:
// every tensor has the bytes its shape asks for, and together they cover the data from its first
// byte to its last, without a hole or an overlap (huggingface/safetensors, README "Format").
// Errors: kCorrupt, naming `name`, the tensor, found and expected.
struct SafetensorsHeader {
  std::map<std::string, TensorEntry, std::less<>> tensors;
  std::map<std::string, std::string> metadata;  // "__metadata__"
};
Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, std::int64_t data_bytes,
                                                   const std::string& name);

// Thread safety: const after open().
class SafetensorsFile {
 public:
  // Maps the file and checks its whole header. Tensors of dtypes the runner cannot use are listed.
  // Errors: kNotFound, kIo, kCorrupt, kOutOfMemory.
  static Result<SafetensorsFile> open(const std::string& path);

  // The tensor, dense and row-major, aligned to its element. Valid until the file is destroyed.
  // Errors: kNotFound; kUnsupported: a dtype other than F32, F16, BF16, or more than kMaxRank axes.
  Result<TensorView> find(std::string_view name) const;

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorEntry, std::less<>>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

 private:
  SafetensorsFile(std::string path, MappedFile file)
      : path_(std::move(path)), file_(std::move(file)) {}

  std::string path_;
  MappedFile file_;
  SafetensorsHeader header_;
  std::span<const std::byte> data_;
  // The format does not align tensors (most writers do). Those that are not are copied here once.
  std::map<std::string, std::unique_ptr<std::byte[]>, std::less<>> realigned_;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_SAFETENSORS_SAFETENSORS_FILE_H_
