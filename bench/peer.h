// Another program measured in turn with ours, within the same minutes: ratios pair by pair.
#ifndef KVCACHE_BENCH_PEER_H_
#define KVCACHE_BENCH_PEER_H_

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/case.h"
#include "kvcache/status.h"

namespace kvcache::bench {

// A figure by the name of its case; without a name where the program gave none.
using Figures = std::vector<std::pair<std::string, double>>;

// What a program printed: the cases of `kvcache bench ... --json`, or numbers that stand alone on a
// line, one for each case in order. Errors: kInvalidArgument for neither.
Result<Figures> parse_figures(const std::string& output);

// Runs `command` by the shell and reads its figures. Errors: kUnavailable where it cannot be run or
// fails, and those of parse_figures().
Result<Figures> run_peer(const std::string& command);

// `turns` times over: `measure()`, then the peer. Of each case `achieved` is the median of ours,
// `roof` that of the peer's figures (higher is better in both), `ratio` the median of the ratios of
// the turns, whose least, most and each the details have. `error` is the largest of the turns.
// Errors: kInvalidArgument for a peer without a figure for a case, those of `measure` and `peer`.
Result<std::vector<Case>> take_turns(int turns,
                                     const std::function<Result<std::vector<Case>>()>& measure,
                                     const std::function<Result<Figures>()>& peer);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_PEER_H_
