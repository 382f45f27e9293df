// Attention through the C door: the bits of the C++ calls, and bad input refused.
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/attention.h"
#include "kvcache/status.h"
#include "kvcache/version.h"
#include "kvcache_c.h"
#include "support/c_header.h"
#include "support/kv_fixture.h"

namespace kvcache {
namespace {

using testing::KvRowsData;
using testing::KvStorage;
using testing::KvStorageOptions;

static_assert(KVC_OK == static_cast<int>(StatusCode::kOk));
static_assert(KVC_INVALID_ARGUMENT == static_cast<int>(StatusCode::kInvalidArgument));
static_assert(KVC_OUT_OF_RANGE == static_cast<int>(StatusCode::kOutOfRange));
static_assert(KVC_NOT_FOUND == static_cast<int>(StatusCode::kNotFound));
static_assert(KVC_RETRY_LATER == static_cast<int>(StatusCode::kRetryLater));
static_assert(KVC_NEVER_FITS == static_cast<int>(StatusCode::kNeverFits));
static_assert(KVC_UNSUPPORTED == static_cast<int>(StatusCode::kUnsupported));
static_assert(KVC_OUT_OF_MEMORY == static_cast<int>(StatusCode::kOutOfMemory));
static_assert(KVC_CORRUPT == static_cast<int>(StatusCode::kCorrupt));
static_assert(KVC_IO == static_cast<int>(StatusCode::kIo));
static_assert(KVC_UNAVAILABLE == static_cast<int>(StatusCode::kUnavailable));
static_assert(KVC_INTERNAL == static_cast<int>(StatusCode::kInternal));
static_assert(KVC_F32 == static_cast<int>(DType::kF32) && KVC_F16 == static_cast<int>(DType::kF16));
static_assert(KVC_BF16 == static_cast<int>(DType::kBF16));
static_assert(KVC_I32 == static_cast<int>(DType::kI32) && KVC_I64 == static_cast<int>(DType::kI64));
static_assert(KVC_HND == static_cast<int>(Layout::kHND) &&
              KVC_NHD == static_cast<int>(Layout::kNHD));

constexpr std::int32_t kHeads = 6, kKvHeads = 2, kDim = 16, kValueDim = 24;

kvc_tensor tensor(std::vector<float>& data, std::vector<std::int64_t> shape) {
  kvc_tensor made = {};
  made.struct_size = sizeof(made);
  made.dtype = KVC_F32;
  made.rank = static_cast<std::int32_t>(shape.size());
  made.data = data.data();
  std::copy(shape.begin(), shape.end(), made.shape);
  return made;
}

kvc_part part_of(const KvPart& from) {
  kvc_part part = {};
  part.struct_size = sizeof(part);
  part.k_dtype = static_cast<std::int32_t>(from.k.format.dtype);
  part.v_dtype = static_cast<std::int32_t>(from.v.format.dtype);
  part.page_size = from.page_size;
  part.k = from.k.data;
  part.v = from.v.data;
  part.k_page_stride = from.k.page_stride / size_of(from.k.format.dtype);
  part.k_head_stride = from.k.head_stride / size_of(from.k.format.dtype);
  part.k_token_stride = from.k.token_stride / size_of(from.k.format.dtype);
  part.v_page_stride = from.v.page_stride / size_of(from.v.format.dtype);
  part.v_head_stride = from.v.head_stride / size_of(from.v.format.dtype);
  part.v_token_stride = from.v.token_stride / size_of(from.v.format.dtype);
  part.block_table = from.block_table;
  part.block_table_stride = from.block_table_stride;
  part.lengths = from.lengths;
  part.first_position = from.first_position;
  part.first_visible = from.first_visible;
  part.positions = from.positions;
  part.positions_stride = from.positions_stride;
  return part;
}

// Random rows of three sequences, their queries, and both doors' views of them.
class CAttention : public ::testing::Test {
 protected:
  ~CAttention() override { kvc_view_free(view_); }

  void make(const KvStorageOptions& options) {
    std::mt19937 rng(7);
    KvRowsData data({70, 3, 529}, kKvHeads, kDim, kValueDim);
    data.randomize(rng);
    storage_.emplace(data, options);
    std::normal_distribution<float> normal;
    for (float& x : q_) x = normal(rng);
    kvc_view_free(view_);
    view_ = nullptr;
    parts_.clear();
    for (int p = 0; p < kv().num_parts; ++p) parts_.push_back(part_of(kv().parts[p]));
    desc_ = {sizeof(kvc_view_desc), kv().num_seqs, kKvHeads, kDim, kValueDim,
             kv().num_parts,        parts_.data()};
    ASSERT_EQ(kvc_view_create(&desc_, &view_), KVC_OK) << kvc_last_message();
  }

