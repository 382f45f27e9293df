#include "bench/peer.h"

#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

namespace kvcache::bench {
namespace {

// The figure of the case `name`, the `index`-th of ours; null if there is none.
const double* find(const Figures& figures, const std::string& name, std::size_t index) {
  for (const auto& [peer_name, figure] : figures) {
    if (peer_name == name) return &figure;
  }
  return index < figures.size() && figures[index].first.empty() ? &figures[index].second : nullptr;
}

}  // namespace

Result<Figures> parse_figures(const std::string& output) {
  Figures figures;
  const auto json = nlohmann::json::parse(output, nullptr, false);
  if (json.is_object() && json.contains("cases") && json["cases"].is_array()) {
    for (const auto& each : json["cases"]) {
      if (!each.is_object() || !each.contains("name") || !each["name"].is_string() ||
          !each.contains("achieved") || !each["achieved"].is_number()) {
        return Status(StatusCode::kInvalidArgument,
                      "peer: found a case without name and achieved, expected both");
      }
      figures.emplace_back(each["name"], each["achieved"]);
    }
  } else {
    std::istringstream lines(output);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      double figure = 0;
      std::string rest;
      if (words >> figure && !(words >> rest)) figures.emplace_back("", figure);
    }
  }
  if (figures.empty()) {
    return Status(StatusCode::kInvalidArgument,
                  "peer: found no figure, expected numbers alone on lines or the JSON of a bench");
  }
  return figures;
}

Result<Figures> run_peer(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) {
    return Status(StatusCode::kUnavailable, "peer: found no way to run " + command);
  }
  std::string output;
  std::array<char, 4096> buffer;
  for (std::size_t n = 0; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    output.append(buffer.data(), n);
  }
  const int state = pclose(pipe);
  if (!WIFEXITED(state) || WEXITSTATUS(state) != 0) {
    return Status(StatusCode::kUnavailable, "peer: found that " + command + " failed");
  }
  return parse_figures(output);
}

Result<std::vector<Case>> take_turns(int turns,
                                     const std::function<Result<std::vector<Case>>()>& measure,
                                     const std::function<Result<Figures>()>& peer) {
  std::vector<Case> cases;
  std::vector<std::vector<double>> ours, theirs, ratios;
  for (int turn = 0; turn < turns; ++turn) {
    KVC_ASSIGN_OR_RETURN(const std::vector<Case> measured, measure());
    KVC_ASSIGN_OR_RETURN(const Figures figures, peer());
    if (turn == 0) {
      cases = measured;
      ours.resize(cases.size());
      theirs.resize(cases.size());
      ratios.resize(cases.size());
    }
    for (std::size_t i = 0; i < measured.size(); ++i) {
      const double* figure = find(figures, measured[i].name, i);
      if (figure == nullptr || !(*figure > 0)) {
        return Status(StatusCode::kInvalidArgument, "peer: found no figure above 0 for \"" +
                                                        measured[i].name + "\", expected one");
      }
      ours[i].push_back(measured[i].achieved);
      theirs[i].push_back(*figure);
      ratios[i].push_back(measured[i].achieved / *figure);
      cases[i].error = std::max(cases[i].error, measured[i].error);
    }
  }
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Spread spread = spread_of(ratios[i]);
    cases[i].achieved = median(ours[i]);
    cases[i].roof = median(theirs[i]);
    cases[i].ratio = spread.median;
    cases[i].details = {{"least", spread.least}, {"most", spread.most}};
    for (std::size_t turn = 0; turn < ratios[i].size(); ++turn) {
      cases[i].details.emplace_back("pair " + std::to_string(turn + 1), ratios[i][turn]);
    }
  }
  return cases;
}

}  // namespace kvcache::bench
