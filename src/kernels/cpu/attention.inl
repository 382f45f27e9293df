// Attention of a tile of query rows over one cut of keys: the algorithm, once. A short file per
// instruction set includes it after its simd header; everything has internal linkage.
//
//   per block of 64 keys:  S = Q K^T      [rows, 64]   K is transposed on the way in, so that lanes
//                                                      are keys: no sum across lanes
//                          softmax        the running max m and sum l of Milakov and Gimelshein
//                                         (2018); what is accumulated is rescaled only when m moves
//                          acc += P V     [rows, v_dim]  lanes are elements of a value
//
// All query rows of a KV head share the pass: a block is read once, and widened to float once.
// Cost per block: 64 (k_dim + v_dim) elements read, rows * 64 (k_dim + v_dim) multiply-adds.
//
// Determinism: a score is the sum over k_dim in ascending order, an output element the sum over
// visible keys in ascending order, whatever the shape of the register tile that computes it. So a
// row's bits do not depend on the rows beside it. Hidden keys are left out of both, not multiplied
// by zero: what they hold, a NaN even, reaches nobody.
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/kernel_table.h"

namespace kvcache::internal::KVC_SIMD {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint64_t;

constexpr int kBlock = static_cast<int>(kBlockKeys);
constexpr int kBlockVecs = kBlock / kLanes;

// The register tile, rows by vectors: as many accumulators as leave room for the operands in 32
// (AVX-512, NEON) or 16 registers. NEON takes the element of each row from a register of its own.
constexpr int kTileRows = kLanes == 16 ? 6 : 4;
constexpr int kTileVecs = kRegisters == 32 ? 4 : 2;

constexpr uint64_t kAllKeys = ~uint64_t{0};

KVC_SIMD_FN int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
KVC_SIMD_FN int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
KVC_SIMD_FN int64_t pad(int64_t n) { return (n + kRowPadding - 1) / kRowPadding * kRowPadding; }

// Rows of one type, by element.
template <DType kType>
KVC_SIMD_FN F32 load_as(const void* row, int64_t at) {
  if constexpr (kType == DType::kF32) return load(static_cast<const float*>(row) + at);
  if constexpr (kType == DType::kF16) return load_f16(static_cast<const uint16_t*>(row) + at);
  if constexpr (kType == DType::kBF16) return load_bf16(static_cast<const uint16_t*>(row) + at);
}
template <DType kType>
KVC_SIMD_FN F32 load_n_as(const void* row, int64_t at, int n) {
  if constexpr (kType == DType::kF32) return load_n(static_cast<const float*>(row) + at, n);
  if constexpr (kType == DType::kF16) return load_f16_n(static_cast<const uint16_t*>(row) + at, n);
  if constexpr (kType == DType::kBF16) {
    return load_bf16_n(static_cast<const uint16_t*>(row) + at, n);
  }
}

// Memory of one call, carved from the caller's.
struct Scratch {
  uint64_t* query_bits;  // [rows] keys of the block that each query sees by the rules
  uint64_t* row_bits;    // [rows] the same for each row, the mask's -inf left out
  float* scores;         // [rows, 64]; then the weights
  float* keys;           // [k_dim padded, 64] the transposed block
  float* values;         // [64, v_dim padded]
  float* zeros;          // [k_dim padded] stands for rows that are not there
};

int64_t carve(void* memory, int64_t rows, int64_t k_dim, int64_t v_dim, Scratch* scratch) {
  char* base = static_cast<char*>(memory);
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    char* at = base + used;
    used += (bytes + 63) / 64 * 64;
    return static_cast<void*>(at);
  };
  scratch->query_bits = static_cast<uint64_t*>(take(rows * 8));
  scratch->row_bits = static_cast<uint64_t*>(take(rows * 8));
  scratch->scores = static_cast<float*>(take(rows * kBlock * 4));
  scratch->keys = static_cast<float*>(take(pad(k_dim) * kBlock * 4));
  scratch->values = static_cast<float*>(take(pad(v_dim) * kBlock * 4));
  scratch->zeros = static_cast<float*>(take(pad(k_dim) * 4));
  return used;
}

