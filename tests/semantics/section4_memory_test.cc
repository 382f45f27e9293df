// docs: semantics, section 4. What a cache of pages is given and what it fills lie outside of it.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/paged.h"

namespace kvcache::testing {
namespace {

using Seqs = std::vector<SequenceId>;

class Section4Memory : public PagedTest {};
INSTANTIATE_TEST_SUITE_P(Paged, Section4Memory, every_paged_case(), PagedTest::name);

// The first rows of page `page`, [tokens, 2, dim].
MutableTensorView stored_rows(const RowsView& stored, std::int32_t page, std::int64_t tokens,
                              std::int64_t dim) {
  MutableTensorView view(const_cast<std::byte*>(stored.page_at(page)), stored.format.dtype,
                         {tokens, 2, dim});
  view.strides[0] = stored.token_stride / size_of(view.dtype);
  view.strides[1] = stored.head_stride / size_of(view.dtype);
  return view;
}

TEST_P(Section4Memory, RowsOfTheCachesOwnPagesAreNoInputOfWriteAndNoOutputOfGather) {
  PagedFixture f = make();
  const SequenceId a = f.open(), b = f.open();
  EXPECT_OK(f.append(a, {1, 2, 3}));
  const OwnedKvView view = f.cache.view(1, Seqs{a}).value();
  const KvPart& part = view.get().parts[0];
  const auto own = [&](bool keys, std::int64_t tokens) {
    return stored_rows(keys ? part.k : part.v, part.block_table[0], tokens, keys ? 2 : 1);
  };
  PagedCache::Step step = f.reserve(b, 2).value();
  const HostTensor k = packed(f.spec(), {8, 9}, 0, false), v = packed(f.spec(), {8, 9}, 0, true);
  const auto code = StatusCode::kInvalidArgument;
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.write(step, 0, own(true, 2), v));
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.write(step, 0, k, own(false, 2)));
  EXPECT_EQ(f.cache.write(step, 0, k, own(false, 2)).message(),
            "v: found rows of this cache itself, expected memory outside of it");

  const bool hnd = layout() == Layout::kHND;
  const std::int64_t first = hnd ? 2 : 3, second = hnd ? 3 : 2;
  HostTensor key(DType::kF32, {first, second, 2}), value(DType::kF32, {first, second, 1});
  const auto turned = [hnd](MutableTensorView rows) {
    if (!hnd) return rows;
    std::swap(rows.shape[0], rows.shape[1]);
    std::swap(rows.strides[0], rows.strides[1]);
    return rows;
  };
  EXPECT_REFUSED(f, Seqs{a}, code,
                 f.cache.gather(1, a, turned(own(true, 3)), value.mutable_view()));
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.gather(1, a, key.mutable_view(), turned(own(false, 3))));
  MutableTensorView both = key.mutable_view();
  both.shape[2] = 1;
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.gather(1, a, key.mutable_view(), both));
  both.strides[0] = 0;
  EXPECT_REFUSED(f, Seqs{a}, code, f.cache.gather(1, a, key.mutable_view(), both));
}

}  // namespace
}  // namespace kvcache::testing
