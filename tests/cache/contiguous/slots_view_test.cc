#include "cache/contiguous/slots_view.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cache/contiguous/layer.h"
#include "kvcache/kv_view.h"
#include "kvcache/memory.h"
#include "kvcache/types.h"

namespace kvcache::internal {
namespace {

TEST(BatchingView, SlotsLaidOutAlikeShareAPartAndOthersGetTheirOwn) {
  std::vector<ContiguousLayer> layers(5);
  Placement growing, fixed;
  growing.memory = fixed.memory = &system_memory();
  growing.reserve_tokens = 4096;
  growing.address_bytes = std::int64_t{1} << 40;
  fixed.fixed_capacity = 32;
  const LayerShape shape{1, LayerSpec::kv(2, 8, 16, plain(DType::kF32), plain(DType::kF16)),
                         Layout::kHND};
  for (std::size_t i = 0; i < 5; ++i) {
    ASSERT_TRUE(layers[i].populate(shape, 8, i == 3 ? fixed : growing).ok());
    layers[i].set_length(static_cast<std::int64_t>(i) + 1);
  }
  const ContiguousLayer* slots[] = {&layers[0], nullptr,    &layers[1],
                                    &layers[2], &layers[3], &layers[4]};
  BatchingView view;
  ASSERT_TRUE(view.build(slots, shape).ok());
  const KvView& kv = view.view();
  EXPECT_EQ(kv.num_seqs, 6);
  EXPECT_EQ(kv.num_parts, 2);  // growing, fixed
  for (std::int32_t s = 0; s < 6; ++s) {
    EXPECT_EQ(total_length(kv, s), slots[s] != nullptr ? slots[s]->length() : 0);
    for (std::int32_t p = 0; p < kv.num_parts; ++p) {
      const KvPart& part = kv.parts[p];
      if (part.lengths[s] == 0) continue;
      const std::int64_t page = part.block_table[s];
      EXPECT_GE(page, 0);
      const KeyValueView rows = slots[s]->rows();
      EXPECT_EQ(part.k.row_at(page, 0, 0), rows.key.data);
      EXPECT_EQ(part.v.row_at(page, 0, 0), rows.value.data);
    }
  }
}

}  // namespace
}  // namespace kvcache::internal
