#include "runner/replay/replay.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "kvcache/kvcache.h"

namespace kvcache::runner {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Exact: 24 bits of a token and its place.
float row_of(std::int32_t token, std::int64_t position) noexcept {
  const auto mixed = static_cast<std::uint32_t>(token) * 2654435761U +
                     static_cast<std::uint32_t>(position) * 2246822519U;
  return static_cast<float>(mixed >> 8);
}

}  // namespace

struct Replay::Impl {
  PagedCache cache;
  PrefixCache prefixes;
  std::int64_t capacity;
  std::int64_t page_size;
  std::vector<std::int32_t> tokens;
  std::vector<float> rows;
  ReplayResult result;

  // Of the first `found` tokens, those whose row is not theirs.
  Result<std::int64_t> count_wrong(SequenceId seq, std::int64_t found) {
    if (found == 0) return std::int64_t{0};
    KVC_ASSIGN_OR_RETURN(const OwnedKvView view, cache.view(0, {&seq, 1}));
    const KvPart& part = view.get().parts[0];
    std::int64_t wrong = 0;
    for (std::int64_t t = 0; t < found; ++t) {
      const auto* row = reinterpret_cast<const float*>(
          part.k.row_at(part.block_table[t / page_size], 0, t % page_size));
      wrong += *row == row_of(tokens[static_cast<std::size_t>(t)], t) ? 0 : 1;
    }
    return wrong;
  }
};

Replay::Replay(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Replay::~Replay() = default;
const ReplayResult& Replay::result() const noexcept { return impl_->result; }

Result<std::unique_ptr<Replay>> Replay::create(std::int64_t capacity_tokens, std::int64_t page_size,
                                               Eviction eviction) {
  CacheConfig config = CacheConfig::uniform(1, 1, 1);
  config.page_size = page_size;
  config.num_pages = capacity_tokens / std::max<std::int64_t>(page_size, 1);
  config.prefixes = true;
  if (config.num_pages < 1) {
    return Status(StatusCode::kInvalidArgument,
                  "capacity_tokens: found " + std::to_string(capacity_tokens) +
                      ", expected at least a block of " + std::to_string(page_size));
  }
  KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(config));
  PrefixOptions options;
  options.eviction = eviction;
  KVC_ASSIGN_OR_RETURN(PrefixCache prefixes, PrefixCache::create(cache, options));
  return std::unique_ptr<Replay>(
      new Replay(std::make_unique<Impl>(Impl{std::move(cache),
                                             std::move(prefixes),
                                             config.num_pages * page_size,
                                             page_size,
                                             {},
                                             {},
                                             {}})));
}

Status Replay::add(const TraceRequest& request) {
  Impl& r = *impl_;
  tokens_of(request, &r.tokens);
  const auto length = static_cast<std::int64_t>(r.tokens.size());
  const std::int64_t stored = std::min(length, r.capacity);
  double start = seconds_now();
  SequenceId seq{};
  std::int64_t found = 0;
  {
    KVC_ASSIGN_OR_RETURN(const PrefixHandle handle, r.prefixes.match(r.tokens));
    found = std::min(handle.length(), stored);
    KVC_ASSIGN_OR_RETURN(seq, r.prefixes.open(handle));
  }
  r.result.seconds += seconds_now() - start;
  KVC_ASSIGN_OR_RETURN(const std::int64_t wrong, r.count_wrong(seq, found));
  r.rows.clear();
  for (std::int64_t t = found; t < stored; ++t) {
    r.rows.push_back(row_of(r.tokens[static_cast<std::size_t>(t)], t));
  }
  // A page found in part needs one for its copy, which a pool that the request fills has not.
  const std::span<const std::int32_t> rest(r.tokens.data() + found,
                                           static_cast<std::size_t>(stored - found));
  const Append append{seq, stored - found, rest};
  const TensorView rows(r.rows.data(), DType::kF32, {stored - found, 1, 1});
  start = seconds_now();
  auto step = r.cache.reserve({&append, 1});
  r.result.seconds += seconds_now() - start;
  if (step.ok()) {
    KVC_RETURN_IF_ERROR(r.cache.write(*step, 0, rows, rows));
    start = seconds_now();
    KVC_RETURN_IF_ERROR(r.cache.commit(*step));
  } else if (step.status().code() != StatusCode::kNeverFits &&
             step.status().code() != StatusCode::kRetryLater) {
    return step.status();
  }
  KVC_RETURN_IF_ERROR(r.cache.release(seq));
  r.result.seconds += seconds_now() - start;
  ++r.result.requests;
  r.result.tokens += length;
  r.result.tokens_found += found;
  r.result.blocks += (length + r.page_size - 1) / r.page_size;
  r.result.blocks_found += found / r.page_size;
  r.result.wrong_hits += wrong;
  return {};
}

namespace {

// The next request that has each block again, from the last request on.
std::vector<std::vector<std::int64_t>> next_uses(const std::vector<TraceRequest>& requests) {
  std::vector<std::vector<std::int64_t>> uses(requests.size());
  std::unordered_map<std::int64_t, std::int64_t> next;
  for (std::size_t i = requests.size(); i-- > 0;) {
    for (const std::int64_t block : requests[i].blocks) {
      const auto found = next.find(block);
      uses[i].push_back(found == next.end() ? std::numeric_limits<std::int64_t>::max()
                                            : found->second);
    }
    for (const std::int64_t block : requests[i].blocks) next[block] = static_cast<std::int64_t>(i);
  }
  return uses;
}

}  // namespace

ReplayResult replay_ideal(const std::vector<TraceRequest>& requests, std::int64_t capacity_tokens) {
  constexpr std::int64_t kBlock = TraceReader::kBlockTokens;
  const auto capacity = static_cast<std::size_t>(
      capacity_tokens > 0 ? capacity_tokens / kBlock : std::numeric_limits<std::int64_t>::max());
  const auto uses =
      capacity_tokens > 0 ? next_uses(requests) : std::vector<std::vector<std::int64_t>>();
  using Turn = std::tuple<std::int64_t, std::size_t, std::int64_t>;  // next use, place, block
  std::unordered_map<std::int64_t, Turn> stored;
  std::set<Turn> order;
  ReplayResult result;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const TraceRequest& request = requests[i];
    std::size_t found = 0;
    while (found < request.blocks.size() && stored.count(request.blocks[found]) > 0) ++found;
    for (std::size_t b = 0; b < request.blocks.size(); ++b) {
      const Turn turn{uses.empty() ? 0 : uses[i][b], b, request.blocks[b]};
      const auto [at, is_new] = stored.try_emplace(request.blocks[b], turn);
      if (uses.empty()) continue;
      if (!is_new) order.erase(at->second);
      at->second = turn;
      order.insert(turn);
    }
    for (; order.size() > capacity; order.erase(std::prev(order.end()))) {
      stored.erase(std::get<2>(*std::prev(order.end())));
    }
    ++result.requests;
    result.tokens += request.input_length;
    result.tokens_found +=
        std::min(static_cast<std::int64_t>(found) * kBlock, request.input_length - 1);
    result.blocks += static_cast<std::int64_t>(request.blocks.size());
    result.blocks_found += static_cast<std::int64_t>(found);
  }
  return result;
}

}  // namespace kvcache::runner
