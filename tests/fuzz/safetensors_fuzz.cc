// Any bytes as a .safetensors file: refused, or every tensor in it can be read to its last byte.
#include <sys/mman.h>
#include <unistd.h>

#include "kvcache/types.h"
#include "runner/safetensors/safetensors_file.h"
#include "support/fuzz.h"

using kvcache::fuzz::expect;

namespace {

unsigned sum_of(const kvcache::TensorView& tensor) {
  const auto* bytes = static_cast<const unsigned char*>(tensor.data);
  const std::int64_t count = tensor.num_elements() * size_of(tensor.dtype);
  unsigned sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += bytes[i];
  return sum;
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // A file without a place, written again for every input.
  static const int file = ::memfd_create("input", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  expect(::ftruncate(file, 0) == 0 && ::pwrite(file, data, size, 0) == static_cast<ssize_t>(size),
         "a file of the input");
  const auto opened = kvcache::runner::SafetensorsFile::open(path);
  if (!opened.ok()) {
    expect(opened.status().message().rfind(path, 0) == 0, "an error that names the file");
    return 0;
  }
  volatile unsigned sum = 0;
  for (const auto& [name, entry] : opened->tensors()) {
    const auto tensor = opened->find(name);
    if (tensor.ok()) {
      expect(tensor->num_elements() == entry.num_elements, "as many elements as listed");
      sum = sum + sum_of(*tensor);
    }
  }
  return 0;
}
