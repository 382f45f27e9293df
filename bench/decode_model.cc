#include "bench/decode_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "bench/roofs.h"
#include "kvcache/backend.h"
#include "runner/model/model.h"

namespace kvcache::bench {
namespace {

using runner::History;
using runner::ModelConfig;
using runner::WeightType;

// Elements of the matrices of all layers, without embedding and head.
std::int64_t layer_elements(const ModelConfig& config) {
  const std::int64_t q = config.num_heads * config.head_dim;
  const std::int64_t kv = config.num_kv_heads * config.head_dim;
  return config.num_layers * config.hidden_size * (2 * q + 2 * kv + 3 * config.intermediate_size);
}

Status check_options(const DecodeModelOptions& options) {
  const auto check = [](const char* name, std::int64_t value, std::int64_t least,
                        std::int64_t most) {
    if (value >= least && value <= most) return Status();
    return Status(StatusCode::kInvalidArgument,
                  std::string(name) + ": found " + std::to_string(value) + ", expected " +
                      std::to_string(least) + " .. " + std::to_string(most));
  };
  const std::int64_t room = options.config.max_position_embeddings;
  KVC_RETURN_IF_ERROR(check("repeats", options.repeats, 1, 1000));
  KVC_RETURN_IF_ERROR(check("prompt", options.prompt, 1, room));
  KVC_RETURN_IF_ERROR(check("tokens", options.tokens, 1, room / (options.repeats + 1)));
  KVC_RETURN_IF_ERROR(check("threads", options.threads, 0, 1024));
  for (const std::int64_t depth : options.depths) {
    KVC_RETURN_IF_ERROR(check("depth", depth, 0, room - options.tokens * (options.repeats + 1)));
  }
  return {};
}

// Counts what is handed to more than one thread.
class CountingExecutor final : public Executor {
 public:
  explicit CountingExecutor(Executor& threads) : threads_(threads) {}
  void parallel_for(std::int64_t num_tasks, TaskFn fn, void* context) noexcept override {
    if (num_tasks > 1) ++regions_;
    threads_.parallel_for(num_tasks, fn, context);
  }
  std::int32_t concurrency() const noexcept override { return threads_.concurrency(); }
  std::int64_t regions() const { return regions_; }

 private:
  Executor& threads_;
  std::int64_t regions_ = 0;  // calls come from one thread
};

// What forward passes took by the clock asked for, and what of the wall clock's went where.
struct Spent {
  double seconds = 0;
  double wall = 0, products = 0, attention = 0;
  std::int64_t regions = 0;
};

// A model, its threads, and what both need to run.
class Subject {
 public:
  static Result<std::unique_ptr<Subject>> create(const DecodeModelOptions& options) {
    std::unique_ptr<Executor> pool;
    if (options.threads > 0) {
      KVC_ASSIGN_OR_RETURN(pool, make_thread_pool(options.threads));
    }
    KVC_ASSIGN_OR_RETURN(
        runner::Model model,
        runner::Model::random(options.config, options.weights, options.seed, options.activations));
    return std::unique_ptr<Subject>(new Subject(options, std::move(model), std::move(pool)));
  }

  Result<std::unique_ptr<History>> history(runner::HistoryKind kind, std::int64_t room) const {
    runner::HistoryOptions history;
    history.kind = kind;
    history.rows = options_.kv_dtype;
    history.dtype = DType::kF16;
    history.max_length = room;
    return runner::make_history(options_.config, history);
  }

