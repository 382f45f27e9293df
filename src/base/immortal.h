// An object of the process that is never destroyed: threads and late destructors may use it while
// the process ends.
#ifndef KVCACHE_SRC_BASE_IMMORTAL_H_
#define KVCACHE_SRC_BASE_IMMORTAL_H_

#include <cstddef>
#include <new>

namespace kvcache::internal {

// For a function's static.
template <typename T>
class Immortal {
 public:
  template <typename... Args>
  explicit Immortal(Args... args) noexcept : object_(new (storage_) T(args...)) {}
  T& operator*() noexcept { return *object_; }

 private:
  alignas(T) std::byte storage_[sizeof(T)];
  T* object_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_IMMORTAL_H_
