// Attention of few query rows over a cut of keys and values: the decode path. Part of
// attention.inl.
//
// Lanes are elements of a row, for keys as for values: rows are read as they are stored, and
// nothing is transposed. A score is the sum of kLanes sums, each over elements in ascending order,
// folded in a fixed order; the sums of a step (rows by keys) are folded together. bf16 rows are
// widened by pairs of elements, two operations for two vectors: lanes of the first hold the even
// elements, of the second the odd ones. Queries are brought into that order before, results are
// brought out of it after a cut.
//
// All scores of a cut come first, then the softmax of each row, then all values: the maximum is
// known before the first exponential, nothing is rescaled, and keys and values are streams of 128
// rows.
//
// Memory: the processor's own prefetching follows rows that are read in order and restarts at
// every page of memory; several such streams at once, crossing pages together, reach more of the
// memory than one. So kStreams quarters of the cut are read side by side, a key of each in turn.
// Where keys are missing, the next that are there take their place. Where the processor needs help
// (QueryTile::prefetch), the next block's rows are asked for while one is computed; where it does
// not, such instructions take the place of its own (Zen 3: a tenth to a third slower), but for the
// first lines of pages that lie apart.
//
// Cost per key and row: k_dim + v_dim multiply-adds. Four rows read and widen a key once, two to
// four a value; kFewChunk rows take a cut before the others do, who have it from the second cache.
namespace kvcache::internal::KVC_SIMD {
namespace {

// Rows of a pass over the cut: their scores stay in the first cache.
constexpr int kFewChunk = 8;

// Keys that kRows rows score side by side: the sums fill the registers.
template <int kRows>
constexpr int kFewKeys = kRows == 1 ? 8 : (kRegisters == 32 ? 16 : 8) / (kRows == 3 ? 4 : kRows);

// Keys of a step: scored, or their values added, between two requests for rows of a whole block.
constexpr int kFewStep = 16;

// Elements that are widened as pairs: whole pairs of vectors of bf16 rows.
template <DType kType>
KVC_SIMD_FN int64_t paired(int64_t dim) {
  return kType == DType::kBF16 ? dim / (2 * kLanes) * (2 * kLanes) : 0;
}

// x [rows, dim padded], elements paired(dim) in the order of load_bf16_pairs.
void to_pairs(const float* x, int64_t rows, int64_t dim, int64_t stride, float* to) {
  const int64_t end = paired<DType::kBF16>(dim);
  for (int64_t r = 0; r < rows; ++r, x += stride, to += stride) {
    for (int64_t d = 0; d < end; d += 2 * kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        to[d + i] = x[d + 2 * i];
        to[d + kLanes + i] = x[d + 2 * i + 1];
      }
    }
    for (int64_t d = end; d < stride; ++d) to[d] = x[d];
  }
}

// The way back, in place.
void from_pairs(float* x, int64_t rows, int64_t dim, int64_t stride) {
  const int64_t end = paired<DType::kBF16>(dim);
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    for (int64_t d = 0; d < end; d += 2 * kLanes) {
      const F32 even = load(x + d);
      const F32 odd = load(x + d + kLanes);
      store(x + d, zip_low(even, odd));
      store(x + d + kLanes, zip_high(even, odd));
    }
  }
}

// Calls f.template operator()<n>(row) for rows 0 .. rows: by fours, then the rest.
template <typename F>
KVC_SIMD_FN void for_fours(int rows, F f) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) f.template operator()<4>(r);
  if (rows - r == 3) f.template operator()<3>(r);
  if (rows - r == 2) f.template operator()<2>(r);
  if (rows - r == 1) f.template operator()<1>(r);
}

// The same by twos, of which the first is a three if their number is odd.
template <typename F>
KVC_SIMD_FN void for_twos(int rows, F f) {
  if (rows == 1) return f.template operator()<1>(0);
  int r = rows % 2 == 0 ? 0 : 3;
  if (r == 3) f.template operator()<3>(0);
  for (; r < rows; r += 2) f.template operator()<2>(r);
}

// Rows that are read after those of a block, and the bytes of each.
struct Ahead {
  const char* const* rows;  // [kBlock]
  int64_t bytes;
};

