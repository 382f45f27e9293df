// What the tests of the layered caches share: one test body for both kinds, layouts and types.
#ifndef KVCACHE_TESTS_SUPPORT_LAYERED_H_
#define KVCACHE_TESTS_SUPPORT_LAYERED_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/cache.h"
#include "kvcache/dynamic_cache.h"
#include "kvcache/static_cache.h"
#include "support/tensors.h"

namespace kvcache::testing {

enum class LayeredKind { kDynamic, kStatic };

// REQUIRES: arguments that create() takes.
inline std::unique_ptr<Cache> make_layered(LayeredKind kind, const CacheOptions& options = {},
                                           std::int64_t max_length = 16,
                                           std::int64_t num_layers = 4) {
  if (kind == LayeredKind::kDynamic) {
    return std::make_unique<DynamicCache>(DynamicCache::create(options).value());
  }
  return std::make_unique<StaticCache>(
      StaticCache::create(max_length, num_layers, options).value());
}

// All that can be seen of a layer.
struct LayerState {
  std::vector<std::int64_t> k_shape, v_shape;
  std::vector<float> k, v;
  std::int64_t length = 0, next_position = 0;

  bool operator==(const LayerState&) const = default;
};

// All that can be seen of a cache: equal before and after a failing call.
struct CacheState {
  std::vector<LayerState> layers;
  std::int64_t nbytes = 0, reserved_bytes = 0, copied_bytes = 0;

  bool operator==(const CacheState&) const = default;
};

inline LayerState state_of(const Cache& cache, std::int64_t layer) {
  LayerState state;
  const KeyValueView rows = cache.get(layer).value();
  state.k_shape = shape_of(rows.key);
  state.v_shape = shape_of(rows.value);
  state.k = values(rows.key);
  state.v = values(rows.value);
  state.length = cache.seq_length(layer).value();
  state.next_position = cache.next_position(layer).value();
  return state;
}

inline CacheState state_of(const Cache& cache) {
  CacheState state;
  for (std::int64_t i = 0; i < cache.num_layers(); ++i) state.layers.push_back(state_of(cache, i));
  state.nbytes = cache.nbytes();
  state.reserved_bytes = cache.reserved_bytes();
  state.copied_bytes = cache.copied_bytes();
  return state;
}

inline std::vector<float> keys(const Cache& cache, std::int64_t layer = 0) {
  return values(cache.get(layer).value().key);
}

using Floats = std::vector<float>;
using Shape = std::vector<std::int64_t>;

// One kind, layout and element type; `put` and friends use B = H = D = 1 unless rows are given.
struct LayeredCase {
  LayeredKind kind;
  Layout layout;
  DType dtype;
};

inline std::string name_of_case(const ::testing::TestParamInfo<LayeredCase>& info) {
  return std::string(info.param.kind == LayeredKind::kDynamic ? "dynamic" : "static") + "_" +
         name_of(info.param.layout) + "_" + name_of(info.param.dtype);
}

inline std::vector<LayeredCase> all_layered_cases() {
  std::vector<LayeredCase> cases;
  for (LayeredKind kind : {LayeredKind::kDynamic, LayeredKind::kStatic}) {
    for (Layout layout : {Layout::kHND, Layout::kNHD}) {
      for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        cases.push_back({kind, layout, dtype});
      }
    }
  }
  return cases;
}

class LayeredTest : public ::testing::TestWithParam<LayeredCase> {
 protected:
  std::unique_ptr<Cache> make(std::int64_t max_length = 16, std::int64_t num_layers = 4,
                              MemoryResource* memory = nullptr) const {
    CacheOptions options;
    options.layout = GetParam().layout;
    options.dtype = GetParam().dtype;
    options.memory = memory;
    options.reserve_tokens = 4;  // growth happens early
    return make_layered(GetParam().kind, options, max_length, num_layers);
  }

  bool is_static() const { return GetParam().kind == LayeredKind::kStatic; }

  // T[...] and {[..],[..]} in the layout under test.
  HostTensor tokens(const std::vector<double>& list) const {
    return T(list, DType::kF32, GetParam().layout);
  }
  HostTensor batch(const std::vector<std::vector<double>>& list) const {
    return rows(list, DType::kF32, GetParam().layout);
  }
  // A shape given head-first, in the layout under test.
  Shape shaped(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) const {
    return GetParam().layout == Layout::kHND ? Shape{b, h, t, d} : Shape{b, t, h, d};
  }

  // Stores key as K, and as V too.
  static Status put(Cache& cache, const HostTensor& key, std::int64_t layer = 0,
                    const TensorView& position = {}) {
    return cache.update(key, key, layer, position).status();
  }
};

#define EXPECT_OK(expr)                                                 \
  do {                                                                  \
    const ::kvcache::Status expect_ok_status = (expr);                  \
    EXPECT_TRUE(expect_ok_status.ok()) << expect_ok_status.to_string(); \
  } while (false)

#define ASSERT_OK(expr)                                                 \
  do {                                                                  \
    const ::kvcache::Status assert_ok_status = (expr);                  \
    ASSERT_TRUE(assert_ok_status.ok()) << assert_ok_status.to_string(); \
  } while (false)

// `expr` fails with `code`, its message contains `text`, and the cache looks as before.
#define EXPECT_ERROR_UNCHANGED(cache, code_in, text, expr)                                         \
  do {                                                                                             \
    const auto before_call = ::kvcache::testing::state_of(cache);                                  \
    const ::kvcache::Status failed_status = (expr);                                                \
    EXPECT_EQ(failed_status.code(), code_in) << failed_status.to_string();                         \
    EXPECT_NE(failed_status.message().find(text), std::string::npos) << failed_status.to_string(); \
    EXPECT_TRUE(::kvcache::testing::state_of(cache) == before_call);                               \
  } while (false)

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_LAYERED_H_
