// Errors are values: Status, and Result<T> for calls that return something.
#ifndef KVCACHE_STATUS_H_
#define KVCACHE_STATUS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <variant>

#include "kvcache/version.h"

namespace kvcache {
inline namespace v1 {

// Numbers are part of the ABI: codes are added, never renumbered.
enum class StatusCode : std::int32_t {
  kOk = 0,
  kInvalidArgument = 1,  // a shape, type or value that no state of the object could accept
  kOutOfRange = 2,       // an index, position or length beyond what is there now
  kNotFound = 3,         // an id or name that does not exist (any more)
  kRetryLater = 4,       // no room now; there may be once others release theirs
  kNeverFits = 5,        // no room even if everything else were released
  kUnsupported = 6,      // this object or build cannot do it; see supports() and backend.h
  kOutOfMemory = 7,      // the MemoryResource or the system refused
  kCorrupt = 8,          // stored data contradicts itself
  kIo = 9,               // the operating system reported an error on a file
  kUnavailable = 10,     // a backend, device or tier is not reachable here
  kInternal = 11,        // a broken invariant of this library: please report it
};

// "invalid argument", "out of range", ...
KVC_API const char* name_of(StatusCode code) noexcept;

// A code, and for errors one line that names what was found and what was expected. Every failing
// call of this library leaves its object as if the call had not been made.
class [[nodiscard]] KVC_API Status {
 public:
  Status() noexcept = default;
  Status(StatusCode code, std::string message) noexcept
      : code_(code), message_(std::move(message)) {}

  bool ok() const noexcept { return code_ == StatusCode::kOk; }
  StatusCode code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }

  // "out of range: layer_idx: found 7, expected 0 .. 3"; "ok" for success.
  std::string to_string() const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// A T, or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit
  // REQUIRES: !status.ok()
  Result(Status status) noexcept  // NOLINT: implicit
      : state_(std::in_place_index<1>, std::move(status)) {}

  bool ok() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  // The Status; ok when there is a value.
  Status status() const { return ok() ? Status() : *std::get_if<1>(&state_); }

  // REQUIRES: ok()
  T& value() & noexcept { return *std::get_if<0>(&state_); }
  const T& value() const& noexcept { return *std::get_if<0>(&state_); }
  T&& value() && noexcept { return std::move(*std::get_if<0>(&state_)); }
  T& operator*() & noexcept { return value(); }
  const T& operator*() const& noexcept { return value(); }
  T&& operator*() && noexcept { return std::move(*this).value(); }
  T* operator->() noexcept { return &value(); }
  const T* operator->() const noexcept { return &value(); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace v1
}  // namespace kvcache

// Returns the error of `expr` (a Status) from the enclosing function.
#define KVC_RETURN_IF_ERROR(expr)              \
  do {                                         \
    ::kvcache::Status kvc_status_ = (expr);    \
    if (!kvc_status_.ok()) return kvc_status_; \
  } while (false)

#define KVC_CONCAT_INNER_(a, b) a##b
#define KVC_CONCAT_(a, b) KVC_CONCAT_INNER_(a, b)

// KVC_ASSIGN_OR_RETURN(auto x, f()): x = the value of the Result f(), or returns its error.
#define KVC_ASSIGN_OR_RETURN(lhs, expr) \
  KVC_ASSIGN_OR_RETURN_(KVC_CONCAT_(kvc_result_, __LINE__), lhs, expr)
#define KVC_ASSIGN_OR_RETURN_(result, lhs, expr) \
  auto result = (expr);                          \
  if (!result.ok()) return result.status();      \
  lhs = std::move(result).value()

#endif  // KVCACHE_STATUS_H_