  const KvView& kv() const { return storage_->view(); }

  void SetUp() override { make({}); }

  struct Answer {
    std::vector<float> out = std::vector<float>(kQueries * kHeads * kValueDim);
    std::vector<float> lse = std::vector<float>(kQueries * kHeads);
    friend bool operator==(const Answer&, const Answer&) = default;
  };

  Answer ask_cpp(const AttentionOptions& options = {}) {
    Answer answer;
    const Status status = attend({q_.data(), DType::kF32, {kQueries, kHeads, kDim}}, indptr_, kv(),
                                 {answer.out.data(), DType::kF32, {kQueries, kHeads, kValueDim}},
                                 {answer.lse.data(), DType::kF32, {kQueries, kHeads}}, options);
    EXPECT_TRUE(status.ok()) << status.to_string();
    return answer;
  }

  Answer ask_c(const kvc_attention_options* options = nullptr,
               const kvc_executor* executor = nullptr) {
    Answer answer;
    const kvc_tensor q = tensor(q_, {kQueries, kHeads, kDim});
    const kvc_tensor out = tensor(answer.out, {kQueries, kHeads, kValueDim});
    const kvc_tensor lse = tensor(answer.lse, {kQueries, kHeads});
    EXPECT_EQ(kvc_attend(&q, indptr_.data(), view_, &out, &lse, options, executor), KVC_OK)
        << kvc_last_message();
    return answer;
  }

  static constexpr std::int32_t kQueries = 21;
  std::vector<float> q_ = std::vector<float>(kQueries * kHeads * kDim);
  std::vector<std::int32_t> indptr_ = {0, 1, 3, 21};
  std::optional<KvStorage> storage_;
  std::vector<kvc_part> parts_;
  kvc_view_desc desc_ = {};
  kvc_view* view_ = nullptr;
};

TEST_F(CAttention, GivesTheBitsOfTheCppCallOverEveryKindOfRows) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const std::int32_t page_size : {0, 16}) {
      for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
        KvStorageOptions options;
        options.k_dtype = options.v_dtype = dtype;
        options.page_size = page_size;
        options.layout = layout;
        options.shuffle = 3;
        make(options);
        EXPECT_EQ(ask_c(), ask_cpp()) << name_of(dtype) << page_size << name_of(layout);
      }
    }
  }
}

TEST_F(CAttention, PartsPositionsAndHiddenRowsArePassedOn) {
  KvStorageOptions options;
  options.page_size = 8;
  options.parts = {{50, 1, 400}, {20, 2, 129}};
  options.first_position = {5, 0, 100};
  options.first_visible = {3, 0, 17};
  make(options);
  kvc_attention_options c = {};
  c.struct_size = sizeof(c);
  c.window = 40;
  c.sink_tokens = 4;
  AttentionOptions cpp;
  cpp.window = 40;
  cpp.sink_tokens = 4;
  EXPECT_EQ(ask_c(&c), ask_cpp(cpp));
}

TEST_F(CAttention, EveryOptionIsPassedOn) {
  std::vector<float> slopes(kHeads, 0.1f), sinks(kHeads, 0.5f), mask(18 * 529, 0.25f);
  mask[3] = -INFINITY;
  const kvc_tensor mask_tensor = tensor(mask, {1, 1, 18, 529});
  using C = kvc_attention_options;
  using Cpp = AttentionOptions;
  const std::vector<std::pair<void (*)(C*), void (*)(Cpp*)>> plain = {
      {[](C* c) { c->scale = 0.5f; }, [](Cpp* o) { o->scale = 0.5f; }},
      {[](C* c) { c->softcap = 3; }, [](Cpp* o) { o->softcap = 3; }},
      {[](C* c) { c->bidirectional = 1; }, [](Cpp* o) { o->causal = false; }},
      {[](C* c) { c->window = 9; }, [](Cpp* o) { o->window = 9; }},
      {[](C* c) { c->reproducible = 1; }, [](Cpp* o) { o->reproducible = true; }},
      {[](C* c) { c->backend = "reference"; }, [](Cpp* o) { o->backend = "reference"; }},
  };
  const Answer without = ask_cpp();
  for (std::size_t i = 0; i < plain.size(); ++i) {
    C c = {};
    c.struct_size = sizeof(c);
    Cpp cpp;
    plain[i].first(&c);
    plain[i].second(&cpp);
    EXPECT_EQ(ask_c(&c), ask_cpp(cpp)) << i;
  }
  C c = {};
  c.struct_size = sizeof(c);
  c.alibi_slopes = slopes.data();
  c.sinks = sinks.data();
  c.mask = &mask_tensor;
  Cpp cpp;
  cpp.alibi_slopes = slopes.data();
  cpp.sinks = sinks.data();
  cpp.mask = TensorView(mask.data(), DType::kF32, {1, 1, 18, 529});
  EXPECT_EQ(ask_c(&c), ask_cpp(cpp));
  EXPECT_NE(ask_c(&c), without);
  c.partial = 1;
  cpp.partial = true;
  EXPECT_EQ(ask_c(&c), ask_cpp(cpp));
}