// --- Which keys. ---

// Bits begin .. end of a block; bounds outside 0 .. 64 are cut.
KVC_SIMD_FN uint64_t bit_range(int64_t begin, int64_t end) {
  begin = max_of(begin, 0);
  end = min_of(end, kBlock);
  if (begin >= end) return 0;
  return (kAllKeys << begin) & (kAllKeys >> (kBlock - end));
}

KVC_SIMD_FN int64_t position_of(const KvRows& rows, int64_t row) {
  return rows.positions != nullptr ? rows.positions[row] : rows.first_index + row;
}

// The keys that query `query` sees of the block whose bit 0 is row `row0` of the part.
uint64_t visible_keys(const CutTask& task, int64_t row0, int32_t query) {
  const QueryTile& tile = *task.tile;
  const KvRows& rows = *task.rows;
  const int64_t begin = task.begin - row0;
  const int64_t end = min_of(task.end, task.causal_end + query) - row0;
  uint64_t bits = bit_range(begin, end);
  if (tile.window == 0 || bits == 0) return bits;
  const int64_t oldest = tile.position[query] - tile.window + 1;
  if (rows.positions == nullptr) {
    const int64_t position0 = rows.first_index + row0;
    return bits &
           (bit_range(oldest - position0, kBlock) | bit_range(0, tile.sink_tokens - position0));
  }
  for (uint64_t rest = bits; rest != 0; rest &= rest - 1) {
    const int key = __builtin_ctzll(rest);
    const int64_t position = rows.positions[row0 + key];
    if (position < oldest && position >= tile.sink_tokens) bits &= ~(uint64_t{1} << key);
  }
  return bits;
}

// Where the rows of a block are.
struct BlockRows {
  const void* k[kBlock];
  const void* v[kBlock];
};

// Those of `bits`, of the block whose bit 0 is row `row0`; `missing` stands for the others.
void find_rows(const KvRows& rows, int64_t row0, uint64_t bits, const void* missing,
               BlockRows* block) {
  const int64_t k_size = rows.k_dtype == DType::kF32 ? 4 : 2;
  const int64_t v_size = rows.v_dtype == DType::kF32 ? 4 : 2;
  const char* k_page = static_cast<const char*>(rows.k);
  const char* v_page = static_cast<const char*>(rows.v);
  // Without a table all rows are slots of the page at hand.
  int64_t page_begin = 0;
  int64_t page_end = rows.block_table == nullptr ? row0 + kBlock : 0;
  for (int key = 0; key < kBlock; ++key) {
    block->k[key] = missing;
    block->v[key] = missing;
    if (((bits >> key) & 1) == 0) continue;
    const int64_t row = row0 + key;
    if (row >= page_end) {
      const int64_t page = row / rows.page_size;
      const int64_t id = rows.block_table[page];
      page_begin = page * rows.page_size;
      page_end = page_begin + rows.page_size;
      k_page = static_cast<const char*>(rows.k) + id * rows.k_page_stride * k_size;
      v_page = static_cast<const char*>(rows.v) + id * rows.v_page_stride * v_size;
    }
    block->k[key] = k_page + (row - page_begin) * rows.k_token_stride * k_size;
    block->v[key] = v_page + (row - page_begin) * rows.v_token_stride * v_size;
  }
}

// Asks for `bytes` of a row of the block after this one. Into the second level of cache: on Zen 4
// the first is too small for it (T0 and NTA give two thirds of what T1 gives).
KVC_SIMD_FN void prefetch(const void* row, int64_t at, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) {
    __builtin_prefetch(static_cast<const char*>(row) + at + byte, 0, 2);
  }
}

template <DType kType>
constexpr int64_t kSize = kType == DType::kF32 ? 4 : 2;

// --- Scores: S = Q K^T. ---

