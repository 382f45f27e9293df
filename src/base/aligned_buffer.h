// Scratch memory for kernels: aligned to a cache line, never thrown about.
#ifndef KVCACHE_SRC_BASE_ALIGNED_BUFFER_H_
#define KVCACHE_SRC_BASE_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "base/checked_math.h"
#include "base/door.h"
#include "kvcache/status.h"

namespace kvcache::internal {

// Owns bytes aligned to kAlignment. Grows on demand, keeps what it has otherwise.
class AlignedBuffer {
 public:
  static constexpr std::int64_t kAlignment = 64;

  AlignedBuffer() noexcept = default;
  ~AlignedBuffer() { std::free(data_); }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  // At least `bytes` >= 0 of room; contents are unspecified after a growth.
  // Errors: kOutOfMemory, buffer unchanged.
  Status reserve(std::int64_t bytes) noexcept {
    if (bytes <= bytes_) return {};
    std::int64_t padded = 0;
    if (!checked_add(bytes, kAlignment - 1, &padded)) return out_of_memory();
    padded = round_down(padded, kAlignment);
    void* fresh = std::aligned_alloc(kAlignment, static_cast<std::size_t>(padded));
    if (fresh == nullptr) return out_of_memory();
    std::free(data_);
    data_ = fresh;
    bytes_ = padded;
    return {};
  }

  void* data() noexcept { return data_; }
  const void* data() const noexcept { return data_; }
  template <typename T>
  T* as() noexcept {
    return static_cast<T*>(data_);
  }
  std::int64_t bytes() const noexcept { return bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_ALIGNED_BUFFER_H_
