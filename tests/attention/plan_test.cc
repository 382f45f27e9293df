// Plans: what they refuse, what they count, that running them allocates nothing.
#include "attention/plan.h"

#include <atomic>
#include <new>

#include "support/random_attention.h"

namespace {
std::atomic<std::int64_t> allocations{0};
}

// All forms that a sanitizer would otherwise bring its own of.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size == 0 ? 1 : size);
}
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* memory = operator new(size, std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](std::size_t size) { return operator new(size); }
void* operator new[](std::size_t size, const std::nothrow_t& tag) noexcept {
  return operator new(size, tag);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, const std::nothrow_t&) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::size_t) noexcept { operator delete(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { operator delete(memory); }

namespace kvcache::testing {
namespace {

using internal::Plan;

const ExecContext kSerial{&serial_executor(), nullptr};

class PlanTest : public ::testing::Test {
 protected:
  // Two sequences of 20 and 7 rows, 4 heads over 2, one query and two.
  PlanTest() : storage_(data_) {}

  Status plan(const AttentionOptions& options = {}, std::vector<std::int32_t> indptr = {0, 1, 3},
              std::int64_t heads = 4) {
    return plan_.plan(view_, indptr, heads, options, kSerial);
  }
  Status run(const AttentionOptions& options = {}) {
    return plan_.run(q_, view_, out_.mutable_view(), lse_.mutable_view(), options, kSerial);
  }
  static void expect_error(const Status& status, const std::string& text,
                           StatusCode code = StatusCode::kInvalidArgument) {
    EXPECT_EQ(status.code(), code) << status.to_string();
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
  }

  KvRowsData data_{{20, 7}, 2, 8, 4};
  KvStorage storage_;
  KvPart part_ = storage_.part(0);
  KvView view_ = [this] {
    KvView view = storage_.view();
    view.parts = &part_;
    return view;
  }();
  HostTensor q_{DType::kF32, {3, 4, 8}};
  HostTensor out_{DType::kF32, {3, 4, 4}};
  HostTensor lse_{DType::kF32, {3, 4}};
  Plan plan_;
};

TEST_F(PlanTest, RunWithoutAPlanIsRefused) { expect_error(run(), "no plan"); }

TEST_F(PlanTest, IndptrIsChecked) {
  expect_error(plan({}, {0, 1}), "qo_indptr: found 2 entries, expected 3");
  expect_error(plan({}, {1, 1, 3}), "qo_indptr[0]: found 1, expected 0");
  expect_error(plan({}, {0, 2, 1}), "qo_indptr[2]: found 1, expected at least 2");
}

TEST_F(PlanTest, HeadsAreChecked) {
  for (std::int64_t heads : {0, -4, 3}) {
    expect_error(plan({}, {0, 1, 3}, heads), "num_heads: found " + std::to_string(heads));
  }
}

TEST_F(PlanTest, OptionsAreChecked) {
  AttentionOptions options;
  options.window = -1;
  expect_error(plan(options), "options.window: found -1, expected >= 0");
  options = {};
  options.sink_tokens = -2;
  expect_error(plan(options), "options.sink_tokens: found -2");
  options = {};
  options.chunk = -3;
  expect_error(plan(options), "options.chunk: found -3, expected >= 0");
  options.chunk = 3;
  options.window = 2;
  expect_error(plan(options), "options.chunk: found 3, expected 0 beside options.window 2");
  options.window = 0;
  options.sink_tokens = 1;
  expect_error(plan(options), "options.chunk: found 3, expected 0 beside options.sink_tokens 1");
  options = {};
  options.softcap = -1;
  expect_error(plan(options), "options.softcap");
  options = {};
  options.scale = NAN;
  expect_error(plan(options), "options.scale");
  options = {};
  options.backend = "abacus";
  expect_error(plan(options),
               "found \"abacus\", expected one of avx512bf16, avx512, avx2, neon, portable, cuda, "
               "reference",
               StatusCode::kUnavailable);
}

TEST_F(PlanTest, MaskShapeIsChecked) {
  AttentionOptions options;
  const HostTensor good(DType::kF32, {2, 1, 2, 20});
  options.mask = good;
  EXPECT_TRUE(plan(options).ok());
  for (const std::vector<std::int64_t>& shape : std::vector<std::vector<std::int64_t>>{
           {3, 1, 2, 20}, {1, 2, 2, 20}, {1, 1, 1, 20}, {1, 1, 2, 19}, {2, 20}}) {
    const HostTensor bad(DType::kF32, shape);
    options.mask = bad;
    expect_error(plan(options), "options.mask: found [");
  }
  const HostTensor half(DType::kF16, {1, 1, 2, 20});
  options.mask = half;
  expect_error(plan(options), "options.mask");
}

TEST_F(PlanTest, TheViewIsChecked) {
  const KvView good_view = view_;
  const KvPart good_part = part_;
  const auto broken = [&](auto change, const std::string& text,
                          StatusCode code = StatusCode::kInvalidArgument) {
    view_ = good_view;
    part_ = good_part;
    change();
    expect_error(plan(), text, code);
    view_ = good_view;
    part_ = good_part;
  };
  broken([&] { view_.num_seqs = -1; }, "kv.num_seqs: found -1");
  broken([&] { view_.num_kv_heads = 0; }, "kv.num_kv_heads: found 0");
  broken([&] { view_.k_head_dim = 0; }, "kv.k_head_dim: found 0");
  broken([&] { view_.v_head_dim = -3; }, "kv.v_head_dim: found -3");
  broken([&] { view_.num_parts = -1; }, "kv.num_parts: found -1");
  broken([&] { view_.parts = nullptr; }, "kv.parts: found null");
  broken([&] { view_.device.kind = DeviceKind::kCuda; }, "kv.device", StatusCode::kUnavailable);
  broken([&] { part_.k.data = nullptr; }, "kv.parts[0].k: found null");
  broken([&] { part_.v.format.dtype = DType::kI32; }, "kv.parts[0].v.format.dtype: found i32");
  broken([&] { part_.page_size = 0; }, "kv.parts[0].page_size: found 0");
  broken([&] { part_.page_size = 19; }, "kv.parts[0].lengths[0]: found 20");
  broken([&] { part_.lengths = nullptr; }, "kv.parts[0].lengths: found null");
  const std::int32_t negative[] = {20, -7};
  broken([&] { part_.lengths = negative; }, "kv.parts[0].lengths[1]: found -7");
  broken([&] { part_.first_position = negative; }, "kv.parts[0].first_position[1]: found -7");
  broken([&] { part_.first_visible = negative; }, "kv.parts[0].first_visible[1]: found -7");
  const std::int32_t table[] = {0, 1, 2, -1};
  broken(
      [&] {
        part_.page_size = 10;
        part_.block_table = table;
        part_.block_table_stride = 1;
      },
      "block_table_stride: found 1, expected at least 2");
  const std::int32_t holes[] = {0, -1, 2, 3};
  broken(
      [&] {
        part_.page_size = 10;
        part_.block_table = holes;
        part_.block_table_stride = 2;
      },
      "kv.parts[0].block_table[0][1]: found -1, expected >= 0");
}

TEST_F(PlanTest, RunChecksTheTensors) {
  ASSERT_TRUE(plan().ok());
  ASSERT_TRUE(run().ok());
  const auto with = [&](std::vector<std::int64_t> q, std::vector<std::int64_t> out,
                        std::vector<std::int64_t> lse, DType lse_dtype = DType::kF32) {
    q_ = HostTensor(DType::kF32, q);
    out_ = HostTensor(DType::kF32, out);
    lse_ = HostTensor(lse_dtype, lse);
    return run();
  };
  expect_error(with({2, 4, 8}, {3, 4, 4}, {3, 4}), "q: found [2, 4, 8]");
  expect_error(with({3, 4, 7}, {3, 4, 4}, {3, 4}), "q: found [3, 4, 7]");
  expect_error(with({3, 4, 8}, {3, 4, 8}, {3, 4}), "out: found [3, 4, 8]");
  expect_error(with({3, 4, 8}, {3, 4, 4}, {4, 3}), "lse: found [4, 3]");
  expect_error(with({3, 4, 8}, {3, 4, 4}, {3, 4}, DType::kF16), "lse: found");
  expect_error(with({2, 4, 1, 8}, {2, 4, 1, 4}, {2, 4, 1}), "sequence 1 has 2 queries");
}

TEST_F(PlanTest, RunChecksThatTheViewIsThePlanned) {
  ASSERT_TRUE(plan().ok());
  const std::int32_t longer[] = {21, 7};
  part_.lengths = longer;
  expect_error(run(), "kv.parts[0].lengths[0]: found 21, expected 20 as planned");
  part_ = storage_.part(0);
  const std::int32_t shifted[] = {0, 3};
  part_.first_position = shifted;
  expect_error(run(), "first_position[1]: found 3, expected 0 as planned");
  part_ = storage_.part(0);
  part_.k.format.dtype = DType::kBF16;
  expect_error(run(), "kv.parts[0]");
  part_ = storage_.part(0);
  AttentionOptions options;
  options.causal = false;
  expect_error(run(options), "options.causal");
  options = {};
  options.window = 4;
  expect_error(run(options), "options.window: found 4, expected 0 as planned");
  options = {};
  options.chunk = 4;
  expect_error(run(options), "options.chunk: found 4, expected 0 as planned");
  options = {};
  options.share_prefixes = false;
  expect_error(run(options), "options.share_prefixes: found 0, expected 1 as planned");
}

TEST_F(PlanTest, FitsOnlyWhatWouldBePlannedAlike) {
  const std::vector<std::int32_t> indptr = {0, 1, 3};
  const AttentionOptions usual;
  const auto fits = [&](const AttentionOptions& options, const std::vector<std::int32_t>& queries,
                        std::int64_t heads, const ExecContext& context) {
    return plan_.check_fits(view_, queries, heads, options, context).ok();
  };
  EXPECT_FALSE(fits(usual, indptr, 4, kSerial)) << "nothing is planned";
  ASSERT_TRUE(plan().ok());
  EXPECT_TRUE(fits(usual, indptr, 4, kSerial));
  EXPECT_FALSE(fits(usual, {0, 2, 3}, 4, kSerial));
  EXPECT_FALSE(fits(usual, {0, 1}, 4, kSerial));
  EXPECT_FALSE(fits(usual, indptr, 2, kSerial));
  AttentionOptions other = usual;
  other.window = 3;
  EXPECT_FALSE(fits(other, indptr, 4, kSerial));
  other = usual;
  other.scale = 0.5f;
  EXPECT_TRUE(fits(other, indptr, 4, kSerial)) << "no part of a plan";
  other.backend = "reference";
  EXPECT_FALSE(fits(other, indptr, 4, kSerial));
  const std::unique_ptr<Executor> pool = make_thread_pool(2).value();
  EXPECT_FALSE(fits(usual, indptr, 4, {pool.get(), nullptr}));
  const std::int32_t longer[] = {20, 8};
  const std::int32_t* const lengths = std::exchange(part_.lengths, longer);
  EXPECT_FALSE(fits(usual, indptr, 4, kSerial));
  part_.lengths = lengths;
  view_.parts = nullptr;
  EXPECT_FALSE(fits(usual, indptr, 4, kSerial)) << "no view at all";
}

TEST_F(PlanTest, RunRefusesMoreThreadsThanPlanned) {
  ASSERT_TRUE(plan().ok());
  const std::unique_ptr<Executor> pool = make_thread_pool(3).value();
  expect_error(plan_.run(q_, view_, out_.mutable_view(), {}, {}, {pool.get(), nullptr}),
               "context.executor: found concurrency 3, expected at most 1");
}

TEST_F(PlanTest, AFailedPlanLeavesTheOldOne) {
  ASSERT_TRUE(plan().ok());
  const std::string backend = plan_.backend();
  AttentionOptions options;
  options.window = -1;
  EXPECT_FALSE(plan(options).ok());
  EXPECT_EQ(plan_.backend(), backend);
  EXPECT_TRUE(run().ok());
}

TEST_F(PlanTest, RowsReadAreThoseSomeQuerySees) {
  ASSERT_TRUE(plan().ok());
  EXPECT_EQ(plan_.rows_read(), 27);
  AttentionOptions options;
  options.window = 5;
  ASSERT_TRUE(plan(options).ok());
  EXPECT_EQ(plan_.rows_read(), 5 + 6);  // two queries: windows of 5, one apart
  options.sink_tokens = 2;
  ASSERT_TRUE(plan(options).ok());
  EXPECT_EQ(plan_.rows_read(), 7 + 7);  // the sinks touch the second window: all 7 rows
  const std::int32_t hidden[] = {3, 9};
  part_.first_visible = hidden;
  ASSERT_TRUE(plan().ok());
  EXPECT_EQ(plan_.rows_read(), 17 + 0);
}

TEST_F(PlanTest, RowsThatSequencesShareAreReadOnce) {
  AttentionCase c;
  c.data = KvRowsData({1300, 1100, 1100, 20}, 2, 8, 4);
  c.num_heads = 4;
  c.queries = {1, 1, 2, 1};
  c.storage.page_size = 16;
  c.storage.shared = {{}, {0, 1030}, {0, 600}, {}};
  const KvStorage stored(c.data, c.storage);
  AttentionOptions options;
  ASSERT_TRUE(plan_.plan(stored.view(), c.qo_indptr(), 4, options, kSerial).ok());
  EXPECT_EQ(plan_.rows_read(), 1300 + 1100 + 1100 + 20 - 512 - 1024);
  options.share_prefixes = false;
  ASSERT_TRUE(plan_.plan(stored.view(), c.qo_indptr(), 4, options, kSerial).ok());
  EXPECT_EQ(plan_.rows_read(), 1300 + 1100 + 1100 + 20);
  options = {};
  options.window = 5000;
  ASSERT_TRUE(plan_.plan(stored.view(), c.qo_indptr(), 4, options, kSerial).ok());
  EXPECT_EQ(plan_.rows_read(), 1300 + 1100 + 1100 + 20);
}

TEST_F(PlanTest, TwoAndThirtySequencesReadTheirPrefixOnce) {
  AttentionCase c;
  c.data = KvRowsData(std::vector<std::int32_t>(32, 8392), 1, 1, 1);
  c.queries.assign(32, 1);
  c.storage.page_size = 16;
  c.storage.shared.assign(32, {0, 8192});
  c.storage.shared[0] = {};
  const KvStorage stored(c.data, c.storage);
  ASSERT_TRUE(plan_.plan(stored.view(), c.qo_indptr(), 1, {}, kSerial).ok());
  EXPECT_EQ(plan_.rows_read(), 8192 + 32 * 200);
}

TEST_F(PlanTest, AViewThatSharesLessThanThePlannedOneIsReadAsItIs) {
  AttentionCase c;
  c.data = KvRowsData({1300, 1100}, 2, 8, 4);
  c.num_heads = 4;
  c.queries = {1, 1};
  c.storage.page_size = 16;
  c.storage.shared = {{}, {0, 1030}};
  std::mt19937 rng(3);
  c.randomize(rng);
  const KvStorage shared(c.data, c.storage);
  c.storage.shared = {};
  const KvStorage apart(c.data, c.storage);
  for (const std::string& backend : backend_names(false)) {
    const Attended expected = c.run(backend);
    const HostTensor q = tensor_of<float>({2, 4, 8}, c.q, DType::kF32);
    HostTensor out(DType::kF32, {2, 4, 4});
    const AttentionOptions options = c.options_for(backend);
    ASSERT_TRUE(plan_.plan(shared.view(), c.qo_indptr(), 4, options, kSerial).ok());
    ASSERT_TRUE(plan_.run(q, apart.view(), out.mutable_view(), {}, options, kSerial).ok());
    expect_same_bits(values(out), expected.out, backend);
  }
}

TEST_F(PlanTest, NoSequencesAndNoQueriesSucceed) {
  ASSERT_TRUE(plan({}, {0, 0, 0}).ok());
  EXPECT_EQ(plan_.rows_read(), 0);
  q_ = HostTensor(DType::kF32, {0, 4, 8});
  out_ = HostTensor(DType::kF32, {0, 4, 4});
  lse_ = HostTensor(DType::kF32, {0, 4});
  EXPECT_TRUE(run().ok());
  view_.num_seqs = 0;
  ASSERT_TRUE(plan({}, {0}).ok());
  EXPECT_TRUE(run().ok());
}

TEST(PlanMemory, PlanningTheSameShapeAndRunningAllocateNothing) {
  KvRowsData data({3000, 40, 2000}, 2, 16, 16);
  std::mt19937 rng(3);
  data.randomize(rng);
  KvStorageOptions options;
  options.page_size = 16;
  options.shared = {{}, {}, {0, 1700}};
  data.share(options.shared);
  const KvStorage storage(data, options);
  const std::unique_ptr<Executor> pool = make_thread_pool(2).value();
  const ExecContext context{pool.get(), nullptr};
  HostTensor q(DType::kF32, {4, 4, 16}), out(DType::kF32, {4, 4, 16});
  const std::vector<std::int32_t> indptr = {0, 1, 3, 4};
  for (const std::string& backend : backend_names(true)) {
    AttentionOptions attention;
    attention.backend = backend.c_str();
    Plan plan;
    ASSERT_TRUE(plan.plan(storage.view(), indptr, 4, attention, context).ok());
    ASSERT_TRUE(plan.run(q, storage.view(), out.mutable_view(), {}, attention, context).ok());
    const std::int64_t before = allocations.load();
    for (int repeat = 0; repeat < 3; ++repeat) {
      (void)plan.plan(storage.view(), indptr, 4, attention, context);
      (void)plan.run(q, storage.view(), out.mutable_view(), {}, attention, context);
    }
    EXPECT_EQ(allocations.load(), before) << backend;
  }
}

}  // namespace
}  // namespace kvcache::testing