// Asks for rows ahead while the step at `slot` of the block `here` is computed. kRuns: for the
// first lines of those that do not follow the rows here, as finding their page takes long.
KVC_SIMD_FN void ask_for(const Ahead& ahead, const char* const* here, int slot, Prefetch level) {
  if (level == Prefetch::kRuns && slot == 0) {
    for (int i = 0; i < kStreams; ++i) {
      const char* last = here[kBlock - kStreams + i];
      if (ahead.rows[i] != last + (here[kStreams + i] - here[i])) {
        __builtin_prefetch(ahead.rows[i], 0, 3);
      }
    }
  }
  const auto each_line = [&](auto ask) __attribute__((always_inline)) {
    for (int i = slot; i < slot + kFewStep; ++i) {
      for (int64_t byte = 0; byte < ahead.bytes; byte += 64) ask(ahead.rows[i] + byte);
    }
  };
  if (level == Prefetch::kL1) each_line([](const char* at) { __builtin_prefetch(at, 0, 3); });
  if (level == Prefetch::kL2) each_line([](const char* at) { __builtin_prefetch(at, 0, 2); });
  if (level == Prefetch::kL3) each_line([](const char* at) { __builtin_prefetch(at, 0, 1); });
}

// All requests at once, where a block is not taken whole. Its runs may end elsewhere: some first
// lines are asked for in vain.
void ask_for_all(const Ahead& ahead, const char* const* here, Prefetch level) {
  for (int slot = 0; slot < kBlock; slot += kFewStep) ask_for(ahead, here, slot, level);
}

// Elements at, at + kLanes of a row: two vectors, in the order of load_bf16_pairs if bf16.
template <DType kType>
KVC_SIMD_FN void load_two(const char* row, int64_t at, F32* a, F32* b) {
  if constexpr (kType == DType::kBF16) {
    load_bf16_pairs(reinterpret_cast<const uint16_t*>(row) + at, a, b);
  } else {
    *a = load_as<kType>(row, at);
    *b = load_as<kType>(row, at + kLanes);
  }
}

// Elements at .. at + kLanes of a row; `tail` of them if not 0.
template <DType kType>
KVC_SIMD_FN F32 load_one(const char* row, int64_t at, int tail) {
  return tail != 0 ? load_n_as<kType>(row, at, tail) : load_as<kType>(row, at);
}

// Scores of kRows rows with the keys of a step: scores[row * kCutKeys + key]. A function of its
// own, as add_values: their loops need all registers. The lanes of a sum are added only when those
// of the whole step are there: as an end of each sum they would hold up the next one.
template <DType kType, int kRows>
[[gnu::noinline]] void score_step(const float* q, int64_t stride, int64_t dim,
                                  const char* const* k_rows, float* scores) {
  constexpr int kKeys = kFewKeys<kRows>;
  static_assert(kFewStep % kKeys == 0 && kFewStep % kLanes == 0);
  F32 lanes[kRows][kFewStep];
  for (int key = 0; key < kFewStep; key += kKeys) {
    const char* row[kKeys];
    F32 sums[kRows][kKeys];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
      row[i] = k_rows[key + i];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r][i] = zero();
    }
    int64_t d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      F32 x[kKeys];
      F32 y[kKeys];
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) load_two<kType>(row[i], d, &x[i], &y[i]);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const F32 a = in_register(load(q + r * stride + d));
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) sums[r][i] = fma(a, x[i], sums[r][i]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const F32 b = in_register(load(q + r * stride + d + kLanes));
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) sums[r][i] = fma(b, y[i], sums[r][i]);
      }
    }
    for (; d < dim; d += kLanes) {
      const int tail = dim - d < kLanes ? static_cast<int>(dim - d) : 0;
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) {
        const F32 x = load_one<kType>(row[i], d, tail);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r][i] = fma(load(q + r * stride + d), x, sums[r][i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) lanes[r][key + i] = sums[r][i];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int key = 0; key < kFewStep; key += kLanes) {
      store(scores + r * kCutKeys + key, fold(lanes[r] + key));
    }
  }
}

