// A trace of requests: which blocks of 512 tokens their prompts are made of.
#ifndef KVCACHE_RUNNER_REPLAY_TRACE_H_
#define KVCACHE_RUNNER_REPLAY_TRACE_H_

#include <cstdint>
#include <istream>
#include <string>
#include <vector>

#include "kvcache/status.h"

namespace kvcache::runner {

struct TraceRequest {
  std::int64_t input_length = 0;     // tokens of the prompt
  std::vector<std::int64_t> blocks;  // ids of its blocks of 512 tokens, the last one incomplete
};

// Reads a line at a time: {"input_length": n, "hash_ids": [...]}, other members ignored. Equal ids
// stand for equal tokens behind equal beginnings.
class TraceReader {
 public:
  static constexpr std::int64_t kBlockTokens = 512;

  // `lines` lives as long.
  explicit TraceReader(std::istream& lines) : lines_(lines) {}

  // False at the end. Errors: kInvalidArgument naming the line, kIo.
  Result<bool> next(TraceRequest* request);

 private:
  std::istream& lines_;
  std::string line_;
  std::int64_t number_ = 0;
};

// The token ids of a request, made of its block ids: the same for the same block, and unlike those
// of any other in the first token already.
void tokens_of(const TraceRequest& request, std::vector<std::int32_t>* tokens);

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_REPLAY_TRACE_H_
