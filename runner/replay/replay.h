// What a trace finds in a PrefixCache of a given size: every request is matched, computed as far as
// it was not found, and released before the next one comes.
#ifndef KVCACHE_RUNNER_REPLAY_REPLAY_H_
#define KVCACHE_RUNNER_REPLAY_REPLAY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kvcache/eviction.h"
#include "kvcache/status.h"
#include "runner/replay/trace.h"

namespace kvcache::runner {

struct ReplayResult {
  std::int64_t requests = 0;
  std::int64_t tokens = 0, tokens_found = 0;
  std::int64_t blocks = 0, blocks_found = 0;  // whole pages of the prompts, and of what was found
  std::int64_t wrong_hits = 0;                // tokens found whose rows were another text's
  double seconds = 0;                         // in match, open, reserve, commit and release

  double token_hit_ratio() const noexcept { return ratio(tokens_found, tokens); }
  double block_hit_ratio() const noexcept { return ratio(blocks_found, blocks); }
  // An operation is all of these calls for one request.
  double ns_per_op() const noexcept {
    return requests == 0 ? 0 : seconds * 1e9 / static_cast<double>(requests);
  }
  double ns_per_token() const noexcept {
    return tokens == 0 ? 0 : seconds * 1e9 / static_cast<double>(tokens);
  }

 private:
  static double ratio(std::int64_t part, std::int64_t whole) noexcept {
    return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

// A PagedCache of one layer whose rows say their token and place, so that a wrong hit is seen.
class Replay {
 public:
  // Errors: kInvalidArgument, kOutOfMemory.
  static Result<std::unique_ptr<Replay>> create(std::int64_t capacity_tokens,
                                                std::int64_t page_size, Eviction eviction);
  ~Replay();

  // A request of more tokens than the capacity is cut to it.
  Status add(const TraceRequest& request);
  const ReplayResult& result() const noexcept;

 private:
  struct Impl;
  explicit Replay(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

// What no policy could beat, by blocks of 512 tokens. `capacity_tokens` 0: without a bound; else by
// Belady's rule: the block whose next use is furthest leaves first.
ReplayResult replay_ideal(const std::vector<TraceRequest>& requests, std::int64_t capacity_tokens);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_REPLAY_REPLAY_H_
