// What the tests of the running batch share.
#ifndef KVCACHE_TESTS_SUPPORT_BATCHING_H_
#define KVCACHE_TESTS_SUPPORT_BATCHING_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kvcache/batching_cache.h"
#include "kvcache/dynamic_cache.h"
#include "support/layered.h"
#include "support/tensors.h"

namespace kvcache::testing {

inline constexpr float kUnseen = -std::numeric_limits<float>::infinity();

// All that can be seen of a batch: equal before and after a failing call. Rows are read by an
// update of no tokens.
struct BatchState {
  std::vector<std::vector<std::int64_t>> lengths;  // [slots][layers]; -1: empty slot
  std::vector<std::vector<float>> k, v;            // [layers], dense
  std::int64_t nbytes = 0, rows_appended = 0, rows_read = 0;

  bool operator==(const BatchState&) const = default;
};

// `heads`, `k_dim` and `v_dim` are those of every layer.
inline BatchState state_of(BatchingCache& batch, Layout layout, std::int64_t num_layers = 1,
                           std::int64_t heads = 1, std::int64_t k_dim = 1, std::int64_t v_dim = 1) {
  BatchState state;
  const std::int64_t slots = batch.max_active();
  for (std::int64_t id = 0; id < slots; ++id) {
    std::vector<std::int64_t> lengths;
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      lengths.push_back(batch.occupied(id) ? batch.seq_length(id, layer).value() : -1);
    }
    state.lengths.push_back(lengths);
  }
  const bool by_head = layout == Layout::kHND;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    const HostTensor key(DType::kF32,
                         by_head ? Shape{slots, heads, 0, k_dim} : Shape{slots, 0, heads, k_dim});
    const HostTensor value(DType::kF32,
                           by_head ? Shape{slots, heads, 0, v_dim} : Shape{slots, 0, heads, v_dim});
    const BatchFetch all = batch.update_and_fetch(key, value, {}, {}, layer).value();
    state.k.push_back(values(all.key));
    state.v.push_back(values(all.value));
  }
  state.nbytes = batch.nbytes();
  state.rows_appended = batch.stats().rows_appended;
  state.rows_read = batch.stats().rows_read;
  return state;
}

// `expr` fails with `code`, its message contains `text`, and the batch of one layer, head and
// element looks as before.
#define EXPECT_BATCH_UNCHANGED(batch, layout, code_in, text, expr)                                 \
  do {                                                                                             \
    const auto before_call = ::kvcache::testing::state_of(batch, layout);                          \
    const ::kvcache::Status failed_status = (expr);                                                \
    EXPECT_EQ(failed_status.code(), code_in) << failed_status.to_string();                         \
    EXPECT_NE(failed_status.message().find(text), std::string::npos) << failed_status.to_string(); \
    EXPECT_TRUE(::kvcache::testing::state_of(batch, layout) == before_call);                       \
  } while (false)

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_BATCHING_H_
