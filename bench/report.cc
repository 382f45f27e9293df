#include "bench/report.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace kvcache::bench {
namespace {

double finite(double value) { return std::isfinite(value) ? value : 1e300; }

std::string scientific(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1e", value);
  return text;
}

}  // namespace

std::string to_json(const std::vector<Case>& cases) {
  nlohmann::ordered_json json;
  json["cases"] = nlohmann::ordered_json::array();
  for (const Case& each : cases) {
    nlohmann::ordered_json entry = {
        {"name", each.name},         {"achieved", finite(each.achieved)},
        {"roof", finite(each.roof)}, {"ratio", finite(each.ratio)},
        {"unit", each.unit},         {"error", finite(each.error)}};
    for (const auto& [name, value] : each.details) entry["details"][name] = finite(value);
    json["cases"].push_back(std::move(entry));
  }
  return json.dump();
}

Status check_answers(const std::vector<Case>& cases) {
  for (const Case& each : cases) {
    if (!(each.error <= each.tolerance)) {
      return Status(StatusCode::kInternal, each.name + ": found a wrong answer, error " +
                                               scientific(each.error) + ", expected at most " +
                                               scientific(each.tolerance));
    }
  }
  return {};
}

}  // namespace kvcache::bench
