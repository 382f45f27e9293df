// Threads of Python: one call at a time on an object, and the GIL let go of while one is long.
#ifndef KVCACHE_PYTHON_BINDINGS_TURN_H_
#define KVCACHE_PYTHON_BINDINGS_TURN_H_

#include <nanobind/nanobind.h>

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>

namespace kvcache::python {

// Lets the GIL go for its lifetime. A daemon thread that comes back when the interpreter has ended
// stays here for ever, as Python has it from 3.14 on: older ones end the thread by unwinding it,
// out of destructors that must not throw.
class Released {
 public:
  Released() noexcept : state_(PyEval_SaveThread()) {}
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;
  ~Released() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* state_;
};

// Holds `mutex`; whoever waits for it lets other Python threads run. Recursive, because making a
// Python object may run the garbage collector, which may drop a step of the same cache.
class Turn {
 public:
  explicit Turn(std::recursive_mutex& mutex) : mutex_(mutex) {
    if (mutex_.try_lock()) return;
    const Released others;
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

// a * b, both at least 0, or 2^62 where it is more: an estimate of work, two of which may be added.
inline std::int64_t times(std::int64_t a, std::int64_t b) noexcept {
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  return b != 0 && a > kMost / b ? kMost : a * b;
}

// Lets the GIL go for its lifetime if the work is long.
class Unlocked {
 public:
  explicit Unlocked(std::int64_t elements) {
    if (elements >= kLongCall) released_.emplace();
  }

 private:
  std::optional<Released> released_;
};

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_TURN_H_
