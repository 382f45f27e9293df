// What attention writes to shares no memory with what it reads.
#include "attention/check.h"

#include "support/attention_case.h"

namespace kvcache::testing {
namespace {

class AttentionMemory : public ::testing::Test {
 protected:
  static constexpr std::int64_t kQueries = 5, kHeads = 4, kDim = 8;

  AttentionMemory() : data_({40, 17}, 2, kDim, kDim) {
    std::mt19937 rng(3);
    data_.randomize(rng);
    for (std::size_t i = 0; i < sizeof(floats_) / sizeof(float); ++i) {
      floats_[i] = static_cast<float>(i % 13) / 13;
    }
  }

  static MutableTensorView rows(float* data, std::int64_t row_stride = kHeads * kDim) {
    MutableTensorView view(data, DType::kF32, {kQueries, kHeads, kDim});
    view.strides[0] = row_stride;
    return view;
  }
  static MutableTensorView logs(float* data) { return {data, DType::kF32, {kQueries, kHeads}}; }

  // What run() says of these tensors; `name: found ..., expected ...` or "".
  std::string run(const KvStorage& kv, const TensorView& q, const MutableTensorView& out,
                  const MutableTensorView& lse = {}, const AttentionOptions& options = {}) {
    const std::vector<std::int32_t> indptr = {0, 1, kQueries};
    internal::Plan plan;
    const ExecContext context{&serial_executor(), nullptr};
    Status status = plan.plan(kv.view(), indptr, kHeads, options, context);
    EXPECT_TRUE(status.ok()) << status.to_string();
    status = plan.run(q, kv.view(), out, lse, options, context);
    EXPECT_TRUE(status.ok() || status.code() == StatusCode::kInvalidArgument);
    return status.message();
  }

