// PagedCache through the C door: step by step what the C++ class does, and bad input refused.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/attention.h"
#include "kvcache/cache_file.h"
#include "kvcache/paged_cache.h"
#include "kvcache_c.h"
#include "support/temp_dir.h"

namespace kvcache {
namespace {

constexpr std::int64_t kLayers = 2, kHeads = 2, kDim = 8, kPageSize = 4, kPages = 16;

kvc_tensor tensor(std::vector<float>& data, std::vector<std::int64_t> shape) {
  kvc_tensor made = {};
  made.struct_size = sizeof(made);
  made.rank = static_cast<std::int32_t>(shape.size());
  made.data = data.data();
  std::copy(shape.begin(), shape.end(), made.shape);
  return made;
}

kvc_append append_of(std::int64_t seq, std::int64_t count) {
  return {sizeof(kvc_append), seq, count, nullptr};
}

// Rows of `tokens` new tokens in a layer, different everywhere.
std::vector<float> rows_of(std::int64_t tokens, std::int64_t layer, float start) {
  std::vector<float> rows(static_cast<std::size_t>(tokens * kHeads * kDim));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = start + static_cast<float>(i) / 64 + static_cast<float>(layer) * 100;
  }
  return rows;
}

// One cache behind each door, told the same things.
class CPaged : public ::testing::Test {
 protected:
  void SetUp() override {
    config_ = {sizeof(config_),
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
    ASSERT_EQ(kvc_paged_create(&config_, &c_), KVC_OK) << kvc_last_message();
    CacheConfig config = CacheConfig::uniform(kLayers, kHeads, kDim);
    config.page_size = kPageSize;
    config.num_pages = kPages;
    auto made = PagedCache::create(config);
    ASSERT_TRUE(made.ok());
    cpp_.emplace(std::move(*made));
  }
  ~CPaged() override { kvc_paged_free(c_); }

  std::int64_t open() {
    std::int64_t seq = 0;
    EXPECT_EQ(kvc_paged_open(c_, &seq), KVC_OK);
    c_seqs_.push_back(seq);
    cpp_seqs_.push_back(cpp_->open().value());
    return seq;
  }

  kvc_step* reserve(const std::vector<kvc_append>& appends) {
    kvc_step* step = nullptr;
    EXPECT_EQ(
        kvc_paged_reserve(c_, appends.data(), static_cast<std::int64_t>(appends.size()), &step),
        KVC_OK)
        << kvc_last_message();
    return step;
  }

  void write(kvc_step* step, float start) {
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      const std::int64_t tokens = kvc_step_num_new_tokens(step);
      std::vector<float> rows = rows_of(tokens, layer, start);
      const kvc_tensor both = tensor(rows, {tokens, kHeads, kDim});
      EXPECT_EQ(kvc_paged_write(c_, step, layer, &both, &both, nullptr), KVC_OK)
          << kvc_last_message();
    }
  }

  // Appends to the i-th sequences of both caches, keeping `accepted` of the tokens.
  void append(const std::vector<std::pair<std::size_t, std::int64_t>>& counts, float start,
              const std::vector<std::int64_t>& accepted = {}) {
    std::vector<kvc_append> c_appends;
    std::vector<Append> cpp_appends;
    for (const auto& [i, count] : counts) {
      c_appends.push_back(append_of(c_seqs_[i], count));
      cpp_appends.push_back({cpp_seqs_[i], count, {}, {}});
    }
    kvc_step* step = reserve(c_appends);
    auto cpp_step = cpp_->reserve(cpp_appends);
    ASSERT_TRUE(cpp_step.ok());
    ASSERT_EQ(kvc_step_num_new_tokens(step), cpp_step->num_new_tokens());
    write(step, start);
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      std::vector<float> rows = rows_of(cpp_step->num_new_tokens(), layer, start);
      const TensorView both(rows.data(), DType::kF32, {cpp_step->num_new_tokens(), kHeads, kDim});
      ASSERT_TRUE(cpp_->write(*cpp_step, layer, both, both).ok());
    }
    std::vector<std::int32_t> slots(static_cast<std::size_t>(kvc_step_num_new_tokens(step)));
    EXPECT_EQ(
        kvc_paged_slot_mapping(c_, step, 0, slots.data(), static_cast<std::int64_t>(slots.size())),
        KVC_OK);
    EXPECT_EQ(slots, cpp_->slot_mapping(*cpp_step, 0).value());
    EXPECT_EQ(kvc_paged_commit(c_, step, accepted.empty() ? nullptr : accepted.data(),
                               static_cast<std::int64_t>(accepted.size())),
              KVC_OK)
        << kvc_last_message();
    ASSERT_TRUE(cpp_->commit(*cpp_step, accepted).ok());
    EXPECT_EQ(kvc_step_num_new_tokens(step), 0);
    kvc_step_free(step);
    expect_equal();
  }