// A block of which some rows of a chunk see keys. Where all keys are seen, rows are in their slots.
// Otherwise those that are seen lie close together, in the order of their slots, and the last of
// them stands in the places behind it.
struct SeenBlock {
  BlockRows rows;
  int64_t number;  // in the cut
  int count;
  uint8_t slots[kBlock];
};

// From rows in their slots. REQUIRES: there are some.
KVC_SIMD_FN void close_up(SeenBlock* block) {
  int n = 0;
  for (uint64_t bits = block->rows.bits; bits != 0; bits &= bits - 1, ++n) {
    const int slot = __builtin_ctzll(bits);
    block->slots[n] = static_cast<uint8_t>(slot);
    block->rows.k[n] = block->rows.k[slot];
    block->rows.v[n] = block->rows.v[slot];
  }
  block->count = n;
  for (int i = n; i < kBlock; ++i) {
    block->rows.k[i] = block->rows.k[n - 1];
    block->rows.v[i] = block->rows.v[n - 1];
  }
}

// Scores of `rows` rows with the keys of a block: scores[row * kCutKeys + slot].
template <DType kType>
void score_few(const float* q, const QueryTile& tile, int rows, const SeenBlock& block,
               const Ahead& ahead, float* scores) {
  const int64_t stride = pad(tile.k_dim);
  const char* const* k_rows = block.rows.k;
  if (block.rows.bits == kAllKeys) {
    for (int slot = 0; slot < kBlock; slot += kFewStep) {
      ask_for(ahead, k_rows, slot, tile.prefetch);
      for_fours(rows, [&]<int kRows>(int r) {
        score_step<kType, kRows>(q + r * stride, stride, tile.k_dim, k_rows + slot,
                                 scores + r * kCutKeys + slot);
      });
    }
    return;
  }
  ask_for_all(ahead, k_rows, tile.prefetch);
  for_fours(rows, [&]<int kRows>(int r) {
    for (int key = 0; key < block.count; key += kFewStep) {
      float step[kRows * kCutKeys];
      score_step<kType, kRows>(q + r * stride, stride, tile.k_dim, k_rows + key, step);
      const int n = static_cast<int>(min_of(block.count - key, kFewStep));
      for (int i = 0; i < n; ++i) {
        for (int row = 0; row < kRows; ++row) {
          scores[(r + row) * kCutKeys + block.slots[key + i]] = step[row * kCutKeys + i];
        }
      }
    }
  });
}

// acc += weights * values for kRows rows and n keys, kKeys at a time: weights[row * kCutKeys +
// key]. REQUIRES: n is a multiple of kKeys.
template <DType kType, int kRows, int kKeys>
[[gnu::noinline]] void add_values(const float* weights, const char* const* v_rows, int n,
                                  int64_t dim, float* acc, int64_t stride) {
  // Vectors of a row that are summed side by side.
  constexpr int kWide = kRegisters == 16 && kRows == 3 ? 1 : 2;
  for (int key = 0; key < n; key += kKeys) {
    // Copies stay in registers; the originals might be what is stored to, for all that is known.
    const char* row[kKeys];
    F32 weight[kRows][kKeys];
#pragma GCC unroll 4
    for (int i = 0; i < kKeys; ++i) {
      row[i] = v_rows[key + i];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) weight[r][i] = set1(weights[r * kCutKeys + key + i]);
    }
    int64_t d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
#pragma GCC unroll 2
      for (int first = 0; first < 2; first += kWide) {
        F32 sums[kRows][kWide];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
          for (int w = 0; w < kWide; ++w) {
            sums[r][w] = load(acc + r * stride + d + (first + w) * kLanes);
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kKeys; ++i) {
          F32 x[2];
          load_two<kType>(row[i], d, &x[0], &x[1]);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
            for (int w = 0; w < kWide; ++w)
              sums[r][w] = fma(weight[r][i], x[first + w], sums[r][w]);
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
          for (int w = 0; w < kWide; ++w) {
            store(acc + r * stride + d + (first + w) * kLanes, sums[r][w]);
          }
        }
      }
    }
    for (; d < dim; d += kLanes) {
      const int tail = dim - d < kLanes ? static_cast<int>(dim - d) : 0;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        F32 a = load(acc + r * stride + d);
#pragma GCC unroll 4
        for (int i = 0; i < kKeys; ++i) a = fma(weight[r][i], load_one<kType>(row[i], d, tail), a);
        store(acc + r * stride + d, a);
      }
    }
  }
}