  // Stores `count` random rows in every layer, as if that many tokens had been read. Each attends
  // to itself alone (a window of 1), which costs next to nothing.
  Status fill(History& history, std::int64_t count) {
    constexpr std::int64_t kPiece = 512;
    const std::int64_t heads = options_.config.num_heads;
    const std::int64_t kv_heads = options_.config.num_kv_heads;
    const std::int64_t dim = options_.config.head_dim;
    std::vector<float> rows(static_cast<std::size_t>((heads + 2 * kv_heads) * kPiece * dim));
    std::vector<float> out(static_cast<std::size_t>(heads * kPiece * dim));
    std::normal_distribution<float> normal;
    for (float& x : rows) x = normal(random_);
    AttentionOptions attention;
    attention.window = 1;
    for (std::int64_t done = 0; done < count; done += kPiece) {
      const std::int64_t tokens = std::min(kPiece, count - done);
      const float* k = rows.data() + heads * kPiece * dim;
      const runner::AttentionInputs inputs{
          TensorView(rows.data(), DType::kF32, {tokens, heads, dim}),
          TensorView(k, DType::kF32, {tokens, kv_heads, dim}),
          TensorView(k + kv_heads * kPiece * dim, DType::kF32, {tokens, kv_heads, dim})};
      KVC_RETURN_IF_ERROR(history.begin({&tokens, 1}, {}));
      for (std::int64_t layer = 0; layer < options_.config.num_layers; ++layer) {
        const Status attended = history.attend(
            layer, inputs, MutableTensorView(out.data(), DType::kF32, {tokens, heads, dim}),
            attention, context());
        if (!attended.ok()) {
          history.abandon();
          return attended;
        }
      }
      KVC_RETURN_IF_ERROR(history.end());
    }
    return {};
  }

  std::vector<std::int32_t> random_tokens(std::int64_t count) {
    std::uniform_int_distribution<std::int32_t> token(
        0, static_cast<std::int32_t>(options_.config.vocab_size) - 1);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
    for (std::int32_t& each : tokens) each = token(random_);
    return tokens;
  }

  Status forward(std::span<const std::int32_t> tokens, History& history) {
    return model_.forward(tokens, history, state_, logits_, runner::LogitRows::kLast, {},
                          context());
  }

  // Reads random tokens, `count` of them in steps of `step`.
  Result<Spent> run(std::int64_t count, std::int64_t step, History& history) {
    const std::vector<std::int32_t> tokens = random_tokens(count);
    const runner::StepCounters before = state_.counters();
    const std::int64_t regions = executor_.regions();
    const double wall = seconds_now();
    const double start = meter().now();
    for (std::int64_t done = 0; done < count; done += step) {
      const std::int64_t now = std::min(step, count - done);
      KVC_RETURN_IF_ERROR(forward({tokens.data() + done, static_cast<std::size_t>(now)}, history));
    }
    const runner::StepCounters& after = state_.counters();
    return Spent{meter().now() - start, seconds_now() - wall,
                 after.product_seconds - before.product_seconds,
                 after.attend_seconds - before.attend_seconds, executor_.regions() - regions};
  }

  // Logits of a short text, token by token in a cache against one pass without.
  Result<double> check() {
    const std::vector<std::int32_t> tokens = random_tokens(9);
    const auto room = static_cast<std::int64_t>(tokens.size());
    KVC_ASSIGN_OR_RETURN(const auto none, history(runner::HistoryKind::kNone, room));
    KVC_RETURN_IF_ERROR(forward(tokens, *none));
    const std::vector<float> expected = logits_;
    KVC_ASSIGN_OR_RETURN(const auto cached, history(options_.cache, room));
    for (const std::int32_t& token : tokens) {
      KVC_RETURN_IF_ERROR(forward({&token, 1}, *cached));
    }
    double difference = 0;
    double norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double error = static_cast<double>(logits_[i]) - expected[i];
      difference += error * error;
      norm += static_cast<double>(expected[i]) * expected[i];
    }
    // Nothing but zeros is no answer either.
    if (!std::isfinite(norm) || norm == 0) return std::numeric_limits<double>::infinity();
    return std::sqrt(difference / norm);
  }

  Meter meter() { return {&executor_, options_.clock}; }

 private:
  Subject(const DecodeModelOptions& options, runner::Model model, std::unique_ptr<Executor> pool)
      : options_(options),
        model_(std::move(model)),
        pool_(std::move(pool)),
        executor_(pool_ != nullptr ? *pool_ : default_executor()),
        random_(options.seed) {}

