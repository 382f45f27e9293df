#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>

#include "apps/cli/commands.h"
#include "apps/cli/console.h"

#if KVC_HAVE_BENCH

#include <random>

#include "apps/cli/options.h"
#include "bench/append.h"
#include "bench/attention.h"
#include "bench/coded.h"
#include "bench/decode_model.h"
#include "bench/digest.h"
#include "bench/files.h"
#include "bench/linear.h"
#include "bench/peer.h"
#include "bench/prefix.h"
#include "bench/report.h"
#include "bench/roofs.h"
#include "bench/window.h"
#include "runner/ops/product.h"

namespace kvcache::cli {
namespace {

using Cases = Result<std::vector<bench::Case>>;

DType parsed_dtype(const std::string& name) {
  if (name == "f32") return DType::kF32;
  return name == "f16" ? DType::kF16 : DType::kBF16;
}
runner::WeightType parsed_weights(const std::string& name) {
  return name == "int8" ? runner::WeightType::kInt8 : runner::weight_type(parsed_dtype(name));
}
Layout parsed_layout(const std::string& name) {
  return name == "nhd" ? Layout::kNHD : Layout::kHND;
}

void add_activations(CLI::App& command, runner::Activations& activations) {
  command
      .add_option_function<std::string>(
          "--activations",
          [&activations](const std::string& name) {
            activations = name == "int8" ? runner::Activations::kInt8 : runner::Activations::kInt16;
          },
          "What int8 weights are multiplied with: int16, or int8 (less exact)")
      ->check(CLI::IsMember({"int16", "int8"}))
      ->default_str("int16");
}
void add_dtype(CLI::App& command, std::string& dtype) {
  command.add_option("--dtype", dtype, "Type of the rows")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
}
void add_layout(CLI::App& command, std::string& layout) {
  command.add_option("--layout", layout, "Axes of the rows")
      ->check(CLI::IsMember({"hnd", "nhd"}))
      ->capture_default_str();
}
void add_clock(CLI::App& command, bench::Clock& clock) {
  command
      .add_option_function<std::string>(
          "--clock",
          [&clock](const std::string& name) {
            clock = name == "cpu" ? bench::Clock::kCpu : bench::Clock::kWall;
          },
          "wall; or cpu, for roofs and cases alike: time the threads ran, where neighbours are "
          "busy")
      ->check(CLI::IsMember({"wall", "cpu"}))
      ->default_str("wall");
}
void add_json(CLI::App& command, bool& json) {
  command.add_flag("--json", json, "Print one JSON object instead");
}

// A figure with three digits that count.
std::string figure(double value) {
  const double size = std::abs(value);
  if (!std::isfinite(value)) return "-";
  return fmt::format("{:.{}f}", value, size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

std::string cases_table(const std::vector<bench::Case>& cases, bool answers, const char* beside) {
  std::vector<std::vector<std::string>> rows = {{"case", "achieved", beside, "unit", "ratio"}};
  if (answers) rows[0].push_back("error");
  // What only some cases have stands behind what all have.
  const auto most =
      std::max_element(cases.begin(), cases.end(), [](const bench::Case& a, const bench::Case& b) {
        return a.details.size() < b.details.size();
      });
  if (most != cases.end()) {
    for (const auto& detail : most->details) rows[0].push_back(detail.first);
  }
  for (const bench::Case& each : cases) {
    rows.push_back({each.name, figure(each.achieved), figure(each.roof), each.unit,
                    fmt::format("{:.2f}", each.ratio)});
    if (answers) rows.back().push_back(fmt::format("{:.1e}", each.error));
    for (const auto& detail : each.details) rows.back().push_back(figure(detail.second));
    rows.back().resize(rows[0].size());
  }
  return table(rows);
}

// Prints the cases, and returns the exit code: 1 where an answer was wrong.
int print_cases(const std::vector<bench::Case>& cases, bool json, bool answers = true,
                const char* beside = "roof") {
  print("{}", json ? bench::to_json(cases) + "\n" : cases_table(cases, answers, beside));
  const Status status = bench::check_answers(cases);
  return status.ok() ? 0 : fail(status);
}

// --peer: another program in turn with ours.
struct PeerFlags {
  std::string command;

  void add(CLI::App& app) {
    app.add_option("--peer", command,
                   "Run this by the shell after each turn of ours (--repeats turns), and print the "
                   "ratios: it prints a number a case, or the --json of another build")
        ->type_name("CMD");
  }

  // Prints what `measure(repeats)` gives, beside the roof or, by turns, beside the peer.
  int run(int repeats, bool json, const std::function<Cases(int)>& measure) const {
    if (command.empty()) {
      const Cases cases = measure(repeats);
      return cases.ok() ? print_cases(*cases, json) : fail(cases.status());
    }
    constexpr int kTurns = 7;
    const Cases cases = bench::take_turns(
        repeats > 0 ? repeats : kTurns, [&] { return measure(1); },
        [&] { return bench::run_peer(command); });
    return cases.ok() ? print_cases(*cases, json, true, "peer") : fail(cases.status());
  }
};

struct AppendFlags {
  bench::AppendOptions options;
  std::string dtype = "bf16";
  std::string rows;
  std::string layout = "hnd";
  bool json = false;
};

int run_append(AppendFlags& flags) {
  flags.options.dtype = parsed_dtype(flags.dtype);
  if (!flags.rows.empty()) flags.options.rows = parsed_dtype(flags.rows);
  flags.options.layout = parsed_layout(flags.layout);
  ProgressBar bar("append");
  const Cases cases =
      bench::run_append(flags.options, [&](int done, int total) { bar.update(done, total); });
  bar.clear();
  if (!cases.ok()) return fail(cases.status());
  if (!flags.json) {
    print(
        "One token to each of {} layers, {} KV heads x {} in {}, given in {}, mean of {}, median "
        "of {};\nthe roof is a plain copy of the stored rows into {} memory.\n\n",
        flags.options.layers, flags.options.kv_heads, flags.options.head_dim, flags.dtype,
        flags.rows.empty() ? flags.dtype : flags.rows, flags.options.appends, flags.options.repeats,
        flags.options.warm ? "touched" : "fresh");
  }
  return print_cases(*cases, flags.json);
}

void add_append(CLI::App& bench, int* exit_code) {
  auto flags = std::make_shared<AppendFlags>();
  CLI::App* command =
      bench.add_subcommand("append", "Cost of appending a token to a short and to a long cache");
  auto& options = flags->options;
  add_number(*command, "--layers", options.layers, "Layers")->capture_default_str();
  add_number(*command, "--kv-heads", options.kv_heads, "KV heads")->capture_default_str();
  add_number(*command, "--head-dim", options.head_dim, "Elements of a row")->capture_default_str();
  add_dtype(*command, flags->dtype);
  command->add_option("--rows", flags->rows, "Type of the rows that are given: f32, f16 or bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->default_str("the cache's own");
  add_layout(*command, flags->layout);
  add_number(*command, "--page-size", options.page_size, "Tokens a page holds")
      ->capture_default_str();
  add_number(*command, "--kv-len", options.lengths,
             "Tokens stored before; may be given several times")
      ->capture_default_str();
  command->add_flag("--warm", options.warm, "Append to memory that was written to before");
  add_number(*command, "--appends", options.appends, "Tokens the mean is taken over")
      ->capture_default_str();
  add_number(*command, "--repeats", options.repeats, "Runs the median is taken over")
      ->capture_default_str();
  add_json(*command, flags->json);
  command->callback([flags, exit_code] { *exit_code = run_append(*flags); });
}

int run_prefix(const bench::PrefixBenchOptions& options, bool json) {
  ProgressBar bar("prefix");
  const Cases cases =
      bench::run_prefix(options, [&](int done, int total) { bar.update(done, total); });
  bar.clear();
  if (!cases.ok()) return fail(cases.status());
  if (!json) {
    print(
        "Prompts of {} tokens, {} a page, in a full index of {} pages; rows are not counted, "
        "medians "
        "of {};\nthe roof is what is wanted.\n\n",
        options.prompt, options.page_size, with_thousands(options.pages), options.repeats);
  }
  return print_cases(*cases, json);
}

void add_prefix(CLI::App& bench, int* exit_code) {
  struct PrefixFlags {
    bench::PrefixBenchOptions options;
    bool json = false;
  };
  auto flags = std::make_shared<PrefixFlags>();
  CLI::App* command =
      bench.add_subcommand("prefix", "Finding and storing prompts in an index of many pages");
  auto& options = flags->options;
  add_number(*command, "--pages", options.pages, "Pages of the index")->capture_default_str();
  add_number(*command, "--page-size", options.page_size, "Tokens a page holds")
      ->capture_default_str();
  add_number(*command, "--prompt", options.prompt, "Tokens of a prompt")->capture_default_str();
  add_number(*command, "--repeats", options.repeats, "Runs the median is taken over")
      ->capture_default_str();
  add_json(*command, flags->json);
  command->callback([flags, exit_code] { *exit_code = run_prefix(flags->options, flags->json); });
}

void add_files(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<bench::FilesBenchOptions>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command =
      bench.add_subcommand("files", "Loading a cache from a file, against a read of the file");
  add_number(*command, "--tokens", options->tokens, "Tokens of the cache")->capture_default_str();
  add_number(*command, "--page-size", options->page_size, "Tokens a page")->capture_default_str();
  command->add_option("--dir", options->directory,
                      "Where the file is for a while [a temporary one]");
  add_number(*command, "--repeats", options->repeats, "Runs the median is taken over")
      ->capture_default_str();
  add_json(*command, *json);
  command->callback([options, json, exit_code] {
    const Cases cases = bench::run_files(*options, {});
    *exit_code = cases.ok() ? print_cases(*cases, *json) : fail(cases.status());
  });
}

struct AttentionFlags {
  bench::AttentionShape shape;
  bench::AttentionRun run;
  std::string cases;
  std::string dtype = "bf16";
  std::string layout = "hnd";
  std::string page_size = "contiguous";
  std::optional<std::uint64_t> seed;
  PeerFlags peer;
  bool json = false;
};

Result<std::vector<bench::AttentionShape>> shapes_of(AttentionFlags& flags) {
  if (!flags.cases.empty()) return bench::attention_cases(flags.cases, flags.shape);
  flags.shape.dtype = parsed_dtype(flags.dtype);
  flags.shape.layout = parsed_layout(flags.layout);
  // In any base that CLI::Range has accepted.
  if (flags.page_size != "contiguous") flags.shape.page_size = std::stoll(flags.page_size);
  return std::vector{flags.shape};
}

Cases measure_attention(AttentionFlags& flags) {
  const bool windows = flags.cases == "window";
  const bool coded = flags.cases == "coded";
  std::vector<bench::AttentionShape> shapes;
  if (!windows && !coded) {
    KVC_ASSIGN_OR_RETURN(shapes, shapes_of(flags));
  }
  flags.run.seed = flags.seed.value_or(std::random_device()());
  if (!flags.json && flags.peer.command.empty()) {
    KVC_ASSIGN_OR_RETURN(const std::string cpu, cpu_description());
    KVC_ASSIGN_OR_RETURN(std::string backend, selected_backend());
    if (!flags.shape.backend.empty()) backend = flags.shape.backend;
    print(
        "{}; backend {}; seed {}\n"
        "Cold rows; the roof is {} the same turn; medians of turns; error against float64.\n\n",
        cpu, backend, flags.run.seed,
        windows || coded ? "reading memory in" : "max(read, compute) of");
    std::fflush(stdout);
  }
  if (windows) {
    bench::WindowShape shape;
    shape.threads = flags.shape.threads;
    if (!flags.shape.backend.empty()) shape.backend = flags.shape.backend.c_str();
    return bench::run_window(shape, flags.run);
  }
  if (coded) {
    bench::CodedShape shape{flags.shape.kv_len, flags.shape.queries, flags.shape.heads,
                            flags.shape.kv_heads, flags.shape.head_dim};
    if (flags.page_size != "contiguous") shape.page_size = std::stoll(flags.page_size);
    shape.threads = flags.shape.threads;
    if (!flags.shape.backend.empty()) shape.backend = flags.shape.backend.c_str();
    return bench::run_coded(shape, flags.run);
  }
  ProgressBar bar("attention");
  std::vector<bench::Case> cases;
  for (const bench::AttentionShape& shape : shapes) {
    bar.update(static_cast<std::int64_t>(cases.size()), static_cast<std::int64_t>(shapes.size()));
    KVC_ASSIGN_OR_RETURN(bench::Case measured, bench::run_attention(shape, flags.run));
    cases.push_back(std::move(measured));
  }
  return cases;
}

// "attention" measures decode unless told otherwise, "prefill" 512 queries.
void add_attention(CLI::App& bench, const char* name, const char* about, std::int64_t queries,
                   std::int64_t kv_len, int* exit_code) {
  auto flags = std::make_shared<AttentionFlags>();
  CLI::App* command = bench.add_subcommand(name, about);
  auto& shape = flags->shape;
  shape.queries = queries;
  shape.kv_len = kv_len;
  add_number(*command, "--kv-len", shape.kv_len, "Tokens of a sequence")->capture_default_str();
  add_number(*command, "--queries", shape.queries, "Queries of a sequence: its last tokens")
      ->capture_default_str();
  add_number(*command, "--heads", shape.heads, "Query heads")->capture_default_str();
  add_number(*command, "--kv-heads", shape.kv_heads, "KV heads")->capture_default_str();
  add_number(*command, "--head-dim", shape.head_dim, "Elements of a key")->capture_default_str();
  add_number(*command, "--v-head-dim", shape.v_head_dim, "Elements of a value [those of a key]");
  add_dtype(*command, flags->dtype);
  add_layout(*command, flags->layout);
  command
      ->add_option("--page-size", flags->page_size,
                   "Tokens a page holds, pages in random order; or contiguous")
      ->check(CLI::IsMember({"contiguous"}) | (decimal<std::int64_t>() & CLI::Range(1, 1 << 20)))
      ->capture_default_str();
  add_number(*command, "--batch", shape.batch, "Sequences")->capture_default_str();
  command->add_flag("--ragged", shape.ragged, "Lengths spread over 1 .. kv-len");
  add_number(*command, "--shared-prefix", shape.shared_prefix,
             "First tokens whose pages all sequences share");
  add_number(*command, "--threads", shape.threads, "Threads [those of the machine]");
  command->add_option("--backend", shape.backend, "Implementation, see `kvcache info` [the best]");
  command->add_option(
      "--cases", flags->cases,
      "A list instead of one case: decode, prefill, ladder, all; window, or coded: rows of 8 and 4 "
      "bits beside bf16");
  add_number(*command, "--repeats", flags->run.repeats,
             "Turns the medians are taken over [by time]");
  add_number(*command, "--seconds", flags->run.seconds, "Time of a case")->capture_default_str();
  command
      ->add_option_function<std::int64_t>(
          "--ring-mib", [flags](std::int64_t mib) { flags->run.ring_bytes = mib << 20; },
          "Memory for rows at most; below 8 times the last cache they are not cold")
      ->transform(decimal<std::int64_t>())
      ->check(CLI::Range(1, 1 << 20))
      ->default_str("1024");
  add_clock(*command, flags->run.clock);
  add_number(*command, "--seed", flags->seed, "Of the random rows and queries [a fresh one]");
  flags->peer.add(*command);
  add_json(*command, flags->json);
  command->callback([flags, exit_code] {
    *exit_code = flags->peer.run(flags->run.repeats, flags->json, [&](int repeats) {
      flags->run.repeats = repeats;
      return measure_attention(*flags);
    });
  });
}

struct RoofFlags {
  bench::RoofOptions options;
  bool json = false;
};

void add_roofs(CLI::App& bench, int* exit_code) {
  auto flags = std::make_shared<RoofFlags>();
  flags->options.threads = {1};
  if (default_executor().concurrency() > 1) {
    flags->options.threads.push_back(default_executor().concurrency());
  }
  CLI::App* command = bench.add_subcommand(
      "roofs", "What this machine can do: reading, copying, computing, converting, dispatching");
  add_number(*command, "--threads", flags->options.threads, "Numbers of threads")
      ->capture_default_str();
  add_number(*command, "--repeats", flags->options.repeats, "Runs the median is taken over")
      ->capture_default_str();
  add_clock(*command, flags->options.clock);
  add_json(*command, flags->json);
  command->callback([flags, exit_code] {
    ProgressBar bar("roofs");
    const Cases cases =
        bench::run_roofs(flags->options, [&](int done, int total) { bar.update(done, total); });
    bar.clear();
    if (cases.ok() && !flags->json) print("The roof is the best of the runs.\n\n");
    *exit_code = cases.ok() ? print_cases(*cases, flags->json, false) : fail(cases.status());
  });
}

void add_shape(CLI::App& command, std::string& shape) {
  command.add_option("--shape", shape, "qwen2-0.5b or llama-1b")
      ->check(CLI::IsMember({"qwen2-0.5b", "llama-1b"}))
      ->capture_default_str();
}

struct LinearFlags {
  bench::LinearOptions options;
  std::string shape = "llama-1b";
  std::vector<std::string> weights = {"f32", "bf16", "f16", "int8"};
  PeerFlags peer;
  bool json = false;
};

Cases measure_linear(LinearFlags& flags) {
  auto& options = flags.options;
  KVC_ASSIGN_OR_RETURN(options.config, bench::model_shape(flags.shape));
  options.types.clear();
  for (const std::string& name : flags.weights) options.types.push_back(parsed_weights(name));
  if (!flags.json && flags.peer.command.empty()) {
    KVC_ASSIGN_OR_RETURN(const std::string cpu, cpu_description());
    print(
        "{}; linear layers of {}, cold weights; products of {}.\n"
        "The roof is the larger of reading the weights and multiplying, of the same turn.\n\n",
        cpu, flags.shape, runner::products().name);
    std::fflush(stdout);
  }
  ProgressBar bar("linear");
  return bench::run_linear(options, [&](int done, int total) { bar.update(done, total); });
}

void add_linear(CLI::App& bench, int* exit_code) {
  auto flags = std::make_shared<LinearFlags>();
  CLI::App* command =
      bench.add_subcommand("linear", "The linear layers of a model alone, one row and many");
  auto& options = flags->options;
  add_shape(*command, flags->shape);
  command->add_option("--weights", flags->weights, "Types of the weights")
      ->delimiter(',')
      ->check(CLI::IsMember({"f32", "f16", "bf16", "int8"}))
      ->capture_default_str();
  add_activations(*command, options.activations);
  add_number(*command, "--rows", options.rows, "Tokens of a step")
      ->delimiter(',')
      ->capture_default_str();
  add_number(*command, "--repeats", options.repeats, "Turns the medians are taken over")
      ->capture_default_str();
  add_number(*command, "--threads", options.threads, "Threads [those of the machine]");
  add_clock(*command, options.clock);
  command
      ->add_option_function<std::int64_t>(
          "--ring-mib", [flags](std::int64_t mib) { flags->options.ring_bytes = mib << 20; },
          "Memory for weights at least [8 times the last cache]")
      ->transform(decimal<std::int64_t>())
      ->check(CLI::Range(1, 1 << 20));
  flags->peer.add(*command);
  add_json(*command, flags->json);
  command->callback([flags, exit_code] {
    *exit_code = flags->peer.run(flags->options.repeats, flags->json, [&](int repeats) {
      flags->options.repeats = repeats;
      return measure_linear(*flags);
    });
  });
}

struct DecodeModelFlags {
  bench::DecodeModelOptions options;
  std::string shape = "qwen2-0.5b";
  std::string weights = "bf16";
  RowFlags rows{"f16"};
  std::string cache;  // empty: dynamic, or paged where only pages hold the rows
  PeerFlags peer;
  bool json = false;
};

Cases measure_model(DecodeModelFlags& flags) {
  auto& options = flags.options;
  KVC_ASSIGN_OR_RETURN(options.config, bench::model_shape(flags.shape));
  KVC_ASSIGN_OR_RETURN(options.kv_dtype, flags.rows.parsed_dtype());
  if (flags.cache.empty()) flags.cache = options.kv_dtype.needs_pages() ? "paged" : "dynamic";
  KVC_ASSIGN_OR_RETURN(options.cache, runner::parse_history_kind(flags.cache));
  options.weights = parsed_weights(flags.weights);
  if (!flags.json && flags.peer.command.empty()) {
    print(
        "{} of random weights in {}, {} cache in {}. The roof of a prompt is operations, that of\n"
        "decoding the bytes of weights and rows.\n\n",
        flags.shape, flags.weights, flags.cache, flags.rows.kv_dtype);
    std::fflush(stdout);
  }
  ProgressBar bar("decode-model");
  return bench::run_decode_model(options, [&](int done, int total) { bar.update(done, total); });
}

void add_decode_model(CLI::App& bench, int* exit_code) {
  auto flags = std::make_shared<DecodeModelFlags>();
  CLI::App* command = bench.add_subcommand(
      "decode-model", "A model of random weights end to end: tokens/s of a prompt and of decoding");
  auto& options = flags->options;
  add_shape(*command, flags->shape);
  command->add_option("--weights", flags->weights, "Type of the weights")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "int8"}))
      ->capture_default_str();
  add_activations(*command, options.activations);
  flags->rows.add(*command, "[f16]");
  command
      ->add_option("--cache", flags->cache,
                   "Kind of cache [dynamic, or paged where only pages hold the rows]")
      ->check(CLI::IsMember({"dynamic", "static", "paged"}));
  add_number(*command, "--depths", options.depths, "Tokens stored before decoding")
      ->delimiter(',')
      ->capture_default_str();
  add_number(*command, "--prompt", options.prompt, "Tokens of the prompt")->capture_default_str();
  add_number(*command, "--tokens", options.tokens, "Tokens decoded a repeat")
      ->capture_default_str();
  add_number(*command, "--repeats", options.repeats, "Runs the median is taken over")
      ->capture_default_str();
  add_number(*command, "--threads", options.threads, "Threads [those of the machine]");
  add_clock(*command, options.clock);
  flags->peer.add(*command);
  add_json(*command, flags->json);
  command->callback([flags, exit_code] {
    *exit_code = flags->peer.run(flags->options.repeats, flags->json, [&](int repeats) {
      flags->options.repeats = repeats;
      return measure_model(*flags);
    });
  });
}

struct DigestFlags {
  ModelFlags model;
  std::string filter;
  bool json = false;
};

int run_digest(DigestFlags& flags) {
  bench::DigestOptions options;
  options.filter = flags.filter;
  auto directory = model_directory(flags.model);
  if (!directory.ok()) return fail(directory.status());
  options.model = *directory;
  options.context.executor = &default_executor();
  ProgressBar bar("digest");
  const auto digests =
      bench::run_digest(options, [&](int done, int total) { bar.update(done, total); });
  bar.clear();
  if (!digests.ok()) return fail(digests.status());
  if (flags.json) {
    print("{}\n", bench::to_json(*digests));
  } else {
    std::vector<std::vector<std::string>> rows = {{"case", "storage", "backend", "bits", "error"}};
    for (const bench::Digest& each : *digests) {
      rows.push_back({each.name, each.storage, each.backend, fmt::format("{:016x}", each.bits),
                      fmt::format("{:.1e}", each.error)});
    }
    print("{}", table(rows));
  }
  const Status status = bench::check_digests(*digests);
  return status.ok() ? 0 : fail(status);
}

void add_digest(CLI::App& bench, int* exit_code) {
  auto flags = std::make_shared<DigestFlags>();
  CLI::App* command = bench.add_subcommand(
      "digest", "A digest of the bits of every result on a fixed list, to compare two builds");
  command->add_option("--model", flags->model.model, "Whose logits [the model that ships]");
  command->add_option("--filter", flags->filter, "Only cases whose names contain this");
  add_json(*command, flags->json);
  command->callback([flags, exit_code] { *exit_code = run_digest(*flags); });
}

}  // namespace

void add_bench(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("bench", "Measure, beside the roof of this machine");
  command->require_subcommand(1);
  add_attention(*command, "attention", "Attention over cold rows, against the bound of the machine",
                1, 16384, exit_code);
  add_attention(*command, "prefill", "The same for many queries", 512, 4096, exit_code);
  add_append(*command, exit_code);
  add_prefix(*command, exit_code);
  add_files(*command, exit_code);
  add_linear(*command, exit_code);
  add_decode_model(*command, exit_code);
  add_digest(*command, exit_code);
  add_roofs(*command, exit_code);
}

}  // namespace kvcache::cli

#else

namespace kvcache::cli {

void add_bench(CLI::App&, int*) {}  // this build leaves the measurements out

}  // namespace kvcache::cli

#endif  // KVC_HAVE_BENCH