// The same for `rows` rows and any n.
template <DType kType>
KVC_SIMD_FN void add_step(const float* weights, const char* const* v_rows, int n, int rows,
                          int64_t dim, float* acc, int64_t stride) {
  const int whole = n / 4 * 4;
  const auto add = [&]<int kRows>(int r) __attribute__((always_inline)) {
    const float* w = weights + r * kCutKeys;
    float* to = acc + r * stride;
    add_values<kType, kRows, 4>(w, v_rows, whole, dim, to, stride);
    if (whole < n) {
      add_values<kType, kRows, 1>(w + whole, v_rows + whole, n - whole, dim, to, stride);
    }
  };
  if constexpr (kRegisters == 32) {
    for_fours(rows, add);
  } else {
    for_twos(rows, add);
  }
}

// acc += weights * values of a block for `rows` rows: weights[row * kCutKeys + slot]. Row r sees
// the keys row_bits[r * kCutBlocks].
template <DType kType>
void value_few(const QueryTile& tile, int rows, const SeenBlock& block, const Ahead& ahead,
               const uint64_t* row_bits, const float* weights, float* acc) {
  const int64_t stride = pad(tile.v_dim);
  for (int r = 0; r < rows;) {
    // Rows that see the same keys.
    const uint64_t bits = row_bits[r * kCutBlocks];
    int end = r + 1;
    while (end < rows && row_bits[end * kCutBlocks] == bits) ++end;
    if (bits == kAllKeys) {
      for (int slot = 0; slot < kBlock; slot += kFewStep) {
        if (r == 0) ask_for(ahead, block.rows.v, slot, tile.prefetch);
        add_step<kType>(weights + r * kCutKeys + slot, block.rows.v + slot, kFewStep, end - r,
                        tile.v_dim, acc + r * stride, stride);
      }
    } else if (bits != 0) {
      if (r == 0) ask_for_all(ahead, block.rows.v, tile.prefetch);
      // Of these keys, those that the rows see.
      const bool whole = block.rows.bits == kAllKeys;
      const char* v_rows[kBlock];
      float close[kFewChunk * kCutKeys];
      int n = 0;
      for (int i = 0; i < (whole ? kBlock : block.count); ++i) {
        const int slot = whole ? i : block.slots[i];
        v_rows[n] = block.rows.v[i];
        for (int row = r; row < end; ++row) {
          close[(row - r) * kCutKeys + n] = weights[row * kCutKeys + slot];
        }
        n += static_cast<int>(bits >> slot & 1);
      }
      add_step<kType>(close, v_rows, n, end - r, tile.v_dim, acc + r * stride, stride);
    }
    r = end;
  }
}

// The blocks of a cut of which a chunk of rows sees keys: count of them, in order.
struct SeenBlocks {
  int count;
  SeenBlock blocks[kCutBlocks + 1];  // the last: after the cut, rows to ask for
};

// Finds them for rows row0 .. row0 + n of the tile, and what each row sees: bits[n][kCutBlocks].
// Behind the first rows `seen` holds the blocks of those before, and most are the same.
void find_blocks(const CutTask& task, int64_t cut, int row0, int n, const float* zeros,
                 uint64_t* bits, SeenBlocks* seen) {
  const KvRows& kv = *task.rows;
  const int group = task.tile->group;
  const int before = row0 == 0 ? -1 : seen->count;
  seen->count = 0;
  for (int b = 0; b < kCutBlocks; ++b) {
    const BlockKeys keys = keys_of_parts(kv, cut, b);
    uint64_t any = 0;
    for (int r = 0; r < n; ++r) {
      const bool same_query = r > 0 && (row0 + r) % group != 0;
      uint64_t& row_bits = bits[r * kCutBlocks + b];
      row_bits = same_query ? bits[(r - 1) * kCutBlocks + b]
                            : visible_keys(task, keys, (row0 + r) / group);
      any |= row_bits;
    }
    if (any == 0) continue;
    const int at = seen->count++;
    SeenBlock& block = seen->blocks[at];
    if (at < before && block.number == b && block.rows.bits == any) continue;
    find_rows(kv, keys, any, nullptr, &block.rows);
    if (any != kAllKeys) close_up(&block);
    block.number = b;
  }
  if (task.tile->prefetch == Prefetch::kNone || seen->count == before) return;
  const BlockKeys keys = keys_of_parts(kv, cut + 1, 0);
  find_rows(kv, keys, slots_of(keys, 0, kv.num_rows), zeros, &seen->blocks[seen->count].rows);
}