  // Lengths, tables, rows, attention and counters of both caches.
  void expect_equal() {
    const auto num_seqs = static_cast<std::int64_t>(c_seqs_.size());
    std::vector<std::int64_t> lengths(c_seqs_.size());
    ASSERT_EQ(kvc_paged_lengths(c_, c_seqs_.data(), num_seqs, lengths.data()), KVC_OK);
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      EXPECT_EQ(lengths[i], cpp_->seq_length(cpp_seqs_[i]).value());
      for (std::int64_t layer = 0; layer < kLayers; ++layer)
        expect_equal_rows(i, layer, lengths[i]);
    }
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      std::int64_t max_pages = -1;
      ASSERT_EQ(kvc_paged_block_table(c_, layer, c_seqs_.data(), num_seqs, nullptr, 0, &max_pages),
                KVC_OK);
      const BlockTable table = cpp_->block_table(layer, cpp_seqs_).value();
      ASSERT_EQ(max_pages, table.max_pages);
      std::vector<std::int32_t> pages(table.pages.size());
      ASSERT_EQ(kvc_paged_block_table(c_, layer, c_seqs_.data(), num_seqs, pages.data(),
                                      static_cast<std::int64_t>(pages.size()), &max_pages),
                KVC_OK);
      EXPECT_EQ(pages, table.pages);
      expect_equal_attention(layer);
    }
    kvc_paged_stats stats;
    std::memset(&stats, 0x5a, sizeof(stats));  // of a struct that is written only its size counts
    stats.struct_size = sizeof(stats);
    ASSERT_EQ(kvc_paged_get_stats(c_, &stats), KVC_OK);
    const PagedStats expected = cpp_->stats();
    EXPECT_EQ(stats.pages_total, expected.pages_total);
    EXPECT_EQ(stats.pages_held, expected.pages_held);
    EXPECT_EQ(stats.pages_reserved, expected.pages_reserved);
    EXPECT_EQ(stats.pages_high_water, expected.pages_high_water);
    EXPECT_EQ(stats.pages_copied, expected.pages_copied);
    EXPECT_EQ(stats.rows_copied, expected.rows_copied);
    EXPECT_EQ(stats.sequences, expected.sequences);
    EXPECT_EQ(stats.open_steps, expected.open_steps);
    EXPECT_EQ(stats.nbytes, cpp_->nbytes());
    EXPECT_EQ(stats.reserved_bytes, cpp_->reserved_bytes());
  }

  void expect_equal_rows(std::size_t i, std::int64_t layer, std::int64_t length) {
    const auto size = static_cast<std::size_t>(kHeads * length * kDim);
    std::vector<float> k(size), v(size), k_cpp(size), v_cpp(size);
    const kvc_tensor key = tensor(k, {kHeads, length, kDim});
    const kvc_tensor value = tensor(v, {kHeads, length, kDim});
    ASSERT_EQ(kvc_paged_gather(c_, layer, c_seqs_[i], &key, &value, nullptr), KVC_OK);
    ASSERT_TRUE(cpp_->gather(layer, cpp_seqs_[i],
                             {k_cpp.data(), DType::kF32, {kHeads, length, kDim}},
                             {v_cpp.data(), DType::kF32, {kHeads, length, kDim}})
                    .ok());
    EXPECT_EQ(k, k_cpp);
    EXPECT_EQ(v, v_cpp);
  }

  void expect_equal_attention(std::int64_t layer) {
    const auto num_seqs = static_cast<std::int64_t>(c_seqs_.size());
    kvc_view* view = nullptr;
    ASSERT_EQ(kvc_paged_view(c_, layer, c_seqs_.data(), num_seqs, &view), KVC_OK);
    std::vector<float> q = rows_of(num_seqs, 0, -1), out(q.size()), out_cpp(q.size());
    const kvc_tensor q_c = tensor(q, {num_seqs, kHeads, 1, kDim});
    const kvc_tensor out_c = tensor(out, {num_seqs, kHeads, 1, kDim});
    ASSERT_EQ(kvc_attend(&q_c, nullptr, view, &out_c, nullptr, nullptr, nullptr), KVC_OK)
        << kvc_last_message();
    const auto view_cpp = cpp_->view(layer, cpp_seqs_);
    ASSERT_TRUE(view_cpp.ok());
    ASSERT_TRUE(attend({q.data(), DType::kF32, {num_seqs, kHeads, 1, kDim}}, {}, *view_cpp,
                       {out_cpp.data(), DType::kF32, {num_seqs, kHeads, 1, kDim}})
                    .ok());
    EXPECT_EQ(out, out_cpp);
    kvc_view_free(view);
  }

  std::vector<kvc_layer_spec> layers_ = std::vector<kvc_layer_spec>(
      kLayers,
      {sizeof(kvc_layer_spec), KVC_F32, KVC_F32, kHeads, kDim, kDim, 0, 0, 0, 0, 0, 0, 0, 0});
  kvc_paged_config config_ = {};
  kvc_paged* c_ = nullptr;
  std::optional<PagedCache> cpp_;
  std::vector<std::int64_t> c_seqs_;
  std::vector<SequenceId> cpp_seqs_;
};

