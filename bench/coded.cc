#include "bench/coded.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>

#include "bench/roofs.h"
#include "kvcache/attention.h"
#include "kvcache/paged_cache.h"
#include "kvcache/row_format.h"

namespace kvcache::bench {
namespace {

constexpr std::int64_t kBlockTokens = 1024;     // of an append
constexpr std::int64_t kMostBytes = 384 << 20;  // of a form's layers
constexpr std::int64_t kAppends = 32;           // the mean of so many tokens
constexpr std::int64_t kChecked = 12;           // queries that the reference answers too
constexpr std::int64_t kRoofBytes = 48 << 20;   // read in a turn
constexpr std::int64_t kRoofMemory = 8 * kRoofBytes;

struct Form {
  RowFormat format;
  double tolerance;
};
std::vector<Form> forms_of(std::int64_t head_dim) {
  std::vector<Form> forms = {{plain(DType::kBF16), 1e-5},
                             {coded(RowFormat::kInt8), 1e-3},
                             {coded(RowFormat::kFp8E4M3), 1e-3}};
  if (head_dim % 16 == 0) forms.push_back({coded(RowFormat::kLm4), 2e-3});
  if (head_dim % 32 != 0) return forms;
  forms.push_back({coded(RowFormat::kInt4), 2e-3});
  forms.push_back({coded(RowFormat::kQ8_0), 1e-3});
  forms.push_back({coded(RowFormat::kQ4_0), 2e-3});
  return forms;
}

// Layers of one form, and what is found of it.
class Subject {
 public:
  static Result<std::unique_ptr<Subject>> create(const CodedShape& shape, const Form& form,
                                                 std::int64_t most_bytes,
                                                 std::span<const float> rows);

  // Seconds of the queries over a layer, which are counted modulo their number.
  Result<double> attend(std::int64_t layer, std::span<const float> q, const Meter& meter,
                        const ExecContext& context);
  // Seconds that a token takes a layer: reserved, written from f32 and committed over all layers.
  Result<double> append(std::span<const float> rows, const Meter& meter);
  // The relative error of the first layer's answer.
  Result<double> check(std::span<const float> q, const ExecContext& context);

  double bytes() const { return bytes_; }  // of a layer
  const Form& form() const { return form_; }
  // Who answers; known once it was checked.
  const char* backend() const { return backend_; }

  std::vector<double> seconds, speedups, appends;  // of the turns

 private:
  Subject(const CodedShape& shape, const Form& form, PagedCache cache)
      : shape_(shape), form_(form), cache_(std::move(cache)) {}
  Status attend(std::int64_t layer, std::span<const float> q, const char* backend,
                AttentionPlan* plan, std::vector<float>* out, const ExecContext& context);

