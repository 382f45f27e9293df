// Layers that drop rows, and views with holes, through the C door.
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache_c.h"

namespace kvcache {
namespace {

constexpr std::int64_t kHeads = 1, kDim = 4;

kvc_layer_spec layer_of(std::int64_t window, std::int64_t chunk, std::int32_t sinks) {
  return {sizeof(kvc_layer_spec),
          KVC_F32,
          KVC_F32,
          kHeads,
          kDim,
          kDim,
          window,
          chunk,
          sinks,
          0,
          0,
          0,
          0,
          0};
}

kvc_status create(const std::vector<kvc_layer_spec>& layers, std::int64_t rewind_tokens,
                  kvc_paged** cache) {
  kvc_paged_config config = {};
  config.struct_size = sizeof(config);
  config.layers = layers.data();
  config.num_layers = static_cast<std::int64_t>(layers.size());
  config.page_size = 2;
  config.num_pages = 64;
  config.rewind_tokens = rewind_tokens;
  return kvc_paged_create(&config, cache);
}

class CWindows : public ::testing::Test {
 protected:
  static constexpr std::int64_t kLayers = 3;

  void SetUp() override {
    ASSERT_EQ(create({layer_of(0, 0, 0), layer_of(3, 0, 1), layer_of(0, 4, 0)}, 0, &cache_), KVC_OK)
        << kvc_last_message();
    ASSERT_EQ(kvc_paged_open(cache_, &seq_), KVC_OK);
  }
  void TearDown() override { kvc_paged_free(cache_); }

  static kvc_tensor tensor(std::vector<float>& data, std::int64_t tokens) {
    return {sizeof(kvc_tensor), KVC_F32, 3, data.data(), {tokens, kHeads, kDim}, {}};
  }

  // Appends `count` tokens whose rows hold their position, and attends to them in every layer.
  std::vector<std::vector<float>> append(std::int64_t count) {
    std::int64_t length = 0;
    EXPECT_EQ(kvc_paged_lengths(cache_, &seq_, 1, &length), KVC_OK);
    const kvc_append wanted = {sizeof(kvc_append), seq_, count, nullptr};
    kvc_step* step = nullptr;
    EXPECT_EQ(kvc_paged_reserve(cache_, &wanted, 1, &step), KVC_OK) << kvc_last_message();
    std::vector<std::vector<float>> results;
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      std::vector<float> rows(static_cast<std::size_t>(count * kDim));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i] = 0.1f * static_cast<float>(length * kDim + static_cast<std::int64_t>(i));
      }
      std::vector<float> out(rows.size());
      const kvc_tensor k = tensor(rows, count), to = tensor(out, count);
      EXPECT_EQ(kvc_paged_write(cache_, step, layer, &k, &k, nullptr), KVC_OK);
      kvc_view* view = nullptr;
      EXPECT_EQ(kvc_paged_step_view(cache_, step, layer, &view), KVC_OK);
      for (const bool as_full : {false, true}) {
        if (as_full && layer != 0) continue;
        kvc_attention_options options = {};
        options.struct_size = sizeof(options);
        options.window = layer == 1 || as_full ? 3 : 0;
        options.sink_tokens = layer == 1 || as_full ? 1 : 0;
        options.chunk = layer == 2 ? 4 : 0;
        const std::int32_t indptr[] = {0, static_cast<std::int32_t>(count)};
        EXPECT_EQ(kvc_attend(&k, indptr, view, &to, nullptr, &options, nullptr), KVC_OK)
            << kvc_last_message();
        results.push_back(out);
      }
      kvc_view_free(view);
    }
    EXPECT_EQ(kvc_paged_commit(cache_, step, nullptr, 0), KVC_OK);
    kvc_step_free(step);
    return results;
  }

  std::int64_t first(std::int64_t layer) {
    std::int64_t position = -1;
    EXPECT_EQ(kvc_paged_first_positions(cache_, layer, &seq_, 1, &position), KVC_OK);
    return position;
  }
  std::int64_t held(std::int64_t layer) {
    std::int64_t rows = -1;
    EXPECT_EQ(kvc_paged_rows_held(cache_, layer, &seq_, 1, &rows), KVC_OK);
    return rows;
  }

  kvc_paged* cache_ = nullptr;
  std::int64_t seq_ = 0;
};

TEST_F(CWindows, RowsLeaveAndAttentionIsThatOverFullRows) {
  for (const std::int64_t count : {1, 4, 2, 3, 1}) {
    const std::vector<std::vector<float>> results = append(count);
    EXPECT_EQ(results[1], results[2]);  // full rows under the window, and the windowed layer
  }
  EXPECT_EQ(first(0), 0);
  EXPECT_EQ(held(0), 11);
  EXPECT_EQ(first(1), 9);
  EXPECT_EQ(held(1), 3);
  EXPECT_EQ(first(2), 8);
  EXPECT_EQ(held(2), 3);
  std::vector<float> k(3 * kDim), v(k);
  const kvc_tensor key = {sizeof(kvc_tensor), KVC_F32, 3, k.data(), {kHeads, 3, kDim}, {}};
  const kvc_tensor value = {sizeof(kvc_tensor), KVC_F32, 3, v.data(), {kHeads, 3, kDim}, {}};
  ASSERT_EQ(kvc_paged_gather(cache_, 1, seq_, &key, &value, nullptr), KVC_OK);
  EXPECT_EQ(k, v);
  for (std::size_t row = 0; row < 3; ++row) {
    const float position = std::vector<float>{0, 9, 10}[row];
    EXPECT_FLOAT_EQ(k[row * kDim], 0.1f * kDim * position);
  }
}

