// PagedBatch through the C door: what the C++ class does, and bad input refused.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/attention.h"
#include "kvcache/paged_batch.h"
#include "kvcache_c.h"

namespace kvcache {
namespace {

constexpr std::int64_t kLayers = 2, kHeads = 2, kDim = 4, kPageSize = 4, kPages = 16;

kvc_tensor tensor(std::vector<float>& data, std::vector<std::int64_t> shape) {
  kvc_tensor made = {};
  made.struct_size = sizeof(made);
  made.rank = static_cast<std::int32_t>(shape.size());
  made.data = data.data();
  std::copy(shape.begin(), shape.end(), made.shape);
  return made;
}

std::vector<float> rows_of(std::int64_t tokens, float start) {
  std::vector<float> rows(static_cast<std::size_t>(tokens * kHeads * kDim));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = start + static_cast<float>(i) / 64;
  return rows;
}

// One batch behind each door, told the same things.
class CBatch : public ::testing::Test {
 protected:
  void SetUp() override {
    kvc_paged_config config = {sizeof(config),
                               KVC_HND,
                               layers_.data(),
                               kLayers,
                               kPageSize,
                               kPages,
                               0,
                               nullptr,
                               0,
                               0,
                               0,
                               0};
    ASSERT_EQ(kvc_paged_create(&config, &cache_), KVC_OK) << kvc_last_message();
    ASSERT_EQ(kvc_batch_create(cache_, 0, &c_), KVC_OK) << kvc_last_message();
    CacheConfig same = CacheConfig::uniform(kLayers, kHeads, kDim);
    same.page_size = kPageSize;
    same.num_pages = kPages;
    auto shared = std::make_shared<PagedCache>(PagedCache::create(same).value());
    cpp_.emplace(PagedBatch::create(shared).value());
  }
  ~CBatch() override {
    kvc_batch_free(c_);
    kvc_paged_free(cache_);
  }

  void update(std::int64_t batch, std::int64_t tokens, float start) {
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      std::vector<float> rows = rows_of(batch * tokens, start + static_cast<float>(layer) * 100);
      const kvc_tensor both = tensor(rows, {batch, kHeads, tokens, kDim});
      EXPECT_EQ(kvc_batch_update(c_, layer, &both, &both, nullptr), KVC_OK) << kvc_last_message();
      const TensorView view(rows.data(), DType::kF32, {batch, kHeads, tokens, kDim});
      ASSERT_TRUE(cpp_->update(layer, view, view).ok());
    }
    expect_equal();
  }

  void step(const std::vector<std::int64_t>& counts, float start,
            const std::vector<std::int64_t>& accepted = {}) {
    const auto rows = static_cast<std::int64_t>(counts.size());
    EXPECT_EQ(kvc_batch_begin(c_, counts.data(), rows, nullptr, 0), KVC_OK) << kvc_last_message();
    ASSERT_TRUE(cpp_->begin(counts).ok());
    const std::int64_t tokens = cpp_->num_new_tokens();
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      std::vector<float> data = rows_of(tokens, start + static_cast<float>(layer) * 100);
      const kvc_tensor both = tensor(data, {tokens, kHeads, kDim});
      EXPECT_EQ(kvc_batch_write(c_, layer, &both, &both, nullptr), KVC_OK) << kvc_last_message();
      const TensorView view(data.data(), DType::kF32, {tokens, kHeads, kDim});
      ASSERT_TRUE(cpp_->write(layer, view, view).ok());
    }
    EXPECT_EQ(kvc_batch_commit(c_, accepted.empty() ? nullptr : accepted.data(), rows), KVC_OK)
        << kvc_last_message();
    ASSERT_TRUE(cpp_->commit(accepted).ok());
    expect_equal();
  }

  // Rows, lengths, and attention over a view of every layer.
  void expect_equal() {
    const std::int64_t rows = kvc_batch_num_rows(c_);
    ASSERT_EQ(rows, cpp_->num_rows());
    std::vector<float> query = rows_of(rows, 1);
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      std::vector<std::int64_t> lengths(static_cast<std::size_t>(rows));
      ASSERT_EQ(kvc_batch_lengths(c_, layer, lengths.data(), rows), KVC_OK);
      for (std::int64_t row = 0; row < rows; ++row) {
        EXPECT_EQ(lengths[static_cast<std::size_t>(row)], cpp_->seq_length(row, layer).value());
      }
      kvc_view* view = nullptr;
      ASSERT_EQ(kvc_batch_view(c_, layer, &view), KVC_OK) << kvc_last_message();
      const kvc_tensor q = tensor(query, {rows, kHeads, 1, kDim});
      std::vector<float> c_out(query.size()), cpp_out(query.size());
      const kvc_tensor out = tensor(c_out, {rows, kHeads, 1, kDim});
      EXPECT_EQ(kvc_attend(&q, nullptr, view, &out, nullptr, nullptr, nullptr), KVC_OK)
          << kvc_last_message();
      kvc_view_free(view);
      const OwnedKvView same = cpp_->view(layer).value();
      ASSERT_TRUE(attend(TensorView(query.data(), DType::kF32, {rows, kHeads, 1, kDim}), {}, same,
                         MutableTensorView(cpp_out.data(), DType::kF32, {rows, kHeads, 1, kDim}))
                      .ok());
      EXPECT_EQ(c_out, cpp_out);
    }
  }

  std::vector<kvc_layer_spec> layers_ = std::vector<kvc_layer_spec>(
      kLayers, kvc_layer_spec{sizeof(kvc_layer_spec), KVC_F32, KVC_F32, kHeads, kDim, kDim, 0, 0, 0,
                              0, 0, 0, 0, 0});
  kvc_paged* cache_ = nullptr;
  kvc_batch* c_ = nullptr;
  std::optional<PagedBatch> cpp_;
};

