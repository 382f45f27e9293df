// Few query rows over coded keys and values by dot products of bytes, where each group of 32
// elements has a scale of its own: int4, q8_0 and q4_0. See attention_few_whole.inl.
//
// Codes are unsigned bytes with an offset: 0 to 15 with the zero of a group (8 of q4_0), of q8_0
// with 128 added. What the offset adds to a sum of products is known without the products, and
// taken away once.
//
// Scores. The planes of a query are those of attention_few_bytes.inl, but that each group has its
// unit: 2^-15 of a group's largest element is lost. 16 elements of four keys lie side by side in
// the lanes of a vector. The sums of a group go through both scales into floats, those of the
// offset last.
//
// Values. A block's group is brought into an order in which a dot product adds four keys, once for
// up to four rows. Weights times scales, which of ggml may be negative, are two planes of bytes,
// 256 h + l with h signed and l unsigned: h meets unsigned codes, l signed ones. 2^-16 of the
// block's largest is lost of each.
//
// Cost per key and row, for elements of both buffers: 2 / 64 dot products an element; of a group of
// a key two operations of floats, of one of a value two to round its weight; for all rows 4 / 64 to
// bring bytes together and, of values, as many shuffles.
namespace kvcache::internal::KVC_SIMD {
namespace {

constexpr float kGroupWeightMax = 32767.0f;
constexpr int kSet = 16;  // keys whose values lie in a vector
constexpr int kSets = kBlock / kSet;

// What is added to a code where it is not the same as the zero of its group.
template <RowFormat::Kind kKind>
constexpr int kOffset = kKind == RowFormat::kQ8_0 ? 128 : 8;

// The two halves of a group of four rows, codes at rows[i] + at: row i in lane i. As they are
// stored: those of q8_0 are signed.
template <RowFormat::Kind kKind>
KVC_SIMD_FN void halves_of(const char* const* rows, int64_t at, Bytes* to) {
  const Bytes first = load_four(rows[0] + at, rows[1] + at, rows[2] + at, rows[3] + at);
  if constexpr (GroupForm<kKind>::kHalves) {
    to[0] = low_halves(first);
    to[1] = high_halves(first);
  } else {
    at += kCodes;
    to[0] = first;
    to[1] = load_four(rows[0] + at, rows[1] + at, rows[2] + at, rows[3] + at);
  }
}

// Scores of kRows rows with all 16 keys of a step: scores[row * to_stride + key]. Of each group,
// scales [kStep], and offsets [kStep]: scales times what is to be taken away of each code.
template <RowFormat::Kind kKind, int kRows, Prefetch kAsk>
[[gnu::noinline]] void score_groups(const int8_t* q, const WholeRow* info, int64_t dim,
                                    const Step& here, const Step& ahead, const float* scales,
                                    const float* offsets, float* scores, int64_t to_stride) {
  using Form = GroupForm<kKind>;
  constexpr int64_t kHalf = int64_t{kRows} * kPlanes * 64;
  const int groups = static_cast<int>(dim / kGroup);
  const int64_t bytes = groups * Form::kBytes;
  F32 parts[kStreams][kRows];
#pragma GCC unroll 1
  for (int s = 0; s < kStreams; ++s) {
    const U32 of_stream = first_of_fours() + set1_u32(static_cast<uint32_t>(s));
    const char* rows[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      rows[i] = here.rows[i * kStreams + s] + Form::kCodesAt;
      for (int64_t byte = 0; byte < bytes; byte += 64)
        ask<kAsk>(ahead.rows[i * kStreams + s] + byte);
    }
    F32 sums[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[r] = zero();
    const int8_t* at = q;
#pragma GCC unroll 1
    for (int g = 0; g < groups; ++g, at += 2 * kHalf) {
      Bytes x[2];
      halves_of<kKind>(rows, g * Form::kBytes, x);
      if constexpr (kKind == RowFormat::kQ8_0) {
        x[0] = flip(x[0]);
        x[1] = flip(x[1]);
      }
      const F32 scale = pick(load(scales + g * kStep), of_stream);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto plane = [&](int p, int half) __attribute__((always_inline)) {
          return load_bytes(
              reinterpret_cast<const char*>(at + half * kHalf + (r * kPlanes + p) * 64));
        };
        // The offset of q8_0, by far the largest part of a sum, does not get into floats.
        S32 sum = {};
        if constexpr (kKind == RowFormat::kQ8_0) sum = in_first_of_fours(-info[r].sums[g]);
        sum = dot_bytes(dot_bytes(sum, x[0], plane(0, 0)), x[1], plane(0, 1));
        sum = dot_bytes(dot_bytes(sum << 7, x[0], plane(1, 0)), x[1], plane(1, 1));
        sums[r] = fma(to_float(sum) * set1(info[r].units[g]), scale, sums[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) parts[s][r] = sums[r];
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    F32 sum = add_neighbours(add_neighbours(parts[0][r], parts[2][r]),
                             add_neighbours(parts[1][r], parts[3][r]));
    if constexpr (kKind != RowFormat::kQ8_0) {
      for (int g = 0; g < groups; ++g) {
        const float less = info[r].units[g] * static_cast<float>(-info[r].sums[g]);
        sum = fma(set1(less), load(offsets + g * kStep), sum);
      }
    }
    store(scores + r * to_stride, sum);
  }
}

// The same for a chunk of rows, in the slots of the step's block: scores[row * kScores + slot].
template <RowFormat::Kind kKind, Prefetch kAsk>
void score_few_groups(const char* q, const WholeRow* info, int rows, const RowsView& keys,
                      int64_t dim, const Step& here, const Step& ahead, float* scores) {
  float scales[kMostGroups * kStep];
  float offsets[kMostGroups * kStep];
  int8_t zeros[kMostGroups * kStep];
  load_scales<kKind>(keys, dim, here, kStep, scales, zeros);
  if constexpr (kKind != RowFormat::kQ8_0) {
    for (int64_t i = 0; i < dim / kGroup * kStep; i += kStep) {
      F32 zero_code[1] = {set1(kOffset<kKind>)};
      if constexpr (kKind == RowFormat::kInt4)
        widen_codes(load_codes(reinterpret_cast<char*>(zeros) + i, kStep), zero_code);
      store(offsets + i, load(scales + i) * zero_code[0]);
    }
  }
  score_whole(
      rows, here,
      scores, [&]<int kRows>(int r, float* to, int64_t to_stride) __attribute__((always_inline)) {
        const auto* from = reinterpret_cast<const int8_t*>(q + r * packed_bytes(dim));
        // The lines ahead are asked for once.
        if (r == 0) {
          score_groups<kKind, kRows, kAsk>(from, info, dim, here, ahead, scales, offsets, to,
                                           to_stride);
        } else {
          score_groups<kKind, kRows, Prefetch::kNone>(from, info + r, dim, here, ahead, scales,
                                                      offsets, to, to_stride);
        }
      });
}

// Values of a block with their scales and zeros, by groups.
struct GroupBlock : ValueBlock {
  float scales[kMostGroups * kBlock];
  int8_t zeros[kMostGroups * kBlock];

  template <RowFormat::Kind kKind>
  [[gnu::always_inline]] void add_scales(const RowsView& values, int64_t dim, const Step& step) {
    load_scales<kKind>(values, dim, step, kBlock, scales + keys - kStep, zeros + keys - kStep);
  }
};

// Weights of a row times the scales of a group, as whole numbers: of each set of keys, four of them
// in all dwords of a lane.
struct GroupWeights {
  Bytes planes[kPlanes][kSets];
  S32 start;  // of sums: what the offset of codes adds to each, taken away
  float factor;

  // `offsets` of the codes of the block's keys in the order of split_planes.
  template <RowFormat::Kind kKind>
  [[gnu::always_inline]] void round(const float* from, const float* scales, Bytes offsets,
                                    int keys) {
    S32 whole[kSets];
    factor = round_weights(from, scales, keys, kGroupWeightMax, whole);
    Bytes split[kPlanes];
    split_planes<true>(whole, split);
    S32 sum = dot_bytes(S32{}, offsets, split[0]) << 8;
    if constexpr (kKind != RowFormat::kQ8_0) sum = dot_bytes(sum, split[1], offsets);
    start = S32{} - add_within_lanes(sum);
#pragma GCC unroll 2
    for (int p = 0; p < kPlanes; ++p) spread_fours(split[p], planes[p]);
  }
};

// acc += weights * values for a group of 32 elements of up to 64 keys, kRows rows: acc[row *
// stride]. fours: of each set of keys and half of the group, 16 elements, four keys to a dword.
template <RowFormat::Kind kKind, int kRows>
KVC_SIMD_FN void add_group(const Bytes (&fours)[kSets][2][4], int sets, const GroupWeights* weights,
                           float* acc, int64_t stride) {
#pragma GCC unroll 1
  for (int half = 0; half < 2; ++half) {
    S32 whole[kRows][4];
#pragma GCC unroll 2
    for (int two = 0; two < 4; two += 2) {
      S32 sums[kRows][kPlanes][2];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int p = 0; p < kPlanes; ++p) {
          sums[r][p][0] = sums[r][p][1] = p == 0 ? S32{} : weights[r].start;
        }
      }
#pragma GCC unroll 1
      for (int set = 0; set < sets; ++set) {
        const Bytes* const x = fours[set][half] + two;
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const Bytes codes = kKind == RowFormat::kQ8_0 ? flip(x[i]) : x[i];
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            sums[r][0][i] = dot_bytes(sums[r][0][i], codes, weights[r].planes[0][set]);
            sums[r][1][i] = dot_bytes(sums[r][1][i], weights[r].planes[1][set], x[i]);
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        whole[r][two] = (sums[r][0][0] << 8) + sums[r][1][0];
        whole[r][two + 1] = (sums[r][0][1] << 8) + sums[r][1][1];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F32 sum = to_float(add_lanes(whole[r]));
      float* to = acc + r * stride + half * kCodes;
      store(to, fma(set1(weights[r].factor), sum, load(to)));
    }
  }
}

// acc += weights * values of a block for kRows rows, acc [kRows, stride]; weights in the order of
// its keys.
template <RowFormat::Kind kKind, int kRows, Prefetch kAsk>
[[gnu::noinline]] void add_block_groups(const GroupBlock& block, const float* const* weights,
                                        int64_t dim, float* acc, int64_t stride) {
  using Form = GroupForm<kKind>;
  const int groups = static_cast<int>(dim / kGroup);
  const int sets = block.keys / kSet;
  const int64_t bytes = groups * Form::kBytes;
  GroupWeights rounded[kRows];
#pragma GCC unroll 1
  for (int g = 0; g < groups; ++g) {
    Bytes offsets = set_bytes(static_cast<int8_t>(kOffset<kKind>));
    if constexpr (kKind == RowFormat::kInt4) {
      offsets = fours_by_lane(
          load_bytes(reinterpret_cast<const char*>(block.zeros + g * kBlock), block.keys));
    }
#pragma GCC unroll 1
    for (int r = 0; r < kRows; ++r) {
      rounded[r].template round<kKind>(weights[r], block.scales + g * kBlock, offsets, block.keys);
    }
    // A part of the rows ahead with each group.
    for (int key = g * block.keys / groups; key < (g + 1) * block.keys / groups; ++key) {
      for (int64_t byte = 0; byte < bytes; byte += 64) ask<kAsk>(block.ahead[key] + byte);
    }
    Bytes fours[kSets][2][4];
#pragma GCC unroll 1
    for (int set = 0; set < sets; ++set) {
      Bytes x[2][4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const char* rows[4];
#pragma GCC unroll 4
        for (int lane = 0; lane < 4; ++lane) {
          rows[lane] = block.rows[set * kSet + lane * 4 + i] + Form::kCodesAt;
        }
        Bytes halves[2];
        halves_of<kKind>(rows, g * Form::kBytes, halves);
        x[0][i] = halves[0];
        x[1][i] = halves[1];
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        interleave<0>(x[half], fours[set][half]);
        interleave<1>(x[half], fours[set][half] + 2);
      }
    }
    add_group<kKind, kRows>(fours, sets, rounded, acc + g * kGroup, stride);
  }
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
