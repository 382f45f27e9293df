// What the tests of PagedBatch share: batches over the cache of a PagedFixture, and rows of tokens
// as tensors that go in.
#ifndef KVCACHE_TESTS_SUPPORT_PAGED_BATCH_H_
#define KVCACHE_TESTS_SUPPORT_PAGED_BATCH_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kvcache/paged_batch.h"
#include "support/paged.h"

namespace kvcache::testing {

// New rows of one layer, dense [B, H, T, D] (kNHD: [B, T, H, D]); rows[b] are the tokens of row b.
// REQUIRES: as many tokens in every row.
inline HostTensor batch_rows(const LayerSpec& spec, const std::vector<Tokens>& rows,
                             std::int64_t layer, bool value, Layout layout,
                             DType dtype = DType::kF32) {
  const auto batch = static_cast<std::int64_t>(rows.size());
  const auto tokens = static_cast<std::int64_t>(rows.empty() ? 0 : rows.front().size());
  const auto [role, heads, dim, format] = value ? spec.value() : spec.key();
  const bool head_first = layout == Layout::kHND;
  HostTensor tensor(dtype, {batch, head_first ? heads : tokens, head_first ? tokens : heads, dim});
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const double token = rows[static_cast<std::size_t>(b)][static_cast<std::size_t>(t)];
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::int64_t at =
            head_first ? (b * heads + h) * tokens + t : (b * tokens + t) * heads + h;
        for (std::int64_t d = 0; d < dim; ++d) {
          tensor.set(at * dim + d, element(token, layer, h, d, value));
        }
      }
    }
  }
  return tensor;
}

// Batches over one cache.
struct BatchFixture : PagedFixture {
  // Dropped before the cache, by the order of a test's variables.
  std::shared_ptr<PagedCache> shared{&cache, [](PagedCache*) {}};

  using PagedFixture::PagedFixture;

  PagedBatch batch(std::int64_t rows = 0) { return PagedBatch::create(shared, rows).value(); }

  Status update(PagedBatch& batch, std::int64_t layer, const std::vector<Tokens>& rows) {
    return batch.update(layer, batch_rows(spec(layer), rows, layer, false, layout),
                        batch_rows(spec(layer), rows, layer, true, layout));
  }
  // A forward pass over all layers.
  Status update(PagedBatch& batch, const std::vector<Tokens>& rows) {
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      KVC_RETURN_IF_ERROR(update(batch, layer, rows));
    }
    return {};
  }

  static Tokens joined(const std::vector<Tokens>& rows) {
    Tokens all;
    for (const Tokens& row : rows) all.insert(all.end(), row.begin(), row.end());
    return all;
  }
  static Counts counts_of(const std::vector<Tokens>& rows) {
    Counts counts;
    for (const Tokens& row : rows) counts.push_back(static_cast<std::int64_t>(row.size()));
    return counts;
  }
  Status write(PagedBatch& batch, std::int64_t layer, const std::vector<Tokens>& rows) {
    return batch.write(layer, packed(spec(layer), joined(rows), layer, false),
                       packed(spec(layer), joined(rows), layer, true));
  }
  Status write(PagedBatch& batch, const std::vector<Tokens>& rows) {
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      KVC_RETURN_IF_ERROR(write(batch, layer, rows));
    }
    return {};
  }
  // begin, write, commit.
  Status step(PagedBatch& batch, const std::vector<Tokens>& rows) {
    KVC_RETURN_IF_ERROR(batch.begin(counts_of(rows)));
    KVC_RETURN_IF_ERROR(write(batch, rows));
    return batch.commit();
  }

  // The tokens that view() shows of every row.
  std::vector<Tokens> tokens_of(const PagedBatch& batch, std::int64_t layer = 0) const {
    const OwnedKvView view = batch.view(layer).value();
    std::vector<Tokens> rows;
    for (std::int32_t row = 0; row < batch.num_rows(); ++row) {
      rows.push_back(tokens(view, row, layer));
    }
    return rows;
  }

  // The tokens that gather() copies. REQUIRES: as many held of every row.
  std::vector<Tokens> gathered(const PagedBatch& batch, std::int64_t layer = 0,
                               DType dtype = DType::kF32) const {
    const std::int64_t length = batch.rows_held(0, layer).value();
    const auto shape = [&](std::int64_t dim) {
      return layout == Layout::kHND
                 ? Counts{batch.num_rows(), spec(layer).key().heads, length, dim}
                 : Counts{batch.num_rows(), length, spec(layer).key().heads, dim};
    };
    HostTensor k(dtype, shape(spec(layer).key().dim));
    HostTensor v(dtype, shape(spec(layer).value().dim));
    EXPECT_OK(batch.gather(layer, k.mutable_view(), v.mutable_view()));
    std::vector<Tokens> rows;
    for (std::int64_t b = 0; b < batch.num_rows(); ++b) {
      Tokens row;
      const TensorView key = row_of(k, b);
      const TensorView value = row_of(v, b);
      for (std::int64_t i = 0; i < length; ++i) {
        const double token = decode(key, layer, i, false);
        row.push_back(decode(value, layer, i, true) == token ? token : std::nan(""));
      }
      rows.push_back(row);
    }
    return rows;
  }

  Counts lengths(const PagedBatch& batch, std::int64_t layer = 0) const {
    Counts lengths;
    for (std::int64_t row = 0; row < batch.num_rows(); ++row) {
      lengths.push_back(batch.seq_length(row, layer).value());
    }
    return lengths;
  }

 private:
  static TensorView row_of(const TensorView& rows, std::int64_t b) {
    TensorView row = rows;
    row.data = static_cast<const std::byte*>(rows.data) + b * rows.strides[0] * size_of(rows.dtype);
    row.rank = 3;
    std::copy_n(rows.shape + 1, 3, row.shape);
    std::copy_n(rows.strides + 1, 3, row.strides);
    return row;
  }
};

// All that can be seen of a batch and its cache: equal before and after a failing call.
struct BatchState {
  PagedState cache;
  Counts numbers;

  friend bool operator==(const BatchState&, const BatchState&) = default;
};

inline BatchState state_of(const BatchFixture& f, const PagedBatch& batch) {
  BatchState state;
  const std::vector<SequenceId> seqs(batch.sequences().begin(), batch.sequences().end());
  state.cache = state_of(static_cast<const PagedFixture&>(f), seqs);
  for (Tokens& row : state.cache.tokens) {  // a layer that is left out shows no token
    for (double& token : row) token = std::isnan(token) ? -1 : token;
  }
  state.numbers = {batch.num_rows(), batch.step_open() ? 1 : 0, batch.num_new_tokens()};
  for (std::int64_t layer = 0; layer < f.num_layers; ++layer) {
    const Counts lengths = f.lengths(batch, layer);
    state.numbers.insert(state.numbers.end(), lengths.begin(), lengths.end());
  }
  return state;
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_PAGED_BATCH_H_