TEST_F(CWindows, AReturnBehindAWindowIsRefusedByName) {
  append(7);
  EXPECT_EQ(kvc_paged_reaches(cache_, seq_, 7), KVC_OK);
  EXPECT_EQ(kvc_paged_reaches(cache_, seq_, 6), KVC_OUT_OF_RANGE);
  EXPECT_EQ(kvc_paged_rewind(cache_, seq_, 1), KVC_OUT_OF_RANGE);
  EXPECT_EQ(std::string(kvc_last_message()),
            "layer 1: found position 5 the first held, expected 4, for a return to length 6");
  std::int64_t length = 0;
  EXPECT_EQ(kvc_paged_lengths(cache_, &seq_, 1, &length), KVC_OK);
  EXPECT_EQ(length, 7);
}

TEST_F(CWindows, ABatchTakesThem) {
  kvc_batch* batch = nullptr;
  ASSERT_EQ(kvc_batch_create(cache_, 1, &batch), KVC_OK);
  std::vector<float> rows(7 * kDim, 1.0f);
  const kvc_tensor k = {sizeof(kvc_tensor), KVC_F32, 4, rows.data(), {1, kHeads, 7, kDim}, {}};
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_EQ(kvc_batch_update(batch, layer, &k, &k, nullptr), KVC_OK) << kvc_last_message();
  }
  std::int64_t number = 0;
  EXPECT_EQ(kvc_batch_rows_held(batch, 1, &number, 1), KVC_OK);
  EXPECT_EQ(number, 7);
  ASSERT_EQ(kvc_batch_commit(batch, nullptr, 0), KVC_OK);
  EXPECT_EQ(kvc_batch_rows_held(batch, 1, &number, 1), KVC_OK);
  EXPECT_EQ(number, 3);
  EXPECT_EQ(kvc_batch_first_positions(batch, 1, &number, 1), KVC_OK);
  EXPECT_EQ(number, 5);
  EXPECT_EQ(kvc_batch_first_positions(batch, 1, &number, 2), KVC_INVALID_ARGUMENT);
  kvc_batch_free(batch);
}

TEST(CWindowsConfig, ContradictionsAreRefusedByName) {
  const auto message = [](const kvc_layer_spec& layer, std::int64_t rewind_tokens = 0) {
    kvc_paged* cache = nullptr;
    EXPECT_NE(create({layer}, rewind_tokens, &cache), KVC_OK);
    EXPECT_EQ(cache, nullptr);
    return std::string(kvc_last_message());
  };
  EXPECT_EQ(message(layer_of(-1, 0, 0)),
            "layers[0].life.window: found -1, expected 0 .. 2147483647");
  EXPECT_EQ(message(layer_of(2, 4, 0)),
            "layers[0].life.chunk: found 4, expected 0 beside a window of 2");
  EXPECT_EQ(message(layer_of(0, 4, 1)),
            "layers[0].life.sink_tokens: found 1, expected 0 without a window");
  EXPECT_EQ(message(layer_of(2, 0, 0), -1), "rewind_tokens: found -1, expected 0 .. 2147483647");
  kvc_layer_spec layer = layer_of(0, 0, 0);
  layer.reserved = 1;
  EXPECT_EQ(message(layer), "layers.reserved: found 1, expected 0");
}

// Rows in pages of 2, of which a view lists those that a window of 4 sees.
TEST(CWindowsView, APartMayHaveAHole) {
  std::vector<float> rows(20 * kDim);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i % 13) - 6;
  const std::int32_t all[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, some[] = {0, 8, 9};
  const std::int32_t length = 20, hole_begin = 1, hole_pages = 7, first_held = 16;
  const auto attend = [&](bool holed, std::int32_t window) {
    kvc_part part = {};
    part.struct_size = sizeof(part);
    part.page_size = 2;
    part.k = part.v = rows.data();
    part.k_page_stride = part.v_page_stride = 2 * kDim;
    part.k_head_stride = part.v_head_stride = 2 * kDim;
    part.k_token_stride = part.v_token_stride = kDim;
    part.block_table = holed ? some : all;
    part.block_table_stride = holed ? 3 : 10;
    part.lengths = &length;
    if (holed) {
      part.hole_begin = &hole_begin;
      part.hole_pages = &hole_pages;
      part.first_held = &first_held;
      part.held_window = 4;
      part.held_sink_tokens = 2;
    }
    const kvc_view_desc desc = {sizeof(desc), 1, kHeads, kDim, kDim, 1, &part};
    kvc_view* view = nullptr;
    EXPECT_EQ(kvc_view_create(&desc, &view), KVC_OK);
    std::vector<float> q = {1, 2, 3, 4}, out(kDim);
    const kvc_tensor query = {sizeof(kvc_tensor), KVC_F32, 4, q.data(), {1, 1, 1, kDim}, {}};
    const kvc_tensor to = {sizeof(kvc_tensor), KVC_F32, 4, out.data(), {1, 1, 1, kDim}, {}};
    kvc_attention_options options = {};
    options.struct_size = sizeof(options);
    options.window = window;
    options.sink_tokens = 2;
    if (kvc_attend(&query, nullptr, view, &to, nullptr, &options, nullptr) != KVC_OK) out.clear();
    kvc_view_free(view);
    return out;
  };
  EXPECT_EQ(attend(true, 4), attend(false, 4));
  EXPECT_TRUE(attend(true, 5).empty());
  EXPECT_EQ(std::string(kvc_last_message()),
            "options.window: found 5, expected 1 .. 4, as the view's rows were kept");
}

}  // namespace
}  // namespace kvcache