  ExecContext context() {
    ExecContext context;
    context.executor = &executor_;
    return context;
  }

  const DecodeModelOptions options_;
  const runner::Model model_;
  const std::unique_ptr<Executor> pool_;
  CountingExecutor executor_;
  std::mt19937_64 random_;
  runner::ForwardState state_;
  std::vector<float> logits_;
};

double tolerance_of(const DecodeModelOptions& options) {
  if (options.weights == WeightType::kF32) return 1e-4;
  const bool coarse =
      options.weights == WeightType::kInt8 && options.activations == runner::Activations::kInt8;
  return coarse ? 1e-1 : 3e-2;  // products of other weights round their other operand too
}

// The turns of one case.
struct Turns {
  std::vector<double> rates, roofs, products, attention, rest, regions, of_read;

  // `tokens` tokens in `passes` forward passes, beside a roof in tokens a second.
  void add(const Spent& spent, double tokens, double passes, double roof) {
    rates.push_back(tokens / spent.seconds);
    roofs.push_back(roof);
    products.push_back(spent.products / passes * 1e3);
    attention.push_back(spent.attention / passes * 1e3);
    rest.push_back((spent.wall - spent.products - spent.attention) / passes * 1e3);
    regions.push_back(static_cast<double>(spent.regions) / passes);
  }

  Case summary(const std::string& name, double error, const DecodeModelOptions& options) const {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < rates.size(); ++i) ratios.push_back(rates[i] / roofs[i]);
    const Spread spread = spread_of(rates);
    Case result;
    result.name = name;
    result.achieved = spread.median;
    result.roof = median(roofs);
    result.ratio = median(ratios);
    result.unit = "tokens/s";
    result.error = error;
    result.tolerance = tolerance_of(options);
    result.details = {{"least", spread.least},         {"most", spread.most},
                      {"linear ms", median(products)}, {"attention ms", median(attention)},
                      {"rest ms", median(rest)},       {"regions", median(regions)}};
    if (!of_read.empty()) result.details.emplace_back("linear of read", median(of_read));
    return result;
  }
};

}  // namespace

Result<ModelConfig> model_shape(std::string_view name) {
  ModelConfig config;
  config.tie_word_embeddings = true;
  config.head_dim = 64;
  if (name == "qwen2-0.5b") {
    config.family = runner::ModelFamily::kQwen2;
    config.vocab_size = 151936;
    config.hidden_size = 896;
    config.intermediate_size = 4864;
    config.num_layers = 24;
    config.num_heads = 14;
    config.num_kv_heads = 2;
    config.max_position_embeddings = 32768;
    config.rope.theta = 1e6;
    config.attention_bias = true;
    return config;
  }
  if (name == "llama-1b") {
    config.family = runner::ModelFamily::kLlama;
    config.vocab_size = 128256;
    config.hidden_size = 2048;
    config.intermediate_size = 8192;
    config.num_layers = 16;
    config.num_heads = 32;
    config.num_kv_heads = 8;
    config.max_position_embeddings = 131072;
    config.rms_norm_eps = 1e-5;
    config.rope = {runner::RopeConfig::Type::kLlama3, 5e5, 32.0, 1.0, 4.0, 8192};
    return config;
  }
  return Status(StatusCode::kInvalidArgument,
                "shape: found " + std::string(name) + ", expected qwen2-0.5b or llama-1b");
}

std::int64_t decode_bytes(const ModelConfig& config, WeightType weights, std::int64_t row_bytes,
                          std::int64_t depth) {
  const std::int64_t elements = layer_elements(config) + config.vocab_size * config.hidden_size;
  return elements * size_of(weights) + depth * row_bytes;
}