  KvRowsData data_;
  KvStorage kv_{data_};
  float floats_[4096];
  float other_[4096] = {};
  const TensorView q_ = rows(floats_);
};

TEST_F(AttentionMemory, OutIsQOrApartFromIt) {
  EXPECT_EQ(run(kv_, q_, rows(other_)), "");
  EXPECT_EQ(run(kv_, q_, rows(floats_)), "");
  const std::string shared = "out: found memory of q, expected q itself or memory of its own";
  EXPECT_EQ(run(kv_, q_, rows(floats_ + kHeads * kDim)), shared);
  EXPECT_EQ(run(kv_, q_, rows(floats_ + 1)), shared);
  EXPECT_EQ(run(kv_, q_, rows(floats_ + kQueries * kHeads * kDim - 1)), shared);
  EXPECT_EQ(run(kv_, q_, rows(floats_, 2 * kHeads * kDim)), shared);  // q's rows in other places
  EXPECT_EQ(run(kv_, q_, rows(floats_ + kQueries * kHeads * kDim)), "");
  // Rows that interleave are apart.
  const std::int64_t stride = 2 * kHeads * kDim;
  EXPECT_EQ(run(kv_, rows(floats_, stride), rows(floats_ + kHeads * kDim, stride)), "");
}

TEST_F(AttentionMemory, OutHasNoElementTwice) {
  EXPECT_EQ(run(kv_, q_, rows(other_, 0)),
            "out: found elements that share memory, expected each in its own");
  MutableTensorView lse = logs(other_ + 1024);
  lse.strides[1] = 0;
  EXPECT_EQ(run(kv_, q_, rows(other_), lse),
            "lse: found elements that share memory, expected each in its own");
}

TEST_F(AttentionMemory, LseIsApartFromAll) {
  EXPECT_EQ(run(kv_, q_, rows(other_), logs(other_ + 1024)), "");
  EXPECT_EQ(run(kv_, q_, rows(other_), logs(other_ + 9)),
            "lse: found memory of out, expected memory of its own");
  EXPECT_EQ(run(kv_, q_, rows(other_), logs(floats_)),
            "lse: found memory of q, expected memory of its own");
  // [.., D + 1]: a result and its logarithm in one row.
  MutableTensorView out(other_, DType::kF32, {kQueries, kHeads, kDim + 1});
  out.shape[2] = kDim;
  MutableTensorView lse(other_ + kDim, DType::kF32, {kQueries, kHeads, kDim + 1});
  lse.rank = 2;
  EXPECT_EQ(run(kv_, q_, out, lse), "");
}

TEST_F(AttentionMemory, NothingIsWrittenToRowsThatAreRead) {
  for (const std::int32_t page_size : {0, 1, 16}) {
    for (const std::uint32_t shuffle : {0u, 7u}) {
      KvStorageOptions options;
      options.page_size = page_size;
      options.shuffle = shuffle;
      KvStorage kv(data_, options);
      const KvPart& part = kv.view().parts[0];
      const auto at = [](const RowsView& stored, std::int64_t page, std::int64_t slot) {
        return reinterpret_cast<float*>(const_cast<std::byte*>(stored.row_at(page, 0, slot)));
      };
      for (const RowsView& stored : {part.k, part.v}) {
        float* const first = at(stored, part.block_table == nullptr ? 1 : part.block_table[0], 0);
        EXPECT_EQ(run(kv, q_, rows(first)),
                  "out: found memory of the keys and values, expected memory of its own");
        EXPECT_EQ(run(kv, q_, rows(other_), logs(first)),
                  "lse: found memory of the keys and values, expected memory of its own");
      }
      if (page_size != 16) continue;
      // The second sequence has one row in its last page: the slots behind it are nobody's.
      float* const free = at(part.v, part.block_table[part.block_table_stride + 1], 1);
      EXPECT_NE(run(kv, q_, rows(other_), logs(free - 1)), "");
      EXPECT_EQ(run(kv, q_, rows(other_), logs(free)), "");
    }
  }
}

TEST_F(AttentionMemory, NothingIsWrittenToOptionsThatAreRead) {
  AttentionOptions options;
  options.mask = TensorView(floats_ + 1000, DType::kF32, {1, 1, kQueries, 40});
  EXPECT_EQ(run(kv_, q_, rows(other_), {}, options), "");
  EXPECT_EQ(run(kv_, q_, rows(floats_ + 1100), {}, options),
            "out: found memory of the mask, expected memory of its own");
  options.mask = {};
  options.alibi_slopes = floats_ + 1000;
  EXPECT_EQ(run(kv_, q_, rows(floats_ + 1000), {}, options),
            "out: found memory of the ALiBi slopes, expected memory of its own");
  options.alibi_slopes = nullptr;
  options.sinks = floats_ + 1000;
  EXPECT_EQ(run(kv_, q_, rows(other_), logs(floats_ + 1000), options),
            "lse: found memory of the sinks, expected memory of its own");
}

TEST_F(AttentionMemory, AFailingRunWritesNothing) {
  std::copy(std::begin(floats_), std::end(floats_), other_);
  EXPECT_NE(run(kv_, q_, rows(floats_ + 1)), "");
  EXPECT_TRUE(std::equal(std::begin(floats_), std::end(floats_), other_));
}

// The bits of a result on q's own rows are those of a result elsewhere.
TEST(AttentionOnQ, GivesTheSameBits) {
  for (const std::string& backend : backend_names(true)) {
    for (const std::vector<std::int32_t>& queries :
         {std::vector<std::int32_t>{1, 1, 1}, {4, 8, 1}, {60, 3, 20}}) {
      for (const std::int32_t v_dim : {40, 24}) {
        AttentionCase c;
        c.data = KvRowsData({1300, 700, 60}, 2, 40, v_dim);
        c.data.share({{}, {0, 640}, {}});
        c.storage.page_size = 16;
        c.storage.shared = {{}, {0, 640}, {}};
        c.num_heads = 6;
        c.queries = queries;
        std::mt19937 rng(17);
        c.randomize(rng);
        c.data.share(c.storage.shared);
        const KvStorage stored(c.data, c.storage);
        const std::unique_ptr<Executor> pool = make_thread_pool(3).value();
        const Attended expected = c.run_on(stored.view(), backend, *pool);

        const std::vector<std::int32_t> indptr = c.qo_indptr();
        HostTensor q = tensor_of<float>({indptr.back(), c.num_heads, 40}, c.q, DType::kF32);
        MutableTensorView out = q.mutable_view();
        out.shape[2] = v_dim;
        const AttentionOptions options = c.options_for(backend);
        const ExecContext context{pool.get(), nullptr};
        internal::Plan plan;
        ASSERT_TRUE(plan.plan(stored.view(), indptr, c.num_heads, options, context).ok());
        const Status status = plan.run(q, stored.view(), out, {}, options, context);
        ASSERT_TRUE(status.ok()) << status.to_string();
        expect_same_bits(values(out), expected.out, backend + ", " + std::to_string(v_dim));
      }
    }
  }
}

}  // namespace
}  // namespace kvcache::testing
