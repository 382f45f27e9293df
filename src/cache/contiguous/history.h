// The storage that the states of one history share.
//
// A buffer holds one layer at its full capacity and never moves. Every state of the history knows,
// for each layer, a buffer and how many of its rows are its own. The rows of a buffer are claimed
// in order: a state whose length is what has been claimed goes forward in place; any other would
// overwrite rows that views may show, so it continues in a buffer of its own. A buffer lives as
// long as the states that have it.
#ifndef KVCACHE_SRC_CACHE_CONTIGUOUS_HISTORY_H_
#define KVCACHE_SRC_CACHE_CONTIGUOUS_HISTORY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cache/contiguous/geometry.h"
#include "cache/contiguous/layer.h"
#include "kvcache/executor.h"
#include "kvcache/memory.h"
#include "kvcache/status.h"
#include "kvcache/tensor_view.h"

namespace kvcache::internal {

class History {
 public:
  struct Options {
    LayerShape shape;  // of every layer
    std::int64_t num_layers = 0;
    std::int64_t max_seq_len = 0;
    MemoryResource* memory = nullptr;
  };

  // REQUIRES: the history outlives it.
  struct Buffer {
    explicit Buffer(History& of) noexcept : history(of) {}
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { history.reserved_.fetch_sub(rows.committed_bytes(), std::memory_order_relaxed); }

    History& history;
    ContiguousLayer rows;
    KeyValueView all;          // max_seq_len rows
    std::int64_t claimed = 0;  // rows that some state of the history has or had
  };

  // A layer of a state. Without a buffer it is empty; with one it may be.
  struct Layer {
    std::shared_ptr<Buffer> buffer;
    std::int64_t length = 0;
  };

  explicit History(const Options& options) noexcept : options_(options) {}

  const Options& options() const noexcept { return options_; }
  std::int64_t reserved_bytes() const noexcept { return reserved_.load(std::memory_order_relaxed); }
  std::int64_t copied_bytes() const noexcept { return copied_.load(std::memory_order_relaxed); }

  // The rows of a layer, [B, H, length, D].
  KeyValueView rows(const Layer& layer) const noexcept;

  // Counts the states alive. What was read through a state happens before a take_over() that finds
  // it gone.
  void enter() noexcept { live_.fetch_add(1, std::memory_order_relaxed); }
  void leave() noexcept { live_.fetch_sub(1, std::memory_order_release); }

  // --- Changes, serialised by the caller. ---

  // Begins another history in the buffers of `layers`, which are empty; false if a state is alive.
  bool take_over(const std::vector<Layer>& layers) noexcept;

  // What append() did, for take_back().
  struct Appended {
    Layer layer;              // as it is now
    std::int64_t before = 0;  // rows that were claimed of the buffer
    std::int64_t copied = 0;  // bytes
    bool branched = false;    // into a buffer that was made for it
  };

  // Appends k and v behind the rows of `from`. Errors: kOutOfMemory, unchanged. May throw
  // bad_alloc, unchanged. REQUIRES: shapes that fit, T >= 1, room within max_seq_len.
  Result<Appended> append(const Layer& from, const TensorView& k, const TensorView& v,
                          const ExecContext& context);

  // REQUIRES: nothing was appended since.
  void take_back(const Appended& appended) noexcept;

 private:
  Result<std::shared_ptr<Buffer>> make_buffer();

  Options options_;
  std::atomic<std::int64_t> live_{0};
  std::atomic<std::int64_t> reserved_{0};
  std::atomic<std::int64_t> copied_{0};
};

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_CACHE_CONTIGUOUS_HISTORY_H_
