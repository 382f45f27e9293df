#include "bench/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "bench/attention_check.h"
#include "bench/kv_ring.h"
#include "bench/roofs.h"
#include "kvcache/attention.h"
#include "kvcache/backend.h"

namespace kvcache::bench {
namespace {

// A case with its memory, planned: what is run again and again.
class Subject {
 public:
  static Result<std::unique_ptr<Subject>> create(const AttentionShape& shape,
                                                 const AttentionRun& run);

  // Attention over an entry of the ring, or over the cached rows, into out().
  Status attend(std::int64_t entry) { return run(plan_, ring_.view(entry)); }
  Status attend_cached() { return run(cached_plan_, ring_.cached_view()); }
  // The same, each sequence reading all of its rows itself. REQUIRES: a shared prefix.
  Status attend_unshared(std::int64_t entry) {
    options_.share_prefixes = false;
    const Status status = run(unshared_plan_, ring_.view(entry));
    options_.share_prefixes = true;
    return status;
  }
  Status plan() { return plan_.plan(ring_.view(0), qo_indptr_, shape_.heads, options_, context_); }
  void poison() { std::fill(out_.begin(), out_.end(), std::numeric_limits<float>::quiet_NaN()); }

  Result<double> check(std::uint64_t seed) {
    return check_attention({ring_.view(0), shape_.queries, shape_.heads, q_, out_}, seed, context_);
  }

  const AttentionShape& shape() const { return shape_; }
  const KvRing& ring() const { return ring_; }
  const std::vector<std::int32_t>& lengths() const { return lengths_; }
  const std::vector<float>& out() const { return out_; }
  const AttentionPlan& planned() const { return plan_; }
  const AttentionPlan& planned_unshared() const { return unshared_plan_; }
  Executor& executor() const { return *context_.executor; }

 private:
  Subject(const AttentionShape& shape, std::vector<std::int32_t> lengths, KvRing ring,
          std::unique_ptr<Executor> pool)
      : shape_(shape),
        lengths_(std::move(lengths)),
        ring_(std::move(ring)),
        pool_(std::move(pool)),
        rows_(shape.batch * shape.queries) {
    options_.backend = shape_.backend.empty() ? nullptr : shape_.backend.c_str();
    context_.executor = pool_ != nullptr ? pool_.get() : &default_executor();
    for (std::int64_t s = 0; s <= shape.batch; ++s) {
      qo_indptr_.push_back(static_cast<std::int32_t>(s * shape.queries));
    }
  }

  Status run(AttentionPlan& plan, const KvView& view) {
    const TensorView q(q_.data(), DType::kF32, {rows_, shape_.heads, shape_.head_dim});
    const MutableTensorView out(out_.data(), DType::kF32, {rows_, shape_.heads, shape_.v_dim()});
    return plan.run(q, view, out, {}, options_, context_);
  }

