#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "apps/cli/options.h"
#include "kvcache/kvcache.h"

namespace kvcache::cli {
namespace {

struct Flags {
  std::int32_t turns = 200;
  bool json = false;
};

Status run(const Flags& flags) {
  KVC_ASSIGN_OR_RETURN(const std::string cpu, cpu_description());
  KVC_ASSIGN_OR_RETURN(const std::string backend, selected_backend());
  KVC_ASSIGN_OR_RETURN(const auto choices, prefetch_choices(flags.turns));
  if (flags.json) {
    nlohmann::ordered_json out;
    out["cpu"] = cpu;
    out["backend"] = backend;
    out["turns"] = flags.turns;
    out["prefetch"] = nlohmann::json::array();
    for (const PrefetchChoice& choice : choices) {
      out["prefetch"].push_back(
          {{"row_bytes", choice.row_bytes}, {"level", choice.level}, {"reason", choice.reason}});
    }
    print("{}\n", out.dump());
    return {};
  }
  print("{}; backend {}; best of {} turns, one thread, rows in no cache\n", cpu, backend,
        flags.turns);
  for (const PrefetchChoice& choice : choices) {
    print("rows of {:>3} bytes  {:<5} {}\n", choice.row_bytes, choice.level, choice.reason);
  }
  print(
      "A process takes 3 turns for itself, and up to 15 more within 0.1 s where these go "
      "against its family; KVCACHE_PREFETCH=LEVEL overrides.\n");
  return {};
}

}  // namespace

void add_tune(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "tune", "Measure at length what decode should prefetch here, and say what it would choose");
  add_number(*command, "--turns", flags->turns, "Measurements of each level")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print one JSON object instead");
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