// Elements at .. at + kLanes of kLanes rows, as columns: x[d] holds element at + d of each row.
template <DType kType>
KVC_SIMD_FN void load_columns(const void* const* rows, int64_t at, int64_t dim, F32 (&x)[kLanes]) {
  if (at + kLanes <= dim) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) x[i] = load_as<kType>(rows[i], at);
  } else {
    const int n = static_cast<int>(dim - at);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) x[i] = load_n_as<kType>(rows[i], at, n);
  }
  transpose(x);
}

// Few rows: the transposed keys stay in registers.
template <DType kType, int kRows>
void score_few(const QueryTile& tile, const BlockRows& block, const BlockRows& next, uint64_t bits,
               float* scores) {
  const int64_t stride = pad(tile.k_dim);
  for (int v = 0; v < kBlockVecs; ++v) {
    if (((bits >> (v * kLanes)) & (kAllKeys >> (64 - kLanes))) == 0) continue;
    F32 sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = zero();
    for (int64_t d = 0; d < tile.k_dim; d += kLanes) {
      F32 x[kLanes];
      load_columns<kType>(block.k + v * kLanes, d, tile.k_dim, x);
      if (d * kSize<kType> % 64 == 0) {
        for (int i = 0; i < kLanes; ++i) prefetch(next.k[v * kLanes + i], d * kSize<kType>, 64);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sum[r] = fma(set1(tile.q[r * stride + d + i]), x[i], sum[r]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) store(scores + r * kBlock + v * kLanes, sum[r]);
  }
}

template <DType kType>
void transpose_block(const void* const* k_rows, int64_t k_dim, float* keys) {
  for (int v = 0; v < kBlockVecs; ++v) {
    for (int64_t d = 0; d < k_dim; d += kLanes) {
      F32 x[kLanes];
      load_columns<kType>(k_rows + v * kLanes, d, k_dim, x);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(keys + (d + i) * kBlock + v * kLanes, x[i]);
    }
  }
}

template <int kRows>
void score_tile(const float* q, int64_t stride, int64_t dim, const float* keys, float* scores) {
  for (int v = 0; v < kBlockVecs; v += kTileVecs) {
    F32 sum[kRows][kTileVecs];
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kTileVecs; ++i) sum[r][i] = zero();
    }
    for (int64_t d = 0; d < dim; ++d) {
      F32 x[kTileVecs];
#pragma GCC unroll 4
      for (int i = 0; i < kTileVecs; ++i) x[i] = load(keys + d * kBlock + (v + i) * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F32 element = set1(q[r * stride + d]);
#pragma GCC unroll 4
        for (int i = 0; i < kTileVecs; ++i) sum[r][i] = fma(element, x[i], sum[r][i]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kTileVecs; ++i) {
        store(scores + r * kBlock + (v + i) * kLanes, sum[r][i]);
      }
    }
  }
}

// Calls f.template operator()<n>(args...) for n = 1 .. kTileRows.
template <typename F, typename... Args>
KVC_SIMD_FN void for_rows(int n, F f, Args... args) {
  static_assert(kTileRows == 4 || kTileRows == 6);
  switch (n) {
    case 1:
      return f.template operator()<1>(args...);
    case 2:
      return f.template operator()<2>(args...);
    case 3:
      return f.template operator()<3>(args...);
    case 4:
      return f.template operator()<4>(args...);
    default:
      if constexpr (kTileRows == 6) {
        if (n == 5) return f.template operator()<5>(args...);
        return f.template operator()<6>(args...);
      }
  }
}

template <DType kType>
void score_block(const QueryTile& tile, int rows, const BlockRows& block, const BlockRows& next,
                 uint64_t bits, const Scratch& scratch) {
  if (rows <= kTileRows) {
    for_rows(rows, [&]<int kRows>() {
      score_few<kType, kRows>(tile, block, next, bits, scratch.scores);
    });
    return;
  }
  transpose_block<kType>(block.k, tile.k_dim, scratch.keys);
  const int64_t stride = pad(tile.k_dim);
  // As score_few: whole vectors of k_dim, the last one padded with zeros.
  const int64_t dim = (tile.k_dim + kLanes - 1) / kLanes * kLanes;
  for (int r = 0; r < rows; r += kTileRows) {
    for_rows(static_cast<int>(min_of(kTileRows, rows - r)), [&]<int kRows>() {
      score_tile<kRows>(tile.q + r * stride, stride, dim, scratch.keys,
                        scratch.scores + r * kBlock);
    });
  }
}

// --- Softmax. ---

// What is added to, or taken from, the scores of a row beside softcap. Returns the keys it sees.
uint64_t adjust_scores(const CutTask& task, int64_t row0, int32_t query, int32_t head,
                       uint64_t bits, float* scores) {
  const QueryTile& tile = *task.tile;
  if (tile.softcap > 0) {
    const F32 cap = set1(tile.softcap);
    for (int v = 0; v < kBlockVecs; ++v) {
      store(scores + v * kLanes, cap * tanh(load(scores + v * kLanes) / cap));
    }
  }
  if (tile.alibi_slopes != nullptr) {
    const float slope = tile.alibi_slopes[head];
    for (uint64_t rest = bits; rest != 0; rest &= rest - 1) {
      const int key = __builtin_ctzll(rest);
      const int64_t distance = tile.position[query] - position_of(*task.rows, row0 + key);
      scores[key] = scores[key] - slope * static_cast<float>(distance);
    }
  }
  if (tile.mask != nullptr) {
    const float* mask = tile.mask + head * tile.mask_head_stride + query * tile.mask_query_stride +
                        (task.mask_key + row0) * tile.mask_key_stride;
    for (uint64_t rest = bits; rest != 0; rest &= rest - 1) {
      const int key = __builtin_ctzll(rest);
      const float bias = mask[key * tile.mask_key_stride];
      if (bias == -__builtin_inff()) bits &= ~(uint64_t{1} << key);
      scores[key] = scores[key] + bias;
    }
  }
  return bits;
}

// Scores of one row become weights exp(s - m), 0 for hidden keys. REQUIRES: bits != 0.
void softmax_row(float* scores, uint64_t bits, float* max_inout, float* sum_inout, float* acc,
                 int64_t v_stride) {
  const F32 hidden = set1(-__builtin_inff());
  F32 s[kBlockVecs];
  F32 top = hidden;
#pragma GCC unroll 16
  for (int v = 0; v < kBlockVecs; ++v) {
    s[v] = load(scores + v * kLanes);
    if (bits != kAllKeys) {
      s[v] = choose(static_cast<std::uint32_t>(bits >> (v * kLanes)), s[v], hidden);
    }
    top = max(top, s[v]);
  }
  const float block_max = reduce_max(top);
  float m = *max_inout;
  if (block_max > m) {
    if (m != -__builtin_inff() || *sum_inout != 0) {
      const float factor = exp1(m - block_max);
      *sum_inout *= factor;
      const F32 scale = set1(factor);
      for (int64_t d = 0; d < v_stride; d += kLanes) store(acc + d, load(acc + d) * scale);
    }
    m = block_max;
    *max_inout = m;
  }
  // Every score so far is -inf: weights are 0.
  const F32 origin = set1(m == -__builtin_inff() ? 0.0f : m);
  F32 sum = zero();
#pragma GCC unroll 16
  for (int v = 0; v < kBlockVecs; ++v) {
    const F32 weight = exp(s[v] - origin);
    store(scores + v * kLanes, weight);
    sum = sum + weight;
  }
  *sum_inout += reduce_add(sum);
}

// --- Values: acc += P V. ---

// Elements at .. at + kVecs * kLanes of `rows` rows with equal `bits`. kTail < kLanes elements if
// not 0.
template <DType kType, int kRows, int kVecs>
KVC_SIMD_FN void value_columns(const float* weights, uint64_t bits, const void* const* v_rows,
                               const void* const* next, int64_t at, int tail, float* acc,
                               int64_t stride) {
  F32 sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) sum[r][i] = load(acc + r * stride + at + i * kLanes);
  }
  for (; bits != 0; bits &= bits - 1) {
    const int key = __builtin_ctzll(bits);
    if (next != nullptr) prefetch(next[key], at * kSize<kType>, kVecs * kLanes * kSize<kType>);
    F32 x[kVecs];
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) {
      x[i] = tail != 0 ? load_n_as<kType>(v_rows[key], at, tail)
                       : load_as<kType>(v_rows[key], at + i * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32 weight = set1(weights[r * kBlock + key]);
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) sum[r][i] = fma(weight, x[i], sum[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) store(acc + r * stride + at + i * kLanes, sum[r][i]);
  }
}