// Memory of one call.
struct FewScratch {
  float* q;        // [rows, k_dim padded] in the order of load_bf16_pairs
  uint64_t* bits;  // [chunk, blocks of the cut] keys that each row sees
  float* scores;   // [chunk, 512]; then the weights
};

void attend_few(const CutTask& task, const float* zeros, const FewScratch& scratch) {
  const QueryTile& tile = *task.tile;
  const KvRows& kv = *task.rows;
  const PartialRows& partial = task.partial;
  const int rows = tile.num_queries * tile.group;
  const int64_t q_stride = pad(tile.k_dim);
  const int64_t v_stride = pad(tile.v_dim);
  const int64_t cut = (kv.first_index + task.begin) / kCutKeys;
  const int64_t k_bytes = tile.k_dim * (kv.k.format.dtype == DType::kF32 ? 4 : 2);
  const int64_t v_bytes = tile.v_dim * (kv.v.format.dtype == DType::kF32 ? 4 : 2);
  const float* q = tile.q;
  if (kv.k.format.dtype == DType::kBF16) {
    to_pairs(tile.q, rows, tile.k_dim, q_stride, scratch.q);
    q = scratch.q;
  }
  SeenBlocks seen;
  for (int row0 = 0; row0 < rows; row0 += kFewChunk) {
    const int n = static_cast<int>(min_of(rows - row0, kFewChunk));
    find_blocks(task, cut, row0, n, zeros, scratch.bits, &seen);
    for_dtype(kv.k.format.dtype, [&]<DType kType>() {
      for (int i = 0; i < seen.count; ++i) {
        const bool last = i + 1 == seen.count;
        const Ahead ahead = last ? Ahead{seen.blocks[0].rows.v, v_bytes}
                                 : Ahead{seen.blocks[i + 1].rows.k, k_bytes};
        score_few<kType>(q + row0 * q_stride, tile, n, seen.blocks[i], ahead,
                         scratch.scores + seen.blocks[i].number * kBlock);
      }
    });
    for (int r = 0; r < n; ++r) {
      float* scores = scratch.scores + r * kCutKeys;
      uint64_t* bits = scratch.bits + r * kCutBlocks;
      const int row = row0 + r;
      if (adjusts_scores(tile)) {
        for (int i = 0; i < seen.count; ++i) {
          const int64_t b = seen.blocks[i].number;
          if (bits[b] == 0) continue;
          bits[b] = adjust_scores(task, keys_of_parts(kv, cut, b), row / tile.group,
                                  row % tile.group, bits[b], scores + b * kBlock);
        }
      }
      soften(scores, bits, partial.max + row, partial.sum + row);
    }
    for_dtype(kv.v.format.dtype, [&]<DType kType>() {
      for (int i = 0; i < seen.count; ++i) {
        const bool last = i + 1 == seen.count;
        const BlockRows& next = seen.blocks[i + 1].rows;
        const Ahead ahead = last ? Ahead{next.k, k_bytes} : Ahead{next.v, v_bytes};
        const int64_t b = seen.blocks[i].number;
        value_few<kType>(tile, n, seen.blocks[i], ahead, scratch.bits + b,
                         scratch.scores + b * kBlock, partial.acc + row0 * v_stride);
      }
    });
  }
  if (kv.v.format.dtype == DType::kBF16) from_pairs(partial.acc, rows, tile.v_dim, v_stride);
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
