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

// What is said of an exception that nobody foresaw: its own words, where there is memory for them.
inline Status unforeseen(const char* what) noexcept {
  try {
    return Status(StatusCode::kInternal, std::string("exception: ") + what);
  } catch (...) {
    return Status(StatusCode::kInternal, "exception");
  }
}

// at_door([&]() -> Status { ... }), or -> Result<T>: what the lambda returns; kOutOfMemory if it
// ran out of memory (bad_alloc, or length_error from a container asked for more than it can ever
// hold); kInternal with its words for any other exception, be it no std::exception at all.
// REQUIRES: the lambda allocates everything before it changes anything.
template <typename Fn>
auto at_door(Fn&& fn) noexcept -> decltype(std::forward<Fn>(fn)()) {
  try {
    return std::forward<Fn>(fn)();
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  } catch (const std::length_error&) {
    return out_of_memory();
  } catch (const std::exception& error) {
    return unforeseen(error.what());
  } catch (...) {
    return unforeseen("of no known type");
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