template <DType kType, int kRows>
void value_tile(const float* weights, uint64_t bits, const void* const* v_rows,
                const void* const* next, int64_t dim, float* acc, int64_t stride) {
  int64_t at = 0;
  for (; at + kTileVecs * kLanes <= dim; at += kTileVecs * kLanes) {
    value_columns<kType, kRows, kTileVecs>(weights, bits, v_rows, next, at, 0, acc, stride);
  }
  for (; at + kLanes <= dim; at += kLanes) {
    value_columns<kType, kRows, 1>(weights, bits, v_rows, next, at, 0, acc, stride);
  }
  if (at < dim) {
    value_columns<kType, kRows, 1>(weights, bits, v_rows, next, at, static_cast<int>(dim - at), acc,
                                   stride);
  }
}

template <DType kType>
void add_values(const QueryTile& tile, int rows, const void* const* v_rows, const void* const* next,
                const Scratch& scratch, float* acc) {
  const int64_t stride = pad(tile.v_dim);
  for (int r = 0; r < rows;) {
    const uint64_t bits = scratch.row_bits[r];
    int n = 1;
    while (n < kTileRows && r + n < rows && scratch.row_bits[r + n] == bits) ++n;
    if (bits != 0) {
      for_rows(n, [&]<int kRows>() {
        value_tile<kType, kRows>(scratch.scores + r * kBlock, bits, v_rows, next, tile.v_dim,
                                 acc + r * stride, stride);
      });
      next = nullptr;  // once is enough
    }
    r += n;
  }
}