TEST_F(CAttention, APlanRunsManyTimes) {
  kvc_plan* plan = nullptr;
  ASSERT_EQ(kvc_plan_create(&plan), KVC_OK);
  EXPECT_STREQ(kvc_plan_backend(plan), "");
  Answer answer;
  const kvc_tensor q = tensor(q_, {kQueries, kHeads, kDim});
  const kvc_tensor out = tensor(answer.out, {kQueries, kHeads, kValueDim});
  const kvc_tensor lse = tensor(answer.lse, {kQueries, kHeads});
  EXPECT_EQ(kvc_plan_run(plan, &q, view_, &out, &lse, nullptr, nullptr), KVC_INVALID_ARGUMENT);
  ASSERT_EQ(kvc_plan_prepare(plan, view_, indptr_.data(), kHeads, nullptr, nullptr), KVC_OK);
  for (int layer = 0; layer < 3; ++layer) {
    answer = Answer();
    const kvc_tensor again = tensor(answer.out, {kQueries, kHeads, kValueDim});
    const kvc_tensor again_lse = tensor(answer.lse, {kQueries, kHeads});
    ASSERT_EQ(kvc_plan_run(plan, &q, view_, &again, &again_lse, nullptr, nullptr), KVC_OK);
    EXPECT_EQ(answer, ask_cpp());
  }
  EXPECT_EQ(kvc_plan_rows_read(plan), 70 + 3 + 529);
  EXPECT_STRNE(kvc_plan_backend(plan), "");
  kvc_plan_free(plan);
}

TEST_F(CAttention, RunsOnTheExecutorOfTheHost) {
  struct Host {
    std::int64_t tasks = 0;
    static void run(void* self, std::int64_t num_tasks, kvc_task_fn fn, void* context) {
      for (std::int64_t task = num_tasks; task-- > 0;) fn(context, task, 0);
      static_cast<Host*>(self)->tasks += num_tasks;
    }
  } host;
  const kvc_executor executor = {sizeof(executor), 1, &host, Host::run};
  EXPECT_EQ(ask_c(nullptr, &executor), ask_cpp());
  EXPECT_GT(host.tasks, 0);
}

TEST_F(CAttention, ADenseQueryNeedsNoIndptr) {
  std::vector<float> q(3 * kHeads * 2 * kDim, 0.5f), out(3 * kHeads * 2 * kValueDim), again = out;
  const kvc_tensor q_c = tensor(q, {3, kHeads, 2, kDim});
  const kvc_tensor out_c = tensor(out, {3, kHeads, 2, kValueDim});
  ASSERT_EQ(kvc_attend(&q_c, nullptr, view_, &out_c, nullptr, nullptr, nullptr), KVC_OK);
  ASSERT_TRUE(attend({q.data(), DType::kF32, {3, kHeads, 2, kDim}}, {}, kv(),
                     {again.data(), DType::kF32, {3, kHeads, 2, kValueDim}})
                  .ok());
  EXPECT_EQ(out, again);
}

TEST_F(CAttention, StridesOfTheCallerAreTaken) {
  std::vector<float> wide(q_.size() * 2, NAN);
  for (std::size_t i = 0; i < q_.size(); ++i) wide[2 * i] = q_[i];
  kvc_tensor q = tensor(wide, {kQueries, kHeads, kDim});
  q.strides[0] = 2 * kHeads * kDim;
  q.strides[1] = 2 * kDim;
  q.strides[2] = 2;
  Answer answer;
  const kvc_tensor out = tensor(answer.out, {kQueries, kHeads, kValueDim});
  const kvc_tensor lse = tensor(answer.lse, {kQueries, kHeads});
  ASSERT_EQ(kvc_attend(&q, indptr_.data(), view_, &out, &lse, nullptr, nullptr), KVC_OK)
      << kvc_last_message();
  EXPECT_EQ(answer, ask_cpp());
}

