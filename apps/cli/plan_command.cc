#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"
#include "apps/cli/options.h"
#include "kvcache/memory_plan.h"

namespace kvcache::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Flags {
  ModelFlags model;
  StorageFlags storage;
  std::int64_t context = 4096;
  std::int64_t batch = 1;
  bool json = false;
};

// Memory, and K/V rows that a layer computes and attends to in writing `context` tokens one by one.
struct Line {
  std::string name;
  PlannedBytes bytes;
  std::int64_t rows_computed = 0;
  std::int64_t rows_read = 0;
};

// Of kinds that can hold such rows.
Result<std::vector<Line>> plan_lines(const Flags& flags, std::span<const LayerSpec> layers) {
  MemoryPlanRequest request;
  request.layers = layers;
  request.batch_size = flags.batch;
  request.seq_length = flags.context;
  request.max_length = flags.context;
  request.page_size = flags.storage.page_size;
  request.layout = flags.storage.parsed_layout();
  request.residual_tokens = flags.storage.residual_tokens;
  if (request.residual_tokens > 0) request.step_tokens = 1;
  std::vector<Line> lines = {{"none", {}}};
  for (const auto& [kind, name] :
       {std::pair(CacheKind::kDynamic, "dynamic"), std::pair(CacheKind::kStatic, "static"),
        std::pair(CacheKind::kPaged, "paged")}) {
    if (kind != CacheKind::kPaged && !runner::one_dtype(layers).has_value()) continue;
    KVC_ASSIGN_OR_RETURN(const PlannedBytes bytes, plan_memory(kind, request));
    lines.push_back({name, bytes});
  }
  // What the paged cache can hold, fewer than 2^31 tokens in all, can be counted.
  const std::int64_t n = flags.context;
  for (Line& line : lines) {
    line.rows_read = flags.batch * (n * (n + 1) / 2);
    line.rows_computed = line.name == "none" ? line.rows_read : flags.batch * n;
  }
  return lines;
}

void print_json(const Flags& flags, const runner::Model& model, const std::string& kv_dtype,
                std::int64_t token_bytes, const std::vector<Line>& lines) {
  Json json;
  json["context"] = flags.context;
  json["batch"] = flags.batch;
  json["kv_dtype"] = kv_dtype;
  json["token_bytes"] = token_bytes;
  json["page_size"] = flags.storage.page_size;
  json["weights"] = name_of(model.weight_type());
  json["weight_bytes"] = model.weight_bytes();
  json["caches"] = Json::array();
  for (const Line& line : lines) {
    json["caches"].push_back({{"cache", line.name},
                              {"nbytes", line.bytes.nbytes},
                              {"reserved_bytes", line.bytes.reserved_bytes},
                              {"pages", line.bytes.num_pages},
                              {"rows_computed", line.rows_computed},
                              {"rows_read", line.rows_read}});
  }
  print("{}\n", json.dump());
}

void print_text(const Flags& flags, const runner::Model& model, const std::string& kv_dtype,
                std::int64_t token_bytes, const std::vector<Line>& lines) {
  const auto& config = model.config();
  print("{} layers x {} KV heads x {} in {}: {} a token; weights {} in {}\n", config.num_layers,
        config.num_kv_heads, config.head_dim, kv_dtype, human_bytes(token_bytes),
        human_bytes(model.weight_bytes()), name_of(model.weight_type()));
  print("{} of {} tokens each, written one by one:\n\n",
        flags.batch == 1 ? "1 text" : fmt::format("{} texts", flags.batch), flags.context);
  std::vector<std::vector<std::string>> rows = {{"cache", "rows stored, bytes", "held for them",
                                                 "in all", "pages", "rows computed", "rows read",
                                                 "order"}};
  for (const Line& line : lines) {
    rows.push_back({line.name, with_thousands(line.bytes.nbytes),
                    with_thousands(line.bytes.reserved_bytes),
                    human_bytes(line.bytes.reserved_bytes),
                    line.name == "paged" ? with_thousands(line.bytes.num_pages) : "-",
                    with_thousands(line.rows_computed), with_thousands(line.rows_read),
                    line.name == "none" ? "n^2 + n^2" : "n + n^2"});
  }
  print("{}\n", table(rows));
  print(
      "Rows are per layer. Computing one costs the layer's matrix products, reading one costs two\n"
      "short products a head: a cache makes the dear part linear in n and leaves the cheap one.\n");
}

Status run(const Flags& flags) {
  KVC_ASSIGN_OR_RETURN(const runner::KvDtype rows, flags.storage.parsed_dtype());
  KVC_ASSIGN_OR_RETURN(const runner::Model model, load_model(flags.model));
  KVC_ASSIGN_OR_RETURN(const std::vector<LayerSpec> layers,
                       rows.layers(model.config(), model.default_kv_dtype()));
  const std::string kv_dtype =
      rows.words().empty() ? name_of(model.default_kv_dtype()) : rows.words();
  const std::int64_t limit = model.config().max_position_embeddings;
  if (flags.context > limit) {
    say("kvcache: note: the model's own context is {} tokens\n", limit);
  }
  KVC_ASSIGN_OR_RETURN(const std::vector<Line> lines, plan_lines(flags, layers));
  const std::int64_t token_bytes = runner::bytes_per_token(layers);
  if (flags.json) {
    print_json(flags, model, kv_dtype, token_bytes, lines);
  } else {
    print_text(flags, model, kv_dtype, token_bytes, lines);
  }
  return {};
}

}  // namespace

void add_plan(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("plan", "Memory and work of each kind of cache, before anything runs");
  flags->model.add_model(*command);
  add_number(*command, "--context", flags->context, "Tokens of each text")
      ->type_name("N")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 31))
      ->capture_default_str();
  add_number(*command, "--batch", flags->batch, "Texts at once")
      ->type_name("B")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
  flags->storage.add(*command);
  command->add_flag("--json", flags->json, "Print one JSON object instead");
  command->callback([flags, exit_code] {
    const Status status = run(*flags);
    *exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace kvcache::cli