TEST_F(CBatch, DoesWhatTheClassDoes) {
  update(2, 3, 0);
  step({1, 2}, 10);
  step({3, 1}, 20, {1, 0});
  const std::vector<std::int64_t> chosen = {1, 0, 1};
  EXPECT_EQ(kvc_batch_select(c_, chosen.data(), 3), KVC_OK);
  ASSERT_TRUE(cpp_->select(TensorView(chosen.data(), DType::kI64, {3})).ok());
  expect_equal();
  EXPECT_EQ(kvc_batch_repeat(c_, 2), KVC_OK);
  ASSERT_TRUE(cpp_->repeat(2).ok());
  EXPECT_EQ(kvc_batch_release(c_, 4), KVC_OK);
  ASSERT_TRUE(cpp_->release(4).ok());
  expect_equal();
  const std::vector<std::int64_t> drop = {0, 1, 2, 0, 3};
  EXPECT_EQ(kvc_batch_rewind(c_, drop.data(), 5), KVC_OK);
  ASSERT_TRUE(cpp_->rewind(drop).ok());
  expect_equal();
  EXPECT_EQ(kvc_batch_truncate(c_, 2), KVC_OK);
  ASSERT_TRUE(cpp_->truncate(2).ok());
  expect_equal();
  std::vector<float> key(5 * kHeads * 2 * kDim), value(key.size()), same_key(key), same_value(key);
  const kvc_tensor k = tensor(key, {5, kHeads, 2, kDim}), v = tensor(value, {5, kHeads, 2, kDim});
  EXPECT_EQ(kvc_batch_gather(c_, 1, &k, &v, nullptr), KVC_OK) << kvc_last_message();
  ASSERT_TRUE(cpp_->gather(1, MutableTensorView(same_key.data(), DType::kF32, {5, kHeads, 2, kDim}),
                           MutableTensorView(same_value.data(), DType::kF32, {5, kHeads, 2, kDim}))
                  .ok());
  EXPECT_EQ(key, same_key);
  EXPECT_EQ(value, same_value);
  EXPECT_EQ(kvc_batch_add(c_, 1), KVC_OK);
  EXPECT_EQ(kvc_batch_num_rows(c_), 6);
  kvc_batch_reset(c_);
  EXPECT_EQ(kvc_batch_num_rows(c_), 0);
}

TEST_F(CBatch, AForkOutlivesItsBatchAndTheHandleOfTheCache) {
  update(2, 3, 0);
  kvc_batch* fork = nullptr;
  ASSERT_EQ(kvc_batch_fork(c_, &fork), KVC_OK);
  kvc_batch_free(c_);
  kvc_paged_free(cache_);
  cache_ = nullptr;
  c_ = fork;
  expect_equal();
}

TEST_F(CBatch, BadInputIsRefusedByName) {
  kvc_batch* made = nullptr;
  EXPECT_EQ(kvc_batch_create(nullptr, 0, &made), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_batch_create(cache_, 0, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_batch_create(cache_, -1, &made), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(made, nullptr);
  EXPECT_EQ(kvc_batch_begin(nullptr, nullptr, 0, nullptr, 0), KVC_INVALID_ARGUMENT);
  EXPECT_STREQ(kvc_last_message(), "batch: found null, expected one");
  EXPECT_EQ(kvc_batch_begin(c_, nullptr, 1, nullptr, 0), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_batch_update(c_, 0, nullptr, nullptr, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_batch_view(c_, 0, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_batch_fork(c_, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_batch_select(c_, nullptr, 2), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_batch_lengths(c_, 0, nullptr, 2), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_batch_release(c_, 0), KVC_OUT_OF_RANGE);
  EXPECT_EQ(kvc_batch_commit(c_, nullptr, 0), KVC_INVALID_ARGUMENT);
  kvc_batch_reset(nullptr);
  kvc_batch_free(nullptr);
  EXPECT_EQ(kvc_batch_num_rows(nullptr), 0);
}

}  // namespace
}  // namespace kvcache