  CodedShape shape_;
  Form form_;
  PagedCache cache_;
  SequenceId seq_{};
  double bytes_ = 0;
  bool planned_ = false;
  AttentionPlan plan_;
  const char* backend_ = "";
  std::vector<float> out_;
};

Result<std::unique_ptr<Subject>> Subject::create(const CodedShape& shape, const Form& form,
                                                 std::int64_t most_bytes,
                                                 std::span<const float> rows) {
  LayerSpec spec = LayerSpec::kv(shape.kv_heads, shape.head_dim, shape.head_dim, DType::kBF16);
  for (BufferSpec& buffer : spec.buffers) buffer.format = form.format;
  const std::int64_t layer_bytes =
      2 * shape.kv_heads * form.format.bytes(shape.head_dim) * shape.kv_len;
  CacheConfig config;
  config.layers.assign(
      static_cast<std::size_t>(std::clamp<std::int64_t>(most_bytes / layer_bytes, 1, 256)), spec);
  config.page_size = shape.page_size;
  config.num_pages = (shape.kv_len + kAppends + shape.page_size - 1) / shape.page_size + 1;
  KVC_ASSIGN_OR_RETURN(PagedCache cache, PagedCache::create(config));
  std::unique_ptr<Subject> subject(new Subject(shape, form, std::move(cache)));
  subject->bytes_ = static_cast<double>(layer_bytes);
  KVC_ASSIGN_OR_RETURN(subject->seq_, subject->cache_.open());
  const std::int64_t token = shape.kv_heads * shape.head_dim;
  for (std::int64_t begin = 0; begin < shape.kv_len; begin += kBlockTokens) {
    const std::int64_t count = std::min(kBlockTokens, shape.kv_len - begin);
    const Append append{subject->seq_, count};
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, subject->cache_.reserve({&append, 1}));
    for (std::size_t layer = 0; layer < config.layers.size(); ++layer) {
      // Other rows in each layer and block, from one store of numbers.
      const auto at =
          (begin / kBlockTokens * 7 + static_cast<std::int64_t>(layer) * 3) % kBlockTokens;
      const std::int64_t shapes[] = {count, shape.kv_heads, shape.head_dim};
      const TensorView k(rows.data() + at * token, DType::kF32, {shapes[0], shapes[1], shapes[2]});
      const TensorView v(rows.data() + (kBlockTokens - at) * token, DType::kF32,
                         {shapes[0], shapes[1], shapes[2]});
      KVC_RETURN_IF_ERROR(subject->cache_.write(step, static_cast<std::int64_t>(layer), k, v));
    }
    KVC_RETURN_IF_ERROR(subject->cache_.commit(step));
  }
  return subject;
}

Status Subject::attend(std::int64_t layer, std::span<const float> q, const char* backend,
                       AttentionPlan* plan, std::vector<float>* out, const ExecContext& context) {
  AttentionOptions options;
  options.backend = backend;
  const std::int64_t layers = cache_.num_layers();
  const auto queries = static_cast<std::int64_t>(q.size()) / (shape_.heads * shape_.head_dim);
  KVC_ASSIGN_OR_RETURN(const OwnedKvView view, cache_.view(layer % layers, {&seq_, 1}));
  const TensorView from(q.data(), DType::kF32, {queries, shape_.heads, shape_.head_dim});
  const MutableTensorView to(out->data(), DType::kF32, {queries, shape_.heads, shape_.head_dim});
  if (plan != &plan_ || !planned_) {
    const std::int32_t indptr[] = {0, static_cast<std::int32_t>(queries)};
    KVC_RETURN_IF_ERROR(plan->plan(view, indptr, shape_.heads, options, context));
    planned_ = planned_ || plan == &plan_;
  }
  return plan->run(from, view, to, {}, options, context);
}

Result<double> Subject::attend(std::int64_t layer, std::span<const float> q, const Meter& meter,
                               const ExecContext& context) {
  out_.assign(q.size(), std::numeric_limits<float>::quiet_NaN());
  const double start = meter.now();
  KVC_RETURN_IF_ERROR(attend(layer, q, shape_.backend, &plan_, &out_, context));
  return meter.now() - start;
}

Result<double> Subject::append(std::span<const float> rows, const Meter& meter) {
  const Append one{seq_, 1};
  const double start = meter.now();
  for (std::int64_t i = 0; i < kAppends; ++i) {
    KVC_ASSIGN_OR_RETURN(PagedCache::Step step, cache_.reserve({&one, 1}));
    const TensorView token(rows.data() + i * shape_.kv_heads * shape_.head_dim, DType::kF32,
                           {1, shape_.kv_heads, shape_.head_dim});
    for (std::int64_t layer = 0; layer < cache_.num_layers(); ++layer) {
      KVC_RETURN_IF_ERROR(cache_.write(step, layer, token, token));
    }
    KVC_RETURN_IF_ERROR(cache_.commit(step));
  }
  const double took = meter.now() - start;
  KVC_RETURN_IF_ERROR(cache_.rewind(seq_, kAppends));
  return took / static_cast<double>(kAppends * cache_.num_layers());
}

Result<double> Subject::check(std::span<const float> q, const ExecContext& context) {
  // As many queries as take the path of all.
  q = q.first(static_cast<std::size_t>(std::min(shape_.queries, kChecked) * shape_.heads *
                                       shape_.head_dim));
  std::vector<float> expected(q.size());
  AttentionPlan ours, plan;
  out_.assign(q.size(), std::numeric_limits<float>::quiet_NaN());
  KVC_RETURN_IF_ERROR(attend(0, q, shape_.backend, &ours, &out_, context));
  backend_ = ours.backend();  // a name for good
  KVC_RETURN_IF_ERROR(attend(0, q, "reference", &plan, &expected, context));
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double gap = static_cast<double>(out_[i]) - expected[i];
    difference += gap * gap;
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  const double error = std::sqrt(difference / norm);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

Case summary(const Subject& subject, const CodedShape& shape, double error,
             const std::vector<double>& read_rates) {
  const RowFormat& format = subject.form().format;
  const Spread seconds = spread_of(subject.seconds);
  Case result;
  result.name = format.is_coded() ? name_of(format.kind) : name_of(format.dtype);
  if (format.rotate) result.name += ", rotated";
  result.unit = "GB/s";
  result.achieved = subject.bytes() / seconds.median / 1e9;
  result.roof = median(read_rates) / 1e9;
  result.ratio = result.achieved / result.roof;
  result.error = error;
  // Prefill by dot products of bf16 rounds queries and weights.
  const bool dot = shape.queries > 8 && std::strstr(subject.backend(), "bf16") != nullptr;
  result.tolerance = dot ? 5e-3 : subject.form().tolerance;
  result.details = {{"ms", seconds.median * 1e3},
                    {"ms min", seconds.least * 1e3},
                    {"ms max", seconds.most * 1e3},
                    {"times faster than bf16", median(subject.speedups)},
                    {"bytes a token", static_cast<double>(2 * shape.kv_heads) *
                                          static_cast<double>(format.bytes(shape.head_dim))},
                    {"append us", median(subject.appends) * 1e6},
                    {"turns", static_cast<double>(subject.seconds.size())}};
  return result;
}

}  // namespace

Result<std::vector<Case>> run_coded(const CodedShape& shape, const AttentionRun& run) {
  if (shape.queries < 1 || shape.queries > shape.kv_len) {
    return Status(StatusCode::kInvalidArgument, "queries: found " + std::to_string(shape.queries) +
                                                    ", expected 1 .. " +
                                                    std::to_string(shape.kv_len));
  }
  const int repeats = run.repeats > 0 ? run.repeats : 9;
  std::mt19937_64 random(run.seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(
      static_cast<std::size_t>(2 * kBlockTokens * shape.kv_heads * shape.head_dim));
  for (float& x : rows) x = normal(random);
  std::vector<float> q(static_cast<std::size_t>(shape.queries * shape.heads * shape.head_dim));
  for (float& x : q) x = normal(random);
  std::unique_ptr<Executor> pool;
  if (shape.threads > 0) {
    KVC_ASSIGN_OR_RETURN(pool, make_thread_pool(shape.threads));
  }
  ExecContext context;
  context.executor = pool != nullptr ? pool.get() : &default_executor();
  const Meter meter{context.executor, run.clock};

  std::vector<std::unique_ptr<Subject>> subjects;
  std::vector<double> errors;
  for (const Form& form : forms_of(shape.head_dim)) {
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<Subject> subject,
                         Subject::create(shape, form, std::min(run.ring_bytes, kMostBytes), rows));
    KVC_ASSIGN_OR_RETURN(const double error, subject->check(q, context));
    errors.push_back(error);
    subjects.push_back(std::move(subject));
  }
  const std::vector<std::byte> memory(
      static_cast<std::size_t>(std::min(run.ring_bytes, kRoofMemory)), std::byte{1});
  const auto piece = std::min(memory.size(), static_cast<std::size_t>(kRoofBytes));
  const RoofKernels& kernels = roof_kernels(subjects.front()->backend());
  std::vector<double> rates;
  std::size_t place = 0;
  for (int turn = -1; turn < repeats; ++turn) {  // the first warms code and threads
    double bf16 = 0;
    for (const std::unique_ptr<Subject>& subject : subjects) {
      const std::span<const std::byte> to_read(memory.data() + place, piece);
      place = place + 2 * piece <= memory.size() ? place + piece : 0;
      const double read = read_seconds(kernels, to_read, meter);
      KVC_ASSIGN_OR_RETURN(const double seconds, subject->attend(turn + 1, q, meter, context));
      if (subject == subjects.front()) bf16 = seconds;
      KVC_ASSIGN_OR_RETURN(const double appended, subject->append(rows, meter));
      if (turn < 0) continue;
      subject->appends.push_back(appended);
      rates.push_back(static_cast<double>(piece) / read);
      subject->seconds.push_back(seconds);
      subject->speedups.push_back(bf16 / seconds);
    }
  }
  std::vector<Case> cases;
  for (std::size_t i = 0; i < subjects.size(); ++i) {
    cases.push_back(summary(*subjects[i], shape, errors[i], rates));
  }
  return cases;
}

}  // namespace kvcache::bench
