#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "kvcache/kvcache.h"
#include "runner/ops/matmul.h"

namespace kvcache::cli {
namespace {

Status run(bool json) {
  KVC_ASSIGN_OR_RETURN(const std::string cpu, cpu_description());
  KVC_ASSIGN_OR_RETURN(const std::vector<BackendInfo> known, backends());
  const std::int32_t threads = default_executor().concurrency();
  if (json) {
    nlohmann::ordered_json out;
    out["version"] = version();
    out["cpu"] = cpu;
    out["threads"] = threads;
    out["matrix_products"] = runner::matmul_backend();
    out["backends"] = nlohmann::json::array();
    for (const BackendInfo& backend : known) {
      out["backends"].push_back({{"name", backend.name},
                                 {"description", backend.description},
                                 {"available", backend.available},
                                 {"reason", backend.reason},
                                 {"selected", backend.selected}});
    }
    fmt::print("{}\n", out.dump());
    return {};
  }
  fmt::print("kvcache {}\n", version());
  fmt::print("processor        {}\n", cpu);
  fmt::print("threads          {} (KVCACHE_NUM_THREADS)\n", threads);
  fmt::print("matrix products  {}\n", runner::matmul_backend());
  fmt::print("attention backends (KVCACHE_BACKEND forces one):\n");
  for (const BackendInfo& backend : known) {
    fmt::print("  {} {:<10} {:<13} {}; {}\n", backend.selected ? "*" : " ", backend.name,
               backend.available ? "available" : "not available", backend.description,
               backend.reason);
  }
  return {};
}

}  // namespace

void add_info(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("info", "Version, processor, and the attention backends");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print one JSON object instead");
  command->callback([json, exit_code] {
    const Status status = run(*json);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