  const AttentionShape shape_;
  const std::vector<std::int32_t> lengths_;
  KvRing ring_;
  std::unique_ptr<Executor> pool_;  // null: the default one
  std::int64_t rows_;
  AttentionOptions options_;
  ExecContext context_;
  std::vector<std::int32_t> qo_indptr_;
  std::vector<float> q_, out_;
  AttentionPlan plan_, cached_plan_, unshared_plan_;
};

Result<std::unique_ptr<Subject>> Subject::create(const AttentionShape& shape,
                                                 const AttentionRun& run) {
  std::vector<std::int32_t> lengths = lengths_of(shape, run.seed);
  KVC_ASSIGN_OR_RETURN(KvRing ring, KvRing::create(shape, lengths, run.seed, run.ring_bytes));
  std::unique_ptr<Executor> pool;
  if (shape.threads > 0) {
    KVC_ASSIGN_OR_RETURN(pool, make_thread_pool(shape.threads));
  }
  std::unique_ptr<Subject> subject(
      new Subject(shape, std::move(lengths), std::move(ring), std::move(pool)));
  std::mt19937_64 random(run.seed + 1);
  std::normal_distribution<float> normal;
  subject->q_.resize(static_cast<std::size_t>(subject->rows_ * shape.heads * shape.head_dim));
  for (float& x : subject->q_) x = normal(random);
  subject->out_.resize(static_cast<std::size_t>(subject->rows_ * shape.heads * shape.v_dim()));
  KVC_RETURN_IF_ERROR(subject->plan());
  KVC_RETURN_IF_ERROR(subject->cached_plan_.plan(subject->ring_.cached_view(), subject->qo_indptr_,
                                                 shape.heads, subject->options_,
                                                 subject->context_));
  if (shape.shared_prefix > 0) {
    AttentionOptions unshared = subject->options_;
    unshared.share_prefixes = false;
    KVC_RETURN_IF_ERROR(subject->unshared_plan_.plan(subject->ring_.view(0), subject->qo_indptr_,
                                                     shape.heads, unshared, subject->context_));
  }
  return subject;
}

// Seconds of one call.
template <typename Fn>
Result<double> timed(const Meter& meter, Fn&& fn) {
  const double start = meter.now();
  KVC_RETURN_IF_ERROR(fn());
  return meter.now() - start;
}

// What the turns found, one element each.
struct Turns {
  std::vector<double> case_seconds, cached_seconds;
  std::vector<double> unshared_seconds, speedups;  // where a prefix is shared
  std::vector<double> read_rates, compute_rates, widen_rates;
  std::vector<double> read_bounds, compute_bounds, bounds, ratios;
};

// The rows of wide products go through the dot product of bf16 where a backend is named for it.
bool uses_dot(const AttentionShape& shape, const char* backend, const RoofKernels& kernels) {
  return shape.dtype == DType::kBF16 && shape.queries > 8 && kernels.dot_bf16 != nullptr &&
         std::strstr(backend, "bf16") != nullptr;
}

Result<Turns> take_turns(Subject& subject, const AttentionRun& run, const AttentionCounts& counts,
                         const RoofKernels& kernels, bool dot) {
  const Meter meter{&subject.executor(), run.clock};
  std::int64_t entry = 0;
  const auto read_once = [&] {
    const auto memory = subject.ring().memory(entry++);
    return static_cast<double>(memory.size()) / read_seconds(kernels, memory, meter);
  };
  const auto attend_once = [&] { return timed(meter, [&] { return subject.attend(entry++); }); };
  // Warms code and threads, and says how long a turn is.
  read_once();
  KVC_ASSIGN_OR_RETURN(double once, attend_once());
  KVC_ASSIGN_OR_RETURN(const double again, attend_once());
  once = std::min(once, again);
  const double burst = std::clamp(once, 0.5e-3, 20e-3);  // of a compute roof
  int repeats = run.repeats;
  if (repeats == 0) {
    repeats = static_cast<int>(std::clamp(run.seconds / (2.5 * once + 2 * burst), 5.0, 101.0));
  }

  Turns turns;
  for (int turn = 0; turn < repeats; ++turn) {
    Rates rates;
    rates.read = read_once();
    rates.compute = dot ? dot_bf16_rate(kernels, meter, burst) : fma_rate(kernels, meter, burst);
    rates.widen = widen_rate(kernels, subject.shape().dtype, meter, burst);
    KVC_ASSIGN_OR_RETURN(const double seconds, attend_once());
    KVC_ASSIGN_OR_RETURN(const double cached,
                         timed(meter, [&] { return subject.attend_cached(); }));
    if (subject.shape().shared_prefix > 0) {
      KVC_ASSIGN_OR_RETURN(const double unshared,
                           timed(meter, [&] { return subject.attend_unshared(entry++); }));
      turns.unshared_seconds.push_back(unshared);
      turns.speedups.push_back(unshared / seconds);
    }
    const Bound bound = bound_of(counts, rates);
    turns.case_seconds.push_back(seconds);
    turns.cached_seconds.push_back(cached);
    turns.read_rates.push_back(rates.read);
    turns.compute_rates.push_back(rates.compute);
    turns.widen_rates.push_back(rates.widen);
    turns.read_bounds.push_back(bound.read);
    turns.compute_bounds.push_back(bound.compute);
    turns.bounds.push_back(bound.seconds());
    turns.ratios.push_back(bound.seconds() / seconds);
  }
  return turns;
}

Case summary(const AttentionShape& shape, const AttentionCounts& counts, const Turns& turns,
             bool dot) {
  Case result;
  result.name = describe(shape);
  const bool decode = shape.queries == 1;
  const double work = decode ? static_cast<double>(counts.bytes) : counts.operations;
  const Spread seconds = spread_of(turns.case_seconds);
  result.unit = decode ? "GB/s" : "GFLOP/s";
  result.achieved = work / seconds.median / 1e9;
  result.roof = work / median(turns.bounds) / 1e9;
  result.ratio = median(turns.ratios);
  result.tolerance = dot ? 5e-3 : 1e-5;
  const double compute_rate = median(turns.compute_rates);
  result.details = {
      {"ms", seconds.median * 1e3},
      {"ms min", seconds.least * 1e3},
      {"ms max", seconds.most * 1e3},
      {"ms in L2", median(turns.cached_seconds) * 1e3},
      {"read ms", median(turns.read_bounds) * 1e3},
      {"compute ms", median(turns.compute_bounds) * 1e3},
      {"read GB/s", median(turns.read_rates) / 1e9},
      {dot ? "dot GFLOP/s" : "fma GFLOP/s", compute_rate / 1e9},
      {"of compute", counts.operations / seconds.median / compute_rate},
      {"turns", static_cast<double>(turns.case_seconds.size())},
  };
  return result;
}

}  // namespace

Result<Case> run_attention(const AttentionShape& shape, const AttentionRun& run) {
  KVC_RETURN_IF_ERROR(check_shape(shape));
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<Subject> subject, Subject::create(shape, run));
  AttentionCounts counts = count_attention(shape, subject->lengths());
  const char* backend = subject->planned().backend();
  const RoofKernels& kernels = roof_kernels(backend);
  const bool dot = uses_dot(shape, backend, kernels);
  if (dot) counts.widened = 0;

