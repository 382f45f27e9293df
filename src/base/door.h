// The public door: inside, standard containers may throw; outside, errors are values.
#ifndef KVCACHE_SRC_BASE_DOOR_H_
#define KVCACHE_SRC_BASE_DOOR_H_

#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "kvcache/status.h"

namespace kvcache::internal {

// The message fits the small-string buffer, so that reporting a lack of memory needs none.
inline Status out_of_memory() noexcept { return Status(StatusCode::kOutOfMemory, "out of memory"); }

// at_door([&]() -> Status { ... }), or -> Result<T>: what the lambda returns, or kOutOfMemory if it
// ran out of memory (bad_alloc, or length_error from a container asked for more than it can ever
// hold). REQUIRES: the lambda allocates everything before it changes anything.
template <typename Fn>
auto at_door(Fn&& fn) noexcept -> decltype(std::forward<Fn>(fn)()) {
  try {
    return std::forward<Fn>(fn)();
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  } catch (const std::length_error&) {
    return out_of_memory();
  } catch (const std::exception&) {
    return Status(StatusCode::kInternal, "exception");
  }
}

// A Status whose message is built by `message()`; only the code's short form if there is no memory
// left for it. For noexcept functions that report numbers.
template <typename Fn>
Status make_status(StatusCode code, Fn&& message) noexcept {
  return at_door([&]() -> Status { return Status(code, std::string(message())); });
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_DOOR_H_