TEST(CMerge, JoinsPartsAndAppliesSinks) {
  std::vector<float> a = {1, 2}, b = {3, 4}, lse_a = {0.5f}, lse_b = {1.5f}, sinks = {0.25f};
  std::vector<float> out(2), lse(1), out_cpp(2), lse_cpp(1);
  const kvc_tensor a_c = tensor(a, {1, 1, 2}), b_c = tensor(b, {1, 1, 2});
  const kvc_tensor lse_a_c = tensor(lse_a, {1, 1}), lse_b_c = tensor(lse_b, {1, 1});
  const kvc_tensor out_c = tensor(out, {1, 1, 2}), lse_c = tensor(lse, {1, 1});
  ASSERT_EQ(kvc_merge(&a_c, &lse_a_c, &b_c, &lse_b_c, &out_c, &lse_c), KVC_OK);
  ASSERT_EQ(kvc_finish(&out_c, &lse_c, sinks.data(), 1), KVC_OK);
  const auto rows = [](std::vector<float>& x) {
    return MutableTensorView(x.data(), DType::kF32, {1, 1, 2});
  };
  const auto sums = [](std::vector<float>& x) {
    return MutableTensorView(x.data(), DType::kF32, {1, 1});
  };
  ASSERT_TRUE(merge(rows(a), sums(lse_a), rows(b), sums(lse_b), rows(out_cpp), sums(lse_cpp)).ok());
  ASSERT_TRUE(finish(rows(out_cpp), sums(lse_cpp), sinks).ok());
  EXPECT_EQ(out, out_cpp);
  EXPECT_EQ(lse, lse_cpp);
}

TEST_F(CAttention, NullWhereSomethingMustBeIsRefusedByName) {
  const kvc_tensor q = tensor(q_, {kQueries, kHeads, kDim});
  const std::int32_t* indptr = indptr_.data();
  kvc_plan* plan = nullptr;
  ASSERT_EQ(kvc_plan_create(&plan), KVC_OK);
  const auto refused = [](kvc_status status, const char* name) {
    EXPECT_EQ(status, KVC_INVALID_ARGUMENT) << name;
    EXPECT_EQ(std::string(kvc_last_message()).rfind(name, 0), 0u) << kvc_last_message();
  };
  refused(kvc_attend(nullptr, indptr, view_, &q, nullptr, nullptr, nullptr), "q");
  refused(kvc_attend(&q, indptr, nullptr, &q, nullptr, nullptr, nullptr), "kv");
  refused(kvc_attend(&q, indptr, view_, nullptr, nullptr, nullptr, nullptr), "out");
  refused(kvc_plan_prepare(nullptr, view_, indptr, kHeads, nullptr, nullptr), "plan");
  refused(kvc_plan_prepare(plan, nullptr, indptr, kHeads, nullptr, nullptr), "like");
  refused(kvc_plan_prepare(plan, view_, nullptr, kHeads, nullptr, nullptr), "qo_indptr");
  refused(kvc_plan_run(nullptr, &q, view_, &q, nullptr, nullptr, nullptr), "plan");
  refused(kvc_plan_create(nullptr), "plan");
  refused(kvc_view_create(nullptr, &view_), "desc");
  refused(kvc_view_create(&desc_, nullptr), "view");
  refused(kvc_merge(&q, nullptr, &q, &q, &q, &q), "lse_a");
  refused(kvc_finish(&q, &q, nullptr, kHeads), "sinks");
  desc_.parts = nullptr;
  kvc_view* none = nullptr;
  refused(kvc_view_create(&desc_, &none), "parts");
  EXPECT_EQ(none, nullptr);
  kvc_plan_free(plan);
  kvc_plan_free(nullptr);
  kvc_view_free(nullptr);
  EXPECT_EQ(kvc_plan_rows_read(nullptr), 0);
  EXPECT_STREQ(kvc_plan_backend(nullptr), "");
}

TEST_F(CAttention, AStructSizeThatIsNoSizeIsRefused) {
  const kvc_tensor out = tensor(q_, {kQueries, kHeads, kDim});
  for (const std::uint32_t size : {0u, 4u, std::uint32_t{sizeof(kvc_tensor) - 1}, 4097u, ~0u}) {
    kvc_tensor q = out;
    q.struct_size = size;
    EXPECT_EQ(kvc_attend(&q, indptr_.data(), view_, &out, nullptr, nullptr, nullptr),
              KVC_INVALID_ARGUMENT)
        << size;
    EXPECT_NE(std::string(kvc_last_message()).find("q.struct_size: found " + std::to_string(size)),
              std::string::npos);
  }
  parts_[0].struct_size = 8;
  kvc_view* none = nullptr;
  EXPECT_EQ(kvc_view_create(&desc_, &none), KVC_INVALID_ARGUMENT);
}

