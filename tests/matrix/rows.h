// Rows of tokens in the matrix: numbers in -1 .. 1 that follow from token, layer, head and element,
// different enough that a misplaced row is seen through the roughest form. And attention over them
// by the formula.
#ifndef KVCACHE_TESTS_MATRIX_ROWS_H_
#define KVCACHE_TESTS_MATRIX_ROWS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "kvcache/layer_spec.h"
#include "support/coded.h"
#include "support/paged_model.h"
#include "support/tensors.h"

namespace kvcache::testing {

constexpr std::int64_t kQueryHeads = 4;

inline double row_element(double token, std::int64_t layer, std::int64_t head, std::int64_t d,
                          bool value) {
  auto x = static_cast<std::uint64_t>(token * 1024) * 0x9E3779B97F4A7C15u;
  x ^= static_cast<std::uint64_t>(((layer * 8 + head) * 512 + d) * 2 + (value ? 1 : 0)) *
       0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 31)) * 0x94D049BB133111EBu;
  return static_cast<double>(x >> 40) / (1 << 23) - 1;
}

// The row of one token, [heads, dim]; computed once, or again after many others. Valid until the
// next call.
inline const std::vector<float>& token_row(const BufferSpec& spec, double token,
                                           std::int64_t layer) {
  static std::map<std::tuple<double, std::int64_t, Role, std::int64_t, std::int64_t>,
                  std::vector<float>>
      known;
  if (known.size() > 10000) known.clear();
  std::vector<float>& row = known[{token, layer, spec.role, spec.heads, spec.dim}];
  if (!row.empty()) return row;
  for (std::int64_t head = 0; head < spec.heads; ++head) {
    for (std::int64_t d = 0; d < spec.dim; ++d) {
      row.push_back(
          static_cast<float>(row_element(token, layer, head, d, spec.role == Role::kValue)));
    }
  }
  return row;
}

// What is held of it: the row that its codes stand for, by the definition of its form; a plain row
// is itself. Valid until the next call.
inline const std::vector<float>& held_row(const BufferSpec& spec, double token, std::int64_t layer,
                                          bool stays_plain = false) {
  const std::vector<float>& given = token_row(spec, token, layer);
  const RowFormat& format = spec.format;
  if (!format.is_coded() || stays_plain) return given;
  using Key = std::tuple<double, std::int64_t, Role, std::int64_t, std::int64_t, int, bool>;
  static std::map<Key, std::vector<float>> known;
  if (known.size() > 10000) known.clear();
  std::vector<float>& row =
      known[{token, layer, spec.role, spec.heads, spec.dim, format.kind, format.rotate}];
  for (std::int64_t head = 0; row.size() < given.size(); ++head) {
    const std::vector<float> back =
        coded_and_back(format, given.data() + head * spec.dim, spec.dim);
    row.insert(row.end(), back.begin(), back.end());
  }
  return row;
}

inline float* floats(HostTensor& tensor) { return static_cast<float*>(tensor.mutable_view().data); }
inline const float* floats(const HostTensor& tensor) {
  return static_cast<const float*>(tensor.view().data);
}

// New rows of one layer, packed [num_tokens, heads, dim].
inline HostTensor packed_tokens(const BufferSpec& spec, const Tokens& tokens, std::int64_t layer) {
  HostTensor rows(DType::kF32, {size_of_tokens(tokens), spec.heads, spec.dim});
  float* to = floats(rows);
  for (const double token : tokens) {
    const std::vector<float>& row = token_row(spec, token, layer);
    to = std::copy(row.begin(), row.end(), to);
  }
  return rows;
}

// The same of a batch, dense in the order of the layout: [B, H, T, D] or [B, T, H, D].
// REQUIRES: as many tokens in every row.
inline HostTensor dense_tokens(const BufferSpec& spec, const std::vector<Tokens>& batch,
                               std::int64_t layer, Layout layout) {
  const auto rows = static_cast<std::int64_t>(batch.size());
  const std::int64_t tokens = size_of_tokens(batch.front());
  const bool head_first = layout == Layout::kHND;
  HostTensor result(DType::kF32, {rows, head_first ? spec.heads : tokens,
                                  head_first ? tokens : spec.heads, spec.dim});
  for (std::int64_t b = 0; b < rows; ++b) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const double token = batch[static_cast<std::size_t>(b)][static_cast<std::size_t>(t)];
      const std::vector<float>& row = token_row(spec, token, layer);
      for (std::int64_t head = 0; head < spec.heads; ++head) {
        const std::int64_t at = head_first ? (b * spec.heads + head) * tokens + t
                                           : (b * tokens + t) * spec.heads + head;
        std::copy_n(row.data() + head * spec.dim, spec.dim, floats(result) + at * spec.dim);
      }
    }
  }
  return result;
}