TEST_F(CPaged, DoesWhatTheClassDoesOverAWholeLife) {
  open();
  open();
  append({{0, 6}, {1, 3}}, 1);
  append({{1, 5}}, 2, {2});

  std::int64_t forked = 0;
  ASSERT_EQ(kvc_paged_fork(c_, c_seqs_[0], 5, &forked), KVC_OK);
  c_seqs_.push_back(forked);
  cpp_seqs_.push_back(cpp_->fork(cpp_seqs_[0], 5).value());
  append({{0, 1}, {2, 3}}, 3);

  const std::vector<std::int64_t> beams = {2, 0, 0};
  ASSERT_EQ(kvc_paged_reorder(c_, c_seqs_.data(), 3, beams.data()), KVC_OK);
  ASSERT_TRUE(cpp_->reorder(cpp_seqs_, TensorView(beams.data(), DType::kI64, {3})).ok());
  expect_equal();
  append({{0, 1}, {1, 1}, {2, 1}}, 4);

  ASSERT_EQ(kvc_paged_truncate(c_, c_seqs_[0], 4), KVC_OK);
  ASSERT_TRUE(cpp_->truncate(cpp_seqs_[0], 4).ok());
  ASSERT_EQ(kvc_paged_rewind(c_, c_seqs_[1], 2), KVC_OK);
  ASSERT_TRUE(cpp_->rewind(cpp_seqs_[1], 2).ok());
  expect_equal();

  ASSERT_EQ(kvc_paged_release(c_, c_seqs_[2]), KVC_OK);
  ASSERT_TRUE(cpp_->release(cpp_seqs_[2]).ok());
  const std::int64_t released = c_seqs_.back();
  c_seqs_.pop_back();
  cpp_seqs_.pop_back();
  expect_equal();
  EXPECT_EQ(kvc_paged_release(c_, released), KVC_NOT_FOUND);
}