TEST_F(CAttention, AStructOfALaterVersionWorksWhileItsNewFieldsAreZero) {
  struct Later {
    kvc_attention_options now;
    std::int64_t unknown;
  } later = {};
  later.now.struct_size = sizeof(later);
  EXPECT_EQ(ask_c(&later.now), ask_cpp());
  later.unknown = 1;
  const kvc_tensor q = tensor(q_, {kQueries, kHeads, kDim});
  EXPECT_EQ(kvc_attend(&q, indptr_.data(), view_, &q, nullptr, &later.now, nullptr),
            KVC_UNSUPPORTED);
}

TEST_F(CAttention, WrongFieldsAreRefused) {
  const kvc_tensor good = tensor(q_, {kQueries, kHeads, kDim});
  const auto attend_with = [&](const kvc_tensor& q) {
    return kvc_attend(&q, indptr_.data(), view_, &good, nullptr, nullptr, nullptr);
  };
  kvc_tensor q = good;
  q.rank = 5;
  EXPECT_EQ(attend_with(q), KVC_INVALID_ARGUMENT);
  q.rank = -1;
  EXPECT_EQ(attend_with(q), KVC_INVALID_ARGUMENT);
  q = good;
  q.dtype = 9;
  EXPECT_EQ(attend_with(q), KVC_INVALID_ARGUMENT);
  q = good;
  q.shape[0] = -3;
  EXPECT_EQ(attend_with(q), KVC_INVALID_ARGUMENT);
  q = good;
  q.shape[0] = q.shape[1] = INT64_MAX;
  EXPECT_EQ(attend_with(q), KVC_INVALID_ARGUMENT);
  q = good;
  q.data = nullptr;
  EXPECT_EQ(attend_with(q), KVC_INVALID_ARGUMENT);
  kvc_attention_options options = {};
  options.struct_size = sizeof(options);
  options.backend = "no such backend";
  EXPECT_EQ(kvc_attend(&good, indptr_.data(), view_, &good, nullptr, &options, nullptr),
            KVC_UNAVAILABLE);
  kvc_executor executor = {sizeof(executor), 0, nullptr, nullptr};
  EXPECT_EQ(kvc_attend(&good, indptr_.data(), view_, &good, nullptr, nullptr, &executor),
            KVC_INVALID_ARGUMENT);
  executor.concurrency = 1;
  EXPECT_EQ(kvc_attend(&good, indptr_.data(), view_, &good, nullptr, nullptr, &executor),
            KVC_INVALID_ARGUMENT);
  kvc_view* none = nullptr;
  desc_.num_seqs = -1;
  EXPECT_EQ(kvc_view_create(&desc_, &none), KVC_INVALID_ARGUMENT);
  desc_.num_seqs = 3;
  parts_[0].k_dtype = 77;
  EXPECT_EQ(kvc_view_create(&desc_, &none), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(none, nullptr);
}

TEST(CHeader, CSeesTheStructsAsCppDoes) {
  const std::vector<std::size_t> expected = {sizeof(kvc_tensor),
                                             sizeof(kvc_executor),
                                             sizeof(kvc_part),
                                             sizeof(kvc_view_desc),
                                             sizeof(kvc_layer_spec),
                                             sizeof(kvc_append),
                                             sizeof(kvc_attention_options),
                                             sizeof(kvc_paged_config),
                                             sizeof(kvc_paged_stats),
                                             sizeof(kvc_memory),
                                             offsetof(kvc_part, positions_stride),
                                             offsetof(kvc_tensor, strides)};
  std::vector<std::size_t> seen(expected.size());
  EXPECT_EQ(header_test_sizes(seen.data(), seen.size()), expected.size());
  EXPECT_EQ(seen, expected);
  EXPECT_EQ(header_test_call_from_c(), KVC_INVALID_ARGUMENT);
}

TEST(CStatus, NamesVersionAndMessageArePlainText) {
  EXPECT_STREQ(kvc_version(), version());
  EXPECT_STREQ(kvc_status_name(KVC_OUT_OF_RANGE), "out of range");
  EXPECT_EQ(kvc_plan_create(nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_STREQ(kvc_last_message(), "plan: found null, expected one");
}

TEST(CStatus, TheLastMessageBelongsToItsThread) {
  EXPECT_EQ(kvc_plan_create(nullptr), KVC_INVALID_ARGUMENT);
  std::string elsewhere = "unset";
  std::thread([&] { elsewhere = kvc_last_message(); }).join();
  EXPECT_EQ(elsewhere, "");
  EXPECT_STRNE(kvc_last_message(), "");
}

}  // namespace
}  // namespace kvcache