// A dense [H, S, D] or [S, H, D] as [S, H, D].
inline HostTensor tokens_first(const HostTensor& rows, Layout layout) {
  if (layout == Layout::kNHD) return rows;
  const std::vector<std::int64_t>& shape = rows.shape();
  HostTensor result(DType::kF32, {shape[1], shape[0], shape[2]});
  HostTensor given = rows;
  for (std::int64_t s = 0; s < shape[1]; ++s) {
    for (std::int64_t h = 0; h < shape[0]; ++h) {
      std::copy_n(floats(given) + (h * shape[1] + s) * shape[2], shape[2],
                  floats(result) + (s * shape[0] + h) * shape[2]);
    }
  }
  return result;
}

// Whether the rows [S, heads, dim] are what is held of these tokens, of which the first `coded` are
// coded where the form is, but for `error` of what is largest in a row.
inline bool are_rows_of(const HostTensor& rows, const BufferSpec& spec, const Tokens& tokens,
                        std::int64_t coded, std::int64_t layer, double error) {
  if (rows.dtype() != DType::kF32) return false;
  if (rows.num_elements() != size_of_tokens(tokens) * spec.heads * spec.dim) return false;
  const float* found = floats(rows);
  for (const double token : tokens) {
    for (const float expected : held_row(spec, token, layer, coded-- <= 0)) {
      if (!(std::abs(*found++ - expected) <= error)) return false;
    }
  }
  return true;
}

// Queries of any numbers, [count, kQueryHeads, dim].
inline HostTensor any_queries(std::int64_t count, std::int64_t dim, std::uint32_t seed) {
  HostTensor q(DType::kF32, {count, kQueryHeads, dim});
  for (std::int64_t i = 0; i < q.num_elements(); ++i) {
    floats(q)[i] = static_cast<float>(2 * row_element(seed, 7, 3, i, false));
  }
  return q;
}

struct Attended {
  std::vector<double> out;      // [kQueryHeads, v_dim]
  std::vector<double> spreads;  // [kQueryHeads]: the Euclidean norm of the weights, 1 of one row
                                // and 1 / sqrt(n) of n that weigh alike
};

// What a query [kQueryHeads, k_dim] gets of `tokens`, of which it is the last, the first lies at
// position `first` and the first `coded` are coded.
inline Attended attention_by_formula(const float* query, const LayerSpec& spec, std::int64_t layer,
                                     const Tokens& tokens, std::int64_t coded, std::int64_t first) {
  const std::int64_t dim = spec.key().dim, v_dim = spec.value().dim;
  Attended attended{std::vector<double>(static_cast<std::size_t>(kQueryHeads * v_dim)),
                    std::vector<double>(kQueryHeads)};
  auto& [out, spreads] = attended;
  std::vector<double> sums(kQueryHeads);
  const std::int64_t n = size_of_tokens(tokens) - 1;
  for (std::int64_t p = 0; p <= n; ++p) {
    if (!sees(spec.life, first + n, first + p)) continue;
    const double token = tokens[static_cast<std::size_t>(p)];
    const std::vector<float> keys = held_row(spec.key(), token, layer, p >= coded);
    const std::vector<float>& rows = held_row(spec.value(), token, layer, p >= coded);
    for (std::int64_t head = 0; head < kQueryHeads; ++head) {
      const std::int64_t kv_head = head / (kQueryHeads / spec.key().heads);
      double score = 0;
      for (std::int64_t d = 0; d < dim; ++d) {
        score += double{query[head * dim + d]} * keys[static_cast<std::size_t>(kv_head * dim + d)];
      }
      const double weight = std::exp(score / std::sqrt(static_cast<double>(dim)));
      sums[static_cast<std::size_t>(head)] += weight;
      spreads[static_cast<std::size_t>(head)] += weight * weight;
      for (std::int64_t d = 0; d < v_dim; ++d) {
        out[static_cast<std::size_t>(head * v_dim + d)] +=
            weight * rows[static_cast<std::size_t>(kv_head * v_dim + d)];
      }
    }
  }
  for (std::size_t i = 0; i < out.size(); ++i) out[i] /= sums[i / static_cast<std::size_t>(v_dim)];
  for (std::size_t i = 0; i < sums.size(); ++i) spreads[i] = std::sqrt(spreads[i]) / sums[i];
  return attended;
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_MATRIX_ROWS_H_