// Layers whose rows are coded, by the words of the header.
TEST(CPagedForms, RowsAreCodedAsTheLayerSays) {
  kvc_layer_spec layer = {};
  layer.struct_size = sizeof(layer);
  layer.num_kv_heads = 2;
  layer.k_head_dim = layer.v_head_dim = 64;
  layer.k_form = KVC_INT8;
  layer.v_form = KVC_INT4;
  kvc_paged_config config = {};
  config.struct_size = sizeof(config);
  config.layers = &layer;
  config.num_layers = 1;
  config.num_pages = 4;
  kvc_paged* cache = nullptr;
  ASSERT_EQ(kvc_paged_create(&config, &cache), KVC_OK) << kvc_last_message();
  std::int64_t seq = 0;
  ASSERT_EQ(kvc_paged_open(cache, &seq), KVC_OK);
  const kvc_append append = append_of(seq, 3);
  kvc_step* step = nullptr;
  ASSERT_EQ(kvc_paged_reserve(cache, &append, 1, &step), KVC_OK);
  std::vector<float> rows(3 * 2 * 64);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = std::sin(static_cast<float>(i));
  const kvc_tensor both = tensor(rows, {3, 2, 64});
  ASSERT_EQ(kvc_paged_write(cache, step, 0, &both, &both, nullptr), KVC_OK) << kvc_last_message();
  ASSERT_EQ(kvc_paged_commit(cache, step, nullptr, 0), KVC_OK);
  kvc_step_free(step);
  std::vector<float> key(rows.size()), value(rows.size());
  const kvc_tensor k = tensor(key, {2, 3, 64});
  const kvc_tensor v = tensor(value, {2, 3, 64});
  ASSERT_EQ(kvc_paged_gather(cache, 0, seq, &k, &v, nullptr), KVC_OK) << kvc_last_message();
  for (std::size_t head = 0; head < 2; ++head) {
    for (std::size_t token = 0; token < 3; ++token) {
      for (std::size_t d = 0; d < 64; ++d) {
        const float given = rows[(token * 2 + head) * 64 + d];
        EXPECT_NEAR(key[(head * 3 + token) * 64 + d], given, 0.005f);
        EXPECT_NEAR(value[(head * 3 + token) * 64 + d], given, 0.6f);
      }
    }
  }
  kvc_paged_stats stats = {};
  stats.struct_size = sizeof(stats);
  ASSERT_EQ(kvc_paged_get_stats(cache, &stats), KVC_OK);
  EXPECT_EQ(stats.rows_encoded, 6);
  EXPECT_EQ(stats.nbytes, 3 * 2 * (66 + 38));
  kvc_paged_free(cache);
}

TEST(CPagedForms, WhatNoFormIsIsRefusedByName) {
  kvc_layer_spec layer = {};
  layer.struct_size = sizeof(layer);
  layer.num_kv_heads = 2;
  layer.k_head_dim = layer.v_head_dim = 80;
  kvc_paged_config config = {};
  config.struct_size = sizeof(config);
  config.layers = &layer;
  config.num_layers = 1;
  config.num_pages = 4;
  kvc_paged* cache = nullptr;
  layer.k_form = 7;
  EXPECT_EQ(kvc_paged_create(&config, &cache), KVC_INVALID_ARGUMENT);
  EXPECT_STREQ(kvc_last_message(), "layers.k_form: found 7, expected 0 .. 6");
  layer.k_form = KVC_INT8;
  layer.v_rotate = 2;
  EXPECT_EQ(kvc_paged_create(&config, &cache), KVC_INVALID_ARGUMENT);
  EXPECT_STREQ(kvc_last_message(), "layers.v_rotate: found 2, expected -1 .. 1");
  layer.v_rotate = 0;
  layer.v_form = KVC_Q4_0;
  EXPECT_EQ(kvc_paged_create(&config, &cache), KVC_INVALID_ARGUMENT);
  EXPECT_STREQ(kvc_last_message(),
               "layers[0].value.dim: found 80, expected a multiple of 32 for q4_0");
  EXPECT_EQ(cache, nullptr);
}

TEST_F(CPaged, RollbackAndFreeingAStepLeaveNothingBehind) {
  const std::int64_t seq = open();
  for (const bool explicitly : {true, false}) {
    kvc_step* step = reserve({append_of(seq, 3)});
    write(step, 1);
    if (explicitly) {
      EXPECT_EQ(kvc_paged_rollback(c_, step), KVC_OK);
      EXPECT_EQ(kvc_paged_rollback(c_, step), KVC_NOT_FOUND);
    }
    kvc_step_free(step);
    std::int64_t length = -1;
    EXPECT_EQ(kvc_paged_lengths(c_, &seq, 1, &length), KVC_OK);
    EXPECT_EQ(length, 0);
  }
  kvc_paged_stats stats = {};
  stats.struct_size = sizeof(stats);
  EXPECT_EQ(kvc_paged_get_stats(c_, &stats), KVC_OK);
  EXPECT_EQ(stats.pages_held + stats.pages_reserved + stats.open_steps, 0);
  kvc_step_free(nullptr);
}

