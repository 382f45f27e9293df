// Threads of Python: one call at a time on an object, and the GIL let go of while one is long.
#ifndef KVCACHE_PYTHON_BINDINGS_TURN_H_
#define KVCACHE_PYTHON_BINDINGS_TURN_H_

#include <nanobind/nanobind.h>

#include <cstdint>
#include <mutex>
#include <optional>

namespace kvcache::python {

// Holds `mutex`; whoever waits for it lets other Python threads run. Recursive, because making a
// Python object may run the garbage collector, which may drop a step of the same cache.
class Turn {
 public:
  explicit Turn(std::recursive_mutex& mutex) : mutex_(mutex) {
    if (mutex_.try_lock()) return;
    const nanobind::gil_scoped_release others;
    mutex_.lock();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() { mutex_.unlock(); }

 private:
  std::recursive_mutex& mutex_;
};

// Elements above which a call is long: some 10 microseconds of work. Letting the GIL go costs a
// tenth of one when nobody wants it, and up to 5 milliseconds when somebody does.
inline constexpr std::int64_t kLongCall = 1 << 16;

// Lets the GIL go for its lifetime if the work is long.
class Unlocked {
 public:
  explicit Unlocked(std::int64_t elements) {
    if (elements >= kLongCall) released_.emplace();
  }

 private:
  std::optional<nanobind::gil_scoped_release> released_;
};

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_TURN_H_
