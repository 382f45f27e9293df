// Admission: who may join the requests that go forward together.
#ifndef KVCACHE_RUNNER_ENGINE_ADMISSION_H_
#define KVCACHE_RUNNER_ENGINE_ADMISSION_H_

#include <cstdint>

namespace kvcache::runner {

// A request joins when there is room, in pages, for the longest text that it and those already
// there may come to: so none has to wait for another's pages half way, or to be thrown out.
class Admission {
 public:
  // REQUIRES: all at least 1.
  Admission(std::int64_t page_size, std::int64_t num_pages, std::int64_t max_active)
      : page_size_(page_size), num_pages_(num_pages), max_active_(max_active) {}

  // `tokens`: the most that a request will hold, at least 1.
  bool admits(std::int64_t tokens) const noexcept {
    return active_ < max_active_ && pages_of(tokens) <= num_pages_ - pages_;
  }
  void join(std::int64_t tokens) noexcept {
    ++active_;
    pages_ += pages_of(tokens);
  }
  void leave(std::int64_t tokens) noexcept {
    --active_;
    pages_ -= pages_of(tokens);
  }

  std::int64_t pages_of(std::int64_t tokens) const noexcept {
    return (tokens - 1) / page_size_ + 1;
  }
  std::int64_t active() const noexcept { return active_; }
  std::int64_t pages() const noexcept { return pages_; }  // spoken for
  std::int64_t num_pages() const noexcept { return num_pages_; }

 private:
  std::int64_t page_size_;
  std::int64_t num_pages_;
  std::int64_t max_active_;
  std::int64_t active_ = 0;
  std::int64_t pages_ = 0;
};

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_ENGINE_ADMISSION_H_