  subject->poison();
  KVC_RETURN_IF_ERROR(subject->attend(0));
  KVC_ASSIGN_OR_RETURN(double error, subject->check(run.seed));
  const std::vector<float> checked = subject->out();
  KVC_ASSIGN_OR_RETURN(const Turns turns, take_turns(*subject, run, counts, kernels, dot));
  subject->poison();
  KVC_RETURN_IF_ERROR(subject->attend(0));
  const auto differs = [&] {
    return std::memcmp(checked.data(), subject->out().data(), checked.size() * sizeof(float)) != 0;
  };
  if (differs()) error = std::numeric_limits<double>::infinity();
  if (shape.shared_prefix > 0) {
    subject->poison();
    KVC_RETURN_IF_ERROR(subject->attend_unshared(0));
    if (differs()) error = std::numeric_limits<double>::infinity();
  }

  Case result = summary(shape, counts, turns, dot);
  result.error = error;
  KVC_ASSIGN_OR_RETURN(const double plan_seconds,
                       timed(Meter{&subject->executor()}, [&] { return subject->plan(); }));
  result.details.emplace_back("plan us", plan_seconds * 1e6);
  result.details.emplace_back("rows counted", static_cast<double>(subject->planned().rows_read()));
  result.details.emplace_back("rows needed", static_cast<double>(counts.rows));
  if (shape.shared_prefix > 0) {
    const auto unshared = static_cast<double>(subject->planned_unshared().rows_read());
    result.details.emplace_back("rows unshared", unshared);
    result.details.emplace_back("times fewer bytes",
                                unshared / static_cast<double>(subject->planned().rows_read()));
    result.details.emplace_back("ms unshared", median(turns.unshared_seconds) * 1e3);
    result.details.emplace_back("times faster", median(turns.speedups));
  }
  return result;
}

}  // namespace kvcache::bench
