#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"

#if KVC_HAVE_BENCH

#include "apps/cli/options.h"
#include "bench/append.h"

namespace kvcache::cli {
namespace {

struct Flags {
  bench::AppendOptions append;
  std::string dtype = "bf16";
  std::string layout = "hnd";
  bool json = false;
};

int print_cases(const std::vector<bench::Case>& cases, bool json) {
  bool wrong = false;
  nlohmann::ordered_json out;
  out["cases"] = nlohmann::json::array();
  std::vector<std::vector<std::string>> rows = {
      {"case", "achieved", "roof", "unit", "of the roof", "error"}};
  for (const bench::Case& each : cases) {
    wrong = wrong || !(each.error <= 1e-5);
    // JSON has no infinity.
    const double error = std::isfinite(each.error) ? each.error : 1e300;
    out["cases"].push_back({{"name", each.name},
                            {"achieved", each.achieved},
                            {"roof", each.roof},
                            {"ratio", each.ratio},
                            {"unit", each.unit},
                            {"error", error}});
    rows.push_back({each.name, fmt::format("{:.2f}", each.achieved),
                    fmt::format("{:.2f}", each.roof), each.unit, fmt::format("{:.2f}", each.ratio),
                    fmt::format("{:.1e}", each.error)});
  }
  fmt::print("{}", json ? out.dump() + "\n" : table(rows));
  if (wrong) return fail(Status(StatusCode::kInternal, "bench: found a wrong answer; see error"));
  return 0;
}

int run_append(Flags& flags) {
  if (flags.dtype == "f32") flags.append.dtype = DType::kF32;
  if (flags.dtype == "f16") flags.append.dtype = DType::kF16;
  flags.append.layout = flags.layout == "nhd" ? Layout::kNHD : Layout::kHND;
  ProgressBar bar("append");
  const auto cases =
      bench::run_append(flags.append, [&](int done, int total) { bar.update(done, total); });
  bar.clear();
  if (!cases.ok()) return fail(cases.status());
  if (!flags.json) {
    fmt::print(
        "One token to each of {} layers, {} KV heads x {} in {}, mean of {}, median of {};\n"
        "the roof is a plain copy of the same rows into fresh memory.\n\n",
        flags.append.layers, flags.append.kv_heads, flags.append.head_dim, flags.dtype,
        flags.append.appends, flags.append.repeats);
  }
  return print_cases(*cases, flags.json);
}

}  // namespace

void add_bench(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("bench", "Measure, beside the roof of this machine");
  command->require_subcommand(1);
  auto flags = std::make_shared<Flags>();
  CLI::App* append =
      command->add_subcommand("append", "Cost of appending a token to a short and to a long cache");
  auto& options = flags->append;
  append->add_option("--layers", options.layers, "Layers")->capture_default_str();
  append->add_option("--kv-heads", options.kv_heads, "KV heads")->capture_default_str();
  append->add_option("--head-dim", options.head_dim, "Elements of a row")->capture_default_str();
  append->add_option("--dtype", flags->dtype, "Type of the rows")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  append->add_option("--layout", flags->layout, "Axes of the rows")
      ->check(CLI::IsMember({"hnd", "nhd"}))
      ->capture_default_str();
  append->add_option("--page-size", options.page_size, "Tokens a page holds")
      ->capture_default_str();
  append
      ->add_option("--kv-len", options.lengths, "Tokens stored before; may be given several times")
      ->capture_default_str();
  append->add_option("--appends", options.appends, "Tokens the mean is taken over")
      ->capture_default_str();
  append->add_option("--repeats", options.repeats, "Runs the median is taken over")
      ->capture_default_str();
  append->add_flag("--json", flags->json, "Print one JSON object instead");
  append->callback([flags, exit_code] { *exit_code = run_append(*flags); });
}

}  // namespace kvcache::cli

#else

namespace kvcache::cli {

void add_bench(CLI::App&, int*) {}  // this build leaves the measurements out

}  // namespace kvcache::cli

#endif  // KVC_HAVE_BENCH
