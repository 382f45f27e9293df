// `kvcache replay`: what a trace of requests finds again, by policy and capacity.
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "apps/cli/options.h"
#include "apps/cli/picture.h"
#include "runner/replay/replay.h"

namespace kvcache::cli {
namespace {

using runner::ReplayResult;
using runner::TraceRequest;

struct Flags {
  std::string trace;
  std::vector<double> capacities = {2.5e6};
  std::vector<std::string> policies = {"lru"};
  std::int64_t block = 512;
  std::string half;  // "first", "second"; empty: all of it
  std::string plot;
  bool json = false;
};

struct Line {
  std::string policy;
  std::int64_t capacity = 0;
  ReplayResult result;
  double belady = 0, infinite = 0;
};

Result<std::vector<TraceRequest>> read_trace(const std::string& path) {
  std::ifstream file(path);
  if (!file) return Status(StatusCode::kNotFound, path + ": found no file, expected a trace");
  runner::TraceReader reader(file);
  std::vector<TraceRequest> requests;
  TraceRequest request;
  for (;;) {
    const Result<bool> more = reader.next(&request);
    if (!more.ok()) return Status(more.status().code(), path + ", " + more.status().message());
    if (!*more) return requests;
    requests.push_back(request);
  }
}

Result<ReplayResult> replay(const Flags& flags, const std::string& policy, std::int64_t capacity,
                            const std::vector<TraceRequest>& requests) {
  KVC_ASSIGN_OR_RETURN(const Eviction eviction, eviction_named(policy));
  KVC_ASSIGN_OR_RETURN(const auto cache, runner::Replay::create(capacity, flags.block, eviction));
  ProgressBar bar(policy + ", " + with_thousands(capacity) + " tokens");
  for (const TraceRequest& request : requests) {
    KVC_RETURN_IF_ERROR(cache->add(request));
    bar.update(cache->result().requests, static_cast<std::int64_t>(requests.size()));
  }
  return cache->result();
}

Result<std::vector<Line>> replay_all(const Flags& flags) {
  KVC_ASSIGN_OR_RETURN(std::vector<TraceRequest> requests, read_trace(flags.trace));
  const auto middle = requests.begin() + static_cast<std::ptrdiff_t>(requests.size() / 2);
  if (flags.half == "first") requests.erase(middle, requests.end());
  if (flags.half == "second") requests.erase(requests.begin(), middle);
  const double infinite = runner::replay_ideal(requests, 0).token_hit_ratio();
  std::vector<Line> lines;
  for (const double tokens : flags.capacities) {
    const auto capacity = static_cast<std::int64_t>(tokens);
    const ReplayResult ideal = runner::replay_ideal(requests, capacity);
    for (const std::string& policy : flags.policies) {
      Line line{policy, capacity, {}, ideal.token_hit_ratio(), infinite};
      if (policy == "belady") {
        line.result = ideal;
      } else if (policy == "infinite") {
        line.result = runner::replay_ideal(requests, 0);
      } else {
        KVC_ASSIGN_OR_RETURN(line.result, replay(flags, policy, capacity, requests));
      }
      lines.push_back(std::move(line));
    }
  }
  return lines;
}

double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

nlohmann::ordered_json to_json(const Flags& flags, const std::vector<Line>& lines) {
  nlohmann::ordered_json runs = nlohmann::ordered_json::array();
  for (const Line& line : lines) {
    const double found = line.result.token_hit_ratio();
    runs.push_back({{"policy", line.policy},
                    {"capacity_tokens", line.capacity},
                    {"block", flags.block},
                    {"requests", line.result.requests},
                    {"token_hit_ratio", found},
                    {"block_hit_ratio", line.result.block_hit_ratio()},
                    {"fraction_of_belady", share(found, line.belady)},
                    {"fraction_of_infinite", share(found, line.infinite)},
                    {"ns_per_op", line.result.ns_per_op()},
                    {"ns_per_token", line.result.ns_per_token()},
                    {"wrong_hits", line.result.wrong_hits}});
  }
  return {{"runs", runs}};
}

void print_lines(const std::vector<Line>& lines) {
  std::vector<std::vector<std::string>> rows = {{"policy", "capacity, tokens", "tokens found",
                                                 "blocks found", "of belady", "of infinite",
                                                 "ns a token", "wrong"}};
  for (const Line& line : lines) {
    const double found = line.result.token_hit_ratio();
    rows.push_back({line.policy, with_thousands(line.capacity), fmt::format("{:.4f}", found),
                    fmt::format("{:.4f}", line.result.block_hit_ratio()),
                    fmt::format("{:.3f}", share(found, line.belady)),
                    fmt::format("{:.3f}", share(found, line.infinite)),
                    fmt::format("{:.1f}", line.result.ns_per_token()),
                    with_thousands(line.result.wrong_hits)});
  }
  print("{}", table(rows));
}

Status run(const Flags& flags) {
  KVC_ASSIGN_OR_RETURN(const std::vector<Line> lines, replay_all(flags));
  if (flags.json) {
    print("{}\n", to_json(flags, lines).dump());
  } else {
    print_lines(lines);
  }
  std::fflush(stdout);
  if (!flags.plot.empty()) {
    KVC_RETURN_IF_ERROR(draw("replay", to_json(flags, lines).dump(), flags.plot));
  }
  for (const Line& line : lines) {
    if (line.result.wrong_hits == 0) continue;
    return Status(StatusCode::kInternal, line.policy + ": found " +
                                             std::to_string(line.result.wrong_hits) +
                                             " tokens with rows of another text, expected none");
  }
  return {};
}

}  // namespace

void add_replay(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "replay", "What a trace of requests finds again in a cache of prefixes, by policy");
  command
      ->add_option("TRACE", flags->trace,
                   "A JSON object a line: input_length, and hash_ids of its blocks of 512 tokens")
      ->required();
  add_number(*command, "--capacity-tokens", flags->capacities, "Tokens that the cache holds")
      ->type_name("N")
      ->delimiter(',')
      ->check(CLI::Range(1.0, 2e9))
      ->capture_default_str();
  command
      ->add_option("--policy", flags->policies,
                   "What leaves first; belady knows the future, infinite evicts nothing")
      ->delimiter(',')
      ->check(CLI::IsMember({"lru", "s3fifo", "arc", "adaptive", "belady", "infinite"}))
      ->capture_default_str();
  add_number(*command, "--block", flags->block, "Tokens of a page")
      ->type_name("N")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
  command
      ->add_option("--half", flags->half,
                   "Of the requests this half alone, from an empty cache on: to choose something "
                   "over one and see it on the other")
      ->check(CLI::IsMember({"first", "second"}));
  command
      ->add_option("--plot", flags->plot,
                   "Draw the share of tokens found against capacity (needs matplotlib)")
      ->type_name("FILE.png");
  command->add_flag("--json", flags->json, "Print one JSON object instead");
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