template <DType kType>
void value_block(const QueryTile& tile, int rows, uint64_t bits, const BlockRows& block,
                 const BlockRows& next, const Scratch& scratch, float* acc) {
  if (kType == DType::kF32 || rows <= kTileRows) {
    return add_values<kType>(tile, rows, block.v, next.v, scratch, acc);
  }
  // Several passes over the block: widen it once.
  const int64_t stride = pad(tile.v_dim);
  const void* v_rows[kBlock];
  for (uint64_t rest = bits; rest != 0; rest &= rest - 1) {
    const int key = __builtin_ctzll(rest);
    float* to = scratch.values + key * stride;
    int64_t at = 0;
    for (; at + kLanes <= tile.v_dim; at += kLanes) {
      store(to + at, load_as<kType>(block.v[key], at));
    }
    if (at < tile.v_dim) {
      store(to + at, load_n_as<kType>(block.v[key], at, static_cast<int>(tile.v_dim - at)));
    }
    v_rows[key] = to;
  }
  add_values<DType::kF32>(tile, rows, v_rows, nullptr, scratch, acc);
}

// --- The functions of the table. ---

void attend_cut(const CutTask& task) {
  const QueryTile& tile = *task.tile;
  const KvRows& kv = *task.rows;
  const int rows = tile.num_queries * tile.group;
  const int64_t v_stride = pad(tile.v_dim);
  const PartialRows& partial = task.partial;
  Scratch scratch;
  carve(task.scratch, rows, tile.k_dim, tile.v_dim, &scratch);
  for (int64_t i = 0; i < pad(tile.k_dim); ++i) scratch.zeros[i] = 0;
  for (int r = 0; r < rows; ++r) {
    partial.max[r] = -__builtin_inff();
    partial.sum[r] = 0;
  }
  for (int64_t i = 0; i < rows * v_stride; ++i) partial.acc[i] = 0;

  const bool adjusts = tile.softcap > 0 || tile.alibi_slopes != nullptr || tile.mask != nullptr;
  const int64_t first_block = (kv.first_index + task.begin) / kBlock;
  const int64_t last_block = (kv.first_index + task.end - 1) / kBlock;
  for (int64_t block = first_block; block <= last_block; ++block) {
    const int64_t row0 = block * kBlock - kv.first_index;
    uint64_t any = 0;
    for (int32_t query = 0; query < tile.num_queries; ++query) {
      scratch.query_bits[query] = visible_keys(task, row0, query);
      any |= scratch.query_bits[query];
    }
    if (any == 0) continue;

    BlockRows here;
    BlockRows next;
    find_rows(kv, row0, any, scratch.zeros, &here);
    find_rows(kv, row0 + kBlock, bit_range(0, kv.num_rows - row0 - kBlock), scratch.zeros, &next);
    switch (kv.k_dtype) {
      case DType::kF16:
        score_block<DType::kF16>(tile, rows, here, next, any, scratch);
        break;
      case DType::kBF16:
        score_block<DType::kBF16>(tile, rows, here, next, any, scratch);
        break;
      default:
        score_block<DType::kF32>(tile, rows, here, next, any, scratch);
    }

    for (int r = 0; r < rows; ++r) {
      const int32_t query = r / tile.group;
      uint64_t bits = scratch.query_bits[query];
      float* scores = scratch.scores + r * kBlock;
      if (adjusts && bits != 0) {
        bits = adjust_scores(task, row0, query, r % tile.group, bits, scores);
      }
      scratch.row_bits[r] = bits;
      if (bits == 0) continue;
      softmax_row(scores, bits, partial.max + r, partial.sum + r, partial.acc + r * v_stride,
                  v_stride);
    }

    switch (kv.v_dtype) {
      case DType::kF16:
        value_block<DType::kF16>(tile, rows, any, here, next, scratch, partial.acc);
        break;
      case DType::kBF16:
        value_block<DType::kBF16>(tile, rows, any, here, next, scratch, partial.acc);
        break;
      default:
        value_block<DType::kF32>(tile, rows, any, here, next, scratch, partial.acc);
    }
  }
}