double prompt_operations(const ModelConfig& config, std::int64_t tokens) {
  const auto count = static_cast<double>(tokens);
  const auto attention =
      static_cast<double>(4 * config.num_layers * config.num_heads * config.head_dim) * count *
      (count + 1) / 2;
  return 2 * static_cast<double>(layer_elements(config)) * count +
         2 * static_cast<double>(config.vocab_size * config.hidden_size) + attention;
}

Result<std::vector<Case>> run_decode_model(const DecodeModelOptions& options,
                                           const std::function<void(int, int)>& on_progress) {
  KVC_RETURN_IF_ERROR(check_options(options));
  KVC_ASSIGN_OR_RETURN(const auto layers, options.kv_dtype.layers(options.config, DType::kF16));
  const std::int64_t row_bytes = runner::bytes_per_token(layers);
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<Subject> subject, Subject::create(options));
  KVC_ASSIGN_OR_RETURN(
      const Pages pages,
      Pages::create(options.roof_bytes > 0 ? options.roof_bytes : 8 * last_level_bytes()));
  const RoofKernels& kernels = roof_kernels(nullptr);
  const Meter meter = subject->meter();
  const std::int64_t total = options.repeats * static_cast<std::int64_t>(options.depths.size() + 1);
  int done = 0;
  const auto advance = [&] {
    if (on_progress) on_progress(++done, static_cast<int>(total));
  };
  KVC_ASSIGN_OR_RETURN(const double error, subject->check());

  constexpr double kBurst = 20e-3;  // seconds
  const auto compute_rate = [&] {
    if (options.weights == WeightType::kBF16 && kernels.dot_bf16 != nullptr) {
      return dot_bf16_rate(kernels, meter, kBurst);
    }
    if (options.weights == WeightType::kInt8 && kernels.dot_int8 != nullptr) {
      const bool once = options.activations == runner::Activations::kInt8;
      return dot_int8_rate(kernels, meter, kBurst) / (once ? 1 : 2);
    }
    return fma_rate(kernels, meter, kBurst);
  };

  std::vector<Case> cases;
  Turns prompt;
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    const double compute = compute_rate();
    KVC_ASSIGN_OR_RETURN(const auto history, subject->history(options.cache, options.prompt));
    KVC_ASSIGN_OR_RETURN(const Spent spent, subject->run(options.prompt, options.prompt, *history));
    const auto count = static_cast<double>(options.prompt);
    prompt.add(spent, count, 1,
               count * compute / prompt_operations(options.config, options.prompt));
    advance();
  }
  cases.push_back(prompt.summary("prompt of " + std::to_string(options.prompt), error, options));

  const auto weight_bytes =
      static_cast<double>(decode_bytes(options.config, options.weights, row_bytes, 0));
  for (const std::int64_t depth : options.depths) {
    Turns turns;
    const std::int64_t room = depth + options.tokens * (options.repeats + 1);
    KVC_ASSIGN_OR_RETURN(const auto history, subject->history(options.cache, room));
    KVC_RETURN_IF_ERROR(subject->fill(*history, depth));
    KVC_ASSIGN_OR_RETURN(Spent spent, subject->run(options.tokens, 1, *history));  // warms
    for (int repeat = 0; repeat < options.repeats; ++repeat) {
      const double read =
          static_cast<double>(pages.bytes()) /
          read_seconds(kernels, {pages.data(), static_cast<std::size_t>(pages.bytes())}, meter);
      // Half of the tokens of this repeat are stored on average.
      const std::int64_t stored = history->length() + options.tokens / 2;
      KVC_ASSIGN_OR_RETURN(spent, subject->run(options.tokens, 1, *history));
      const auto count = static_cast<double>(options.tokens);
      turns.add(spent, count, count,
                read / static_cast<double>(
                           decode_bytes(options.config, options.weights, row_bytes, stored)));
      turns.of_read.push_back(weight_bytes * count / spent.products / read);
      advance();
    }
    cases.push_back(turns.summary("decode at depth " + std::to_string(depth), error, options));
  }
  return cases;
}

}  // namespace kvcache::bench
