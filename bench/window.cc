#include "bench/window.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "bench/meter.h"
#include "bench/roofs.h"
#include "kvcache/attention.h"
#include "kvcache/paged_cache.h"

namespace kvcache::bench {
namespace {

constexpr std::int64_t kFull = 0, kWindowed = 1;  // layers

// Seconds of a step's parts.
struct StepSeconds {
  double tables = 0, plan = 0, run = 0;
  double all() const { return tables + plan + run; }
};

class Subject {
 public:
  static Result<std::unique_ptr<Subject>> create(const WindowShape& shape, std::int64_t more,
                                                 std::mt19937_64& random);

  // One token more of `seq`, attended to in a layer: `window` 0 sees all.
  Result<StepSeconds> step(SequenceId seq, std::int64_t layer, std::int64_t window,
                           const Meter& meter, std::vector<float>* out, const char* backend);

  // `count` tokens more, committed.
  Status append(SequenceId seq, std::int64_t count, std::mt19937_64& random);

  SequenceId near{}, far{};
  const char* backend() const { return plan_.backend(); }  // of the last step
  Executor& executor() const { return *context_.executor; }

 private:
  explicit Subject(PagedCache cache) : cache_(std::move(cache)) {}

  WindowShape shape_;
  PagedCache cache_;
  std::unique_ptr<Executor> pool_;  // null: the default one
  ExecContext context_;
  std::vector<float> q_;
  std::vector<BFloat16> rows_;  // of some tokens, taken in turn
  AttentionPlan plan_;
};

constexpr std::int64_t kBlockTokens = 2048;  // of an append

Result<std::unique_ptr<Subject>> Subject::create(const WindowShape& shape, std::int64_t more,
                                                 std::mt19937_64& random) {
  const LayerSpec full =
      LayerSpec::kv(shape.kv_heads, shape.head_dim, shape.head_dim, DType::kBF16);
  CacheConfig config;
  config.layers = {full, full.living({shape.window})};
  config.page_size = shape.page_size;
  config.num_pages = (shape.near + shape.far + 2 * (kBlockTokens + more)) / shape.page_size + 4;
  KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(config));
  std::unique_ptr<Subject> subject(new Subject(std::move(cache)));
  subject->shape_ = shape;
  if (shape.threads > 0) {
    KVC_ASSIGN_OR_RETURN(subject->pool_, make_thread_pool(shape.threads));
  }
  subject->context_.executor =
      subject->pool_ != nullptr ? subject->pool_.get() : &default_executor();
  std::normal_distribution<float> normal;
  subject->q_.resize(static_cast<std::size_t>(shape.heads * shape.head_dim));
  for (float& x : subject->q_) x = normal(random);
  subject->rows_.resize(
      static_cast<std::size_t>(2 * kBlockTokens * shape.kv_heads * shape.head_dim));
  for (BFloat16& x : subject->rows_) x = to_bfloat16(normal(random));
  KVC_ASSIGN_OR_RETURN(subject->near, subject->cache_.open());
  KVC_ASSIGN_OR_RETURN(subject->far, subject->cache_.open());
  KVC_RETURN_IF_ERROR(subject->append(subject->near, shape.near, random));
  KVC_RETURN_IF_ERROR(subject->append(subject->far, shape.far, random));
  return subject;
}

Status Subject::append(SequenceId seq, std::int64_t count, std::mt19937_64& random) {
  for (; count > 0; count -= kBlockTokens) {
    const std::int64_t now = std::min(kBlockTokens, count);
    const Append wanted{seq, now};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache_.reserve({&wanted, 1}));
    const std::int64_t token = shape_.kv_heads * shape_.head_dim;
    const auto at = static_cast<std::int64_t>(random() % kBlockTokens);
    const TensorView k(rows_.data() + at * token, DType::kBF16,
                       {now, shape_.kv_heads, shape_.head_dim});
    const TensorView v(rows_.data() + (kBlockTokens - at) * token, DType::kBF16,
                       {now, shape_.kv_heads, shape_.head_dim});
    KVC_RETURN_IF_ERROR(cache_.write(step, kFull, k, v, context_));
    KVC_RETURN_IF_ERROR(cache_.write(step, kWindowed, k, v, context_));
    KVC_RETURN_IF_ERROR(cache_.commit(step));
  }
  return {};
}

Result<StepSeconds> Subject::step(SequenceId seq, std::int64_t layer, std::int64_t window,
                                  const Meter& meter, std::vector<float>* out,
                                  const char* backend) {
  const Append append{seq, 1};
  KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache_.reserve({&append, 1}));
  const TensorView row(rows_.data(), DType::kBF16, {1, shape_.kv_heads, shape_.head_dim});
  KVC_RETURN_IF_ERROR(cache_.write(step, layer, row, row, context_));
  AttentionOptions options;
  options.window = static_cast<std::int32_t>(window);
  options.backend = backend;
  const std::int32_t indptr[] = {0, 1};
  const TensorView q(q_.data(), DType::kF32, {1, shape_.heads, shape_.head_dim});
  out->assign(q_.size(), std::numeric_limits<float>::quiet_NaN());
  const MutableTensorView to(out->data(), DType::kF32, {1, shape_.heads, shape_.head_dim});
  const double start = meter.now();
  KVC_ASSIGN_OR_RETURN(const OwnedKvView view, cache_.view(step, layer));
  const double viewed = meter.now();
  KVC_RETURN_IF_ERROR(plan_.plan(view, indptr, shape_.heads, options, context_));
  const double planned = meter.now();
  KVC_RETURN_IF_ERROR(plan_.run(q, view, to, {}, options, context_));
  const double end = meter.now();
  KVC_RETURN_IF_ERROR(cache_.rollback(step));
  return StepSeconds{viewed - start, planned - viewed, end - planned};
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double gap = std::abs(static_cast<double>(a[i]) - b[i]);
    most = gap <= most ? most : gap;  // a NaN too
  }
  return std::isnan(most) ? std::numeric_limits<double>::infinity() : most;
}