TEST_F(CPaged, AStepSeesItsOwnRowsBeforeCommit) {
  const std::int64_t seq = open();
  kvc_step* step = reserve({append_of(seq, 2)});
  kvc_view* view = nullptr;
  EXPECT_EQ(kvc_paged_step_view(c_, step, 0, &view), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(view, nullptr);
  EXPECT_EQ(kvc_paged_commit(c_, step, nullptr, 0), KVC_INVALID_ARGUMENT);
  write(step, 5);
  ASSERT_EQ(kvc_paged_step_view(c_, step, 0, &view), KVC_OK);
  const std::vector<std::int32_t> indptr = {0, 2};
  std::vector<float> q(2 * kHeads * kDim), out(q.size()), rows = rows_of(2, 0, 5);
  const kvc_tensor q_c = tensor(q, {2, kHeads, kDim}), out_c = tensor(out, {2, kHeads, kDim});
  ASSERT_EQ(kvc_attend(&q_c, indptr.data(), view, &out_c, nullptr, nullptr, nullptr), KVC_OK);
  // The first query sees the first token alone.
  EXPECT_EQ(std::vector<float>(out.begin(), out.begin() + kHeads * kDim),
            std::vector<float>(rows.begin(), rows.begin() + kHeads * kDim));
  kvc_view_free(view);
  kvc_step_free(step);
}

TEST_F(CPaged, TheTwoRefusalsForSpaceArriveAsSuch) {
  const std::int64_t a = open(), b = open();
  kvc_step* held = reserve({append_of(a, kPages * kPageSize - kPageSize)});
  kvc_step* step = nullptr;
  const kvc_append more = append_of(b, 2 * kPageSize);
  EXPECT_EQ(kvc_paged_reserve(c_, &more, 1, &step), KVC_RETRY_LATER);
  const kvc_append never = append_of(b, kPages * kPageSize + 1);
  EXPECT_EQ(kvc_paged_reserve(c_, &never, 1, &step), KVC_NEVER_FITS);
  EXPECT_EQ(step, nullptr);
  kvc_step_free(held);
}

TEST_F(CPaged, WhatBelongsToAnotherCacheIsNotFound) {
  kvc_paged* other = nullptr;
  ASSERT_EQ(kvc_paged_create(&config_, &other), KVC_OK);
  std::int64_t theirs = 0, length = -7, forked = -7;
  ASSERT_EQ(kvc_paged_open(other, &theirs), KVC_OK);
  const std::int64_t ours = open();
  kvc_step* step = reserve({append_of(ours, 1)});
  kvc_step* none = nullptr;
  kvc_view* view = nullptr;
  const kvc_append foreign = append_of(theirs, 1);
  EXPECT_EQ(kvc_paged_reserve(c_, &foreign, 1, &none), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_release(c_, theirs), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_fork(c_, theirs, 0, &forked), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_truncate(c_, theirs, 0), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_rewind(c_, theirs, 0), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_lengths(c_, &theirs, 1, &length), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_view(c_, 0, &theirs, 1, &view), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_rollback(other, step), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_commit(other, step, nullptr, 0), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_step_view(other, step, 0, &view), KVC_NOT_FOUND);
  EXPECT_EQ(length, -7);
  EXPECT_EQ(forked, -7);
  EXPECT_EQ(none, nullptr);
  EXPECT_EQ(view, nullptr);
  kvc_paged_free(other);
  kvc_step_free(step);
}

// A file that one door writes is read by the other.
TEST_F(CPaged, ASequenceGoesThroughAFile) {
  const test::TempDir folder;
  const std::string path = folder.path() + "/a.kvc";
  const std::int64_t seq = open();
  append({{0, 9}}, 1);
  std::vector<unsigned char> space(32, 7);
  ASSERT_EQ(kvc_paged_save(c_, seq, path.c_str(), space.data()), KVC_OK) << kvc_last_message();
  std::int64_t loaded = 0;
  ASSERT_EQ(kvc_paged_load(c_, path.c_str(), space.data(), nullptr, &loaded), KVC_OK)
      << kvc_last_message();
  std::int64_t length = 0;
  ASSERT_EQ(kvc_paged_lengths(c_, &loaded, 1, &length), KVC_OK);
  EXPECT_EQ(length, 9);
  PrefixNamespace name;
  name.bits.fill(std::byte{7});
  const SequenceId same = CacheFile::load(*cpp_, path, name).value();
  EXPECT_EQ(CacheFile::to_bytes(*cpp_, same, name).value(),
            CacheFile::to_bytes(*cpp_, cpp_seqs_[0], name).value());

  EXPECT_EQ(kvc_paged_load(c_, path.c_str(), nullptr, nullptr, &loaded), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(kvc_last_message()).substr(0, 10), "namespace:");
  EXPECT_EQ(kvc_paged_load(c_, (path + "x").c_str(), nullptr, nullptr, &loaded), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_paged_load(c_, nullptr, nullptr, nullptr, &loaded), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_load(c_, path.c_str(), space.data(), nullptr, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_save(c_, seq, nullptr, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_save(nullptr, seq, path.c_str(), nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_save(c_, seq + 1000, path.c_str(), nullptr), KVC_NOT_FOUND);
}

TEST_F(CPaged, AStepMayBeFreedAfterItsCache) {
  const std::int64_t seq = open();
  kvc_step* step = reserve({append_of(seq, 1)});
  kvc_paged_free(c_);
  c_ = nullptr;
  kvc_step_free(step);
}

TEST_F(CPaged, NullWrongSizesAndLittleRoomAreRefused) {
  const std::int64_t seq = open();
  append({{0, 6}}, 1);
  std::int64_t out = -7;
  kvc_step* step = nullptr;
  kvc_append one = append_of(seq, 1);
  EXPECT_EQ(kvc_paged_create(nullptr, &c_), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_create(&config_, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_open(nullptr, &out), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_open(c_, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_release(nullptr, seq), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_reserve(nullptr, &one, 1, &step), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_reserve(c_, nullptr, 1, &step), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_reserve(c_, &one, 1, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_reserve(c_, &one, -1, &step), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_commit(c_, nullptr, nullptr, 0), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_fork(c_, seq, 1, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_fork(c_, seq, 7, &out), KVC_OUT_OF_RANGE);
  EXPECT_EQ(kvc_paged_reorder(c_, &seq, 1, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_lengths(c_, nullptr, 1, &out), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_lengths(c_, &seq, 1, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_lengths(c_, &seq, -1, &out), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_paged_get_stats(c_, nullptr), KVC_INVALID_ARGUMENT);
  std::int32_t page = -7;
  EXPECT_EQ(kvc_paged_block_table(c_, 0, &seq, 1, &page, 1, &out), KVC_OUT_OF_RANGE);
  EXPECT_EQ(kvc_paged_block_table(c_, kLayers, &seq, 1, nullptr, 0, &out), KVC_OUT_OF_RANGE);
  EXPECT_EQ(page, -7);
  EXPECT_EQ(out, -7);
  one.struct_size = 3;
  EXPECT_EQ(kvc_paged_reserve(c_, &one, 1, &step), KVC_INVALID_ARGUMENT);
  kvc_paged_stats stats = {};
  EXPECT_EQ(kvc_paged_get_stats(c_, &stats), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(step, nullptr);

  kvc_paged* none = nullptr;
  kvc_paged_config wrong = config_;
  wrong.layout = 7;
  EXPECT_EQ(kvc_paged_create(&wrong, &none), KVC_INVALID_ARGUMENT);
  wrong = config_;
  wrong.layers = nullptr;
  EXPECT_EQ(kvc_paged_create(&wrong, &none), KVC_INVALID_ARGUMENT);
  wrong = config_;
  wrong.num_pages = 0;
  EXPECT_EQ(kvc_paged_create(&wrong, &none), KVC_INVALID_ARGUMENT);
  layers_[1].struct_size = sizeof(kvc_layer_spec) + 8;
  EXPECT_EQ(kvc_paged_create(&config_, &none), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(none, nullptr);
  EXPECT_EQ(kvc_step_num_new_tokens(nullptr), 0);
  expect_equal();
}

}  // namespace
}  // namespace kvcache
