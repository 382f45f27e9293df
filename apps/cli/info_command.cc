#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "apps/cli/options.h"
#include "kvcache/kvcache.h"
#include "runner/ops/matmul.h"
#include "runner/tokenizer/unicode.h"

namespace kvcache::cli {
namespace {

struct Flags {
  ModelFlags model;
  bool json = false;
};

Status run(const Flags& flags) {
  KVC_ASSIGN_OR_RETURN(const std::string cpu, cpu_description());
  KVC_ASSIGN_OR_RETURN(const std::vector<BackendInfo> known, backends());
  KVC_ASSIGN_OR_RETURN(const std::vector<PrefetchChoice> prefetch, prefetch_choices());
  const std::int32_t threads = default_executor().concurrency();
  std::optional<runner::Model> model;
  if (!flags.model.model.empty()) {
    KVC_ASSIGN_OR_RETURN(model, load_model(flags.model));
  }
  if (flags.json) {
    nlohmann::ordered_json out;
    out["version"] = version();
    out["cpu"] = cpu;
    out["threads"] = threads;
    out["matrix_products"] = runner::matmul_backend();
    out["prefetch"] = nlohmann::json::array();
    for (const PrefetchChoice& choice : prefetch) {
      out["prefetch"].push_back(
          {{"row_bytes", choice.row_bytes}, {"level", choice.level}, {"reason", choice.reason}});
    }
    out["unicode"] = {{"classes", runner::kUnicodeClasses},
                      {"normalization", runner::kUnicodeNormalization}};
    out["backends"] = nlohmann::json::array();
    for (const BackendInfo& backend : known) {
      out["backends"].push_back(
          {{"name", backend.name},
           {"description", backend.description},
           {"device", backend.device.kind == DeviceKind::kCuda ? "cuda" : "cpu"},
           {"available", backend.available},
           {"reason", backend.reason},
           {"selected", backend.selected}});
    }
    if (model.has_value()) {
      out["model"] = {{"parameters", model->num_parameters()},
                      {"weights", name_of(model->weight_type())},
                      {"weight_bytes", model->weight_bytes()}};
    }
    print("{}\n", out.dump());
    return {};
  }
  print("kvcache {}\n", version());
  print("processor        {}\n", cpu);
  print("threads          {} (KVCACHE_NUM_THREADS)\n", threads);
  print("matrix products  {}\n", runner::matmul_backend());
  print("Unicode          {} for classes of characters, {} for NFC, as tokenizers has them\n",
        runner::kUnicodeClasses, runner::kUnicodeNormalization);
  print("prefetching by decode (KVCACHE_PREFETCH forces none, runs, l1, l2 or l3):\n");
  for (const PrefetchChoice& choice : prefetch) {
    print("  rows of {:>3} bytes  {:<5} {}\n", choice.row_bytes, choice.level, choice.reason);
  }
  print("attention backends (KVCACHE_BACKEND forces one):\n");
  for (const BackendInfo& backend : known) {
    print("  {} {:<10} {:<13} {}; {}\n", backend.selected ? "*" : " ", backend.name,
          backend.available ? "available" : "not available", backend.description, backend.reason);
  }
  if (model.has_value()) {
    print("weights          {} parameters in {}: {}\n", with_thousands(model->num_parameters()),
          name_of(model->weight_type()), human_bytes(model->weight_bytes()));
  }
  return {};
}

}  // namespace

void add_info(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "info",
      "Version, processor, and the attention backends; of a model the bytes of its weights");
  auto flags = std::make_shared<Flags>();
  command
      ->add_option("--model", flags->model.model,
                   "Model directory or name, as the other commands take it [none]")
      ->type_name("DIR");
  flags->model.add_weights(*command);
  command->add_flag("--json", flags->json, "Print one JSON object instead");
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