void merge(const PartialRows& into, const PartialRows& next, int64_t rows, int64_t v_dim) {
  const int64_t stride = pad(v_dim);
  const float nothing = -__builtin_inff();
  for (int64_t r = 0; r < rows; ++r) {
    if (next.max[r] == nothing && next.sum[r] == 0) continue;
    float* to = into.acc + r * stride;
    const float* from = next.acc + r * stride;
    if (into.max[r] == nothing && into.sum[r] == 0) {
      into.max[r] = next.max[r];
      into.sum[r] = next.sum[r];
      for (int64_t d = 0; d < stride; d += kLanes) store(to + d, load(from + d));
      continue;
    }
    const float m = into.max[r] > next.max[r] ? into.max[r] : next.max[r];
    const F32 a = exp(set1(into.max[r] - m));
    const F32 b = exp(set1(next.max[r] - m));
    into.max[r] = m;
    into.sum[r] = into.sum[r] * a[0] + next.sum[r] * b[0];
    for (int64_t d = 0; d < stride; d += kLanes) {
      store(to + d, fma(load(from + d), b, load(to + d) * a));
    }
  }
}

int64_t scratch_bytes(int64_t rows, int64_t k_dim, int64_t v_dim) {
  Scratch scratch;
  return carve(nullptr, rows, k_dim, v_dim, &scratch);
}

}  // namespace

const AttentionKernels& attention_kernels() {
  static constexpr AttentionKernels kernels = {attend_cut, merge, scratch_bytes};
  return kernels;
}

}  // namespace kvcache::internal::KVC_SIMD