// Of the windowed layer: the reference's answer, and full rows under the window to the bit.
Result<double> check_window(Subject& subject, SequenceId seq, const WindowShape& shape,
                            const Meter& meter) {
  std::vector<float> windowed, full, expected;
  KVC_RETURN_IF_ERROR(
      subject.step(seq, kWindowed, shape.window, meter, &windowed, shape.backend).status());
  KVC_RETURN_IF_ERROR(subject.step(seq, kFull, shape.window, meter, &full, shape.backend).status());
  KVC_RETURN_IF_ERROR(
      subject.step(seq, kWindowed, shape.window, meter, &expected, "reference").status());
  if (windowed != full) return std::numeric_limits<double>::infinity();
  return difference(windowed, expected);
}

Case summary(const std::string& name, const std::vector<StepSeconds>& turns, double bytes,
             const std::vector<double>& read_rates) {
  std::vector<double> all, tables, plans;
  for (const StepSeconds& turn : turns) {
    all.push_back(turn.all());
    tables.push_back(turn.tables);
    plans.push_back(turn.plan);
  }
  const Spread seconds = spread_of(all);
  Case result;
  result.name = name;
  result.unit = "GB/s";
  result.achieved = bytes / seconds.median / 1e9;
  result.roof = median(read_rates) / 1e9;
  result.ratio = result.achieved / result.roof;
  result.details = {{"ms", seconds.median * 1e3},     {"ms min", seconds.least * 1e3},
                    {"ms max", seconds.most * 1e3},   {"tables us", median(tables) * 1e6},
                    {"plan us", median(plans) * 1e6}, {"turns", static_cast<double>(turns.size())}};
  return result;
}

}  // namespace

Result<std::vector<Case>> run_window(const WindowShape& shape, const AttentionRun& run) {
  constexpr std::int64_t kApart = 37;  // tokens from turn to turn: 14 of them go over a cut
  const int repeats = run.repeats > 0 ? run.repeats : 28;
  std::mt19937_64 random(run.seed);
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<Subject> subject,
                       Subject::create(shape, (repeats + 1) * kApart, random));
  const Meter meter{&subject->executor(), run.clock};
  KVC_ASSIGN_OR_RETURN(const double near_error,
                       check_window(*subject, subject->near, shape, meter));
  KVC_ASSIGN_OR_RETURN(const double far_error, check_window(*subject, subject->far, shape, meter));

  const double row = static_cast<double>(2 * shape.kv_heads * shape.head_dim * 2);
  const auto window_bytes = static_cast<std::size_t>(row * static_cast<double>(shape.window));
  const std::vector<std::byte> memory(8 * window_bytes, std::byte{1});  // to read, and to evict by
  std::vector<StepSeconds> near, far, full;
  std::vector<double> rates, of_near, of_full;
  std::vector<float> out;
  KVC_RETURN_IF_ERROR(subject->step(subject->far, kFull, 0, meter, &out, shape.backend).status());
  const RoofKernels& kernels = roof_kernels(subject->backend());
  for (int turn = -1; turn < repeats; ++turn) {  // the first warms code and threads
    // Full rows, and memory of no layer, leave nothing of the windows in any cache.
    KVC_ASSIGN_OR_RETURN(const StepSeconds all,
                         subject->step(subject->far, kFull, 0, meter, &out, shape.backend));
    const auto windowed = [&](SequenceId seq) {
      return subject->step(seq, kWindowed, shape.window, meter, &out, shape.backend);
    };
    const bool near_first = turn % 2 == 0;
    KVC_ASSIGN_OR_RETURN(const StepSeconds first,
                         windowed(near_first ? subject->near : subject->far));
    const double read = read_seconds(kernels, memory, meter);
    KVC_ASSIGN_OR_RETURN(const StepSeconds second,
                         windowed(near_first ? subject->far : subject->near));
    KVC_RETURN_IF_ERROR(subject->append(subject->near, kApart, random));
    KVC_RETURN_IF_ERROR(subject->append(subject->far, kApart, random));
    if (turn < 0) continue;
    const StepSeconds& near_step = near_first ? first : second;
    const StepSeconds& far_step = near_first ? second : first;
    near.push_back(near_step);
    far.push_back(far_step);
    full.push_back(all);
    rates.push_back(static_cast<double>(memory.size()) / read);
    of_near.push_back(far_step.all() / near_step.all());
    of_full.push_back(all.all() / far_step.all());
  }
  const std::string window = "window " + std::to_string(shape.window) + " at ";
  std::vector<Case> cases;
  cases.push_back(
      summary(window + std::to_string(shape.near), near, static_cast<double>(window_bytes), rates));
  cases.back().error = near_error;
  cases.push_back(
      summary(window + std::to_string(shape.far), far, static_cast<double>(window_bytes), rates));
  cases.back().error = far_error;
  cases.back().details.emplace_back("of the nearer", median(of_near));
  cases.back().details.emplace_back("times faster than full", median(of_full));
  cases.push_back(summary("full rows at " + std::to_string(shape.far), full,
                          row * static_cast<double>(shape.far + 1), rates));
  return cases;
}

}  // namespace kvcache::bench
