// Rows by element, which keys of a block a query sees, and where their rows are. Part of
// attention.inl.
namespace kvcache::internal::KVC_SIMD {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

constexpr int kBlock = static_cast<int>(kBlockKeys);
constexpr int kBlockVecs = kBlock / kLanes;
constexpr int kCutBlocks = static_cast<int>(kLongCutKeys / kBlockKeys);  // at most

constexpr uint64_t kAllKeys = ~uint64_t{0};

template <DType kType>
constexpr int64_t kSize = kType == DType::kF32 ? 4 : 2;

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

// Calls f.template operator()<type>().
template <typename F>
KVC_SIMD_FN void for_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::kF16:
      return f.template operator()<DType::kF16>();
    case DType::kBF16:
      return f.template operator()<DType::kBF16>();
    default:
      return f.template operator()<DType::kF32>();
  }
}

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

// The keys of a block, slot by slot: of `runs` runs of rows in turn. Few query rows take them from
// the kStreams parts of a cut, which are read side by side; many take 64 rows in order, one run.
constexpr int kStreams = 4;

struct BlockKeys {
  int64_t row0;  // of the part: the first row of the first run; negative before its first
  int runs;      // 1 or kStreams
  int64_t stream_keys = 0;  // from a run to the next

  int64_t row(int slot) const {
    return runs == 1 ? row0 + slot : row0 + slot % kStreams * stream_keys + slot / kStreams;
  }
};

// Block number `block` of the sequence: its keys in order.
KVC_SIMD_FN BlockKeys keys_in_order(const KvRows& rows, int64_t block) {
  return {block * kBlock - rows.first_index, 1};
}

// Block number `block` of the cut: its keys from all parts of the cut.
KVC_SIMD_FN BlockKeys keys_of_parts(const KvRows& rows, const Cut& cut, int64_t block) {
  return {cut.first + block * (kBlock / kStreams) - rows.first_index, kStreams,
          cut.keys / kStreams};
}

// The slots of a run: bit i of `bits`, of 16, becomes bit kStreams * i.
KVC_SIMD_FN uint64_t every_fourth(uint64_t bits) {
  static_assert(kStreams == 4);
  bits = (bits | bits << 24) & 0x000000FF000000FF;
  bits = (bits | bits << 12) & 0x000F000F000F000F;
  bits = (bits | bits << 6) & 0x0303030303030303;
  return (bits | bits << 3) & 0x1111111111111111;
}

// The slots of rows begin .. end of the part.
KVC_SIMD_FN uint64_t slots_of(const BlockKeys& keys, int64_t begin, int64_t end) {
  if (keys.runs == 1) return bit_range(begin - keys.row0, end - keys.row0);
  if (begin <= keys.row0 && end > keys.row(kBlock - 1)) return kAllKeys;
  uint64_t bits = 0;
  for (int run = 0; run < kStreams; ++run) {
    const int64_t row0 = keys.row(run);
    const int64_t last = min_of(end - row0, kBlock / kStreams);
    bits |= every_fourth(bit_range(begin - row0, last)) << run;
  }
  return bits;
}

// The slots whose keys query `query` sees.
uint64_t visible_keys(const CutTask& task, const BlockKeys& keys, int32_t query) {
  const QueryTile& tile = *task.tile;
  const KvRows& rows = *task.rows;
  uint64_t bits = slots_of(keys, task.begin, min_of(task.end, task.causal_end + query));
  if ((tile.window == 0 && tile.chunk == 0) || bits == 0) return bits;
  int64_t oldest = tile.position[query] - tile.window + 1;
  int64_t past = INT64_MAX;
  if (tile.chunk > 0) {
    const int64_t within = (tile.position[query] - tile.chunk_origin) % tile.chunk;
    oldest = tile.position[query] - (within < 0 ? within + tile.chunk : within);
    past = oldest + tile.chunk;
  }
  if (rows.positions == nullptr) {
    const int64_t first = rows.first_index;
    return bits & (slots_of(keys, oldest - first, min_of(task.end, past - first)) |
                   slots_of(keys, task.begin, tile.sink_tokens - first));
  }
  for (uint64_t rest = bits; rest != 0; rest &= rest - 1) {
    const int slot = __builtin_ctzll(rest);
    const int64_t position = rows.positions[keys.row(slot)];
    const bool near = position >= oldest && position < past;
    const bool sink = tile.window > 0 && position < tile.sink_tokens;
    if (!near && !sink) bits &= ~(uint64_t{1} << slot);
  }
  return bits;
}

// Where the rows of a block's slots are. `bits` says which are there. Scales and zeros: of coded
// rows.
struct BlockRows {
  const char* k[kBlock];
  const char* v[kBlock];
  const char* k_scales[kBlock];
  const char* k_zeros[kBlock];
  const char* v_scales[kBlock];
  const char* v_zeros[kBlock];
  uint64_t bits;
};

// Where page `page` starts, of those that lie `stride` bytes apart.
KVC_SIMD_FN const char* page_start(const RowsView& rows, int64_t page, int64_t stride) {
  const char* data = static_cast<const char*>(rows.data);
  if (rows.chunks != nullptr) {
    data = reinterpret_cast<const char*>(rows.chunks[page >> rows.chunk_shift]);
    page &= (int64_t{1} << rows.chunk_shift) - 1;
  }
  return data + page * stride;
}

// Where the codes or elements of page `page` start, for this head.
KVC_SIMD_FN const char* page_start(const RowsView& rows, int64_t page) {
  return page_start(rows, page, rows.page_stride) + rows.offset;
}

// The scales and zeros of rows at .. at + n of a page, in slots `slot`, `slot` + step and so on.
KVC_SIMD_FN void find_scales(const RowsView& rows, int64_t page, int64_t at, int64_t n, int slot,
                             int step, const char** scales, const char** zeros) {
  if (rows.scale_page_stride == 0) return;
  const char* start = page_start(rows, page, rows.scale_page_stride);
  const char* scale = start + rows.scale_offset + at * 2;
  const char* zero = start + rows.zero_offset + at;
  for (int64_t i = 0; i < n; ++i, slot += step) {
    scales[slot] = scale + i * 2;
    zeros[slot] = zero + i;
  }
}

// Which entry of the table is page `page` of the part. Those of the hole, which stand between
// wanted rows, count as the one behind it.
KVC_SIMD_FN int64_t entry_of(const KvRows& rows, int64_t page) {
  return page < rows.hole_begin ? page : max_of(page - rows.hole_pages, rows.hole_begin);
}

// Rows `row0` .. row0 + n of the part, in slots `slot`, `slot` + step and so on.
KVC_SIMD_FN void find_run(const KvRows& rows, int64_t row0, int64_t n, int slot, int step,
                          BlockRows* block) {
  const int64_t k_step = rows.k.token_stride;
  const int64_t v_step = rows.v.token_stride;
  while (n > 0) {
    // Rows of one page. Without a table all rows are slots of the only page.
    int64_t page = 0;
    int64_t at = row0;
    int64_t here = n;
    if (rows.block_table != nullptr) {
      page = row0 / rows.page_size;
      at -= page * rows.page_size;
      page = rows.block_table[entry_of(rows, page)];
      here = min_of(n, rows.page_size - at);
    }
    const char* k = page_start(rows.k, page) + at * k_step;
    const char* v = page_start(rows.v, page) + at * v_step;
    find_scales(rows.k, page, at, here, slot, step, block->k_scales, block->k_zeros);
    find_scales(rows.v, page, at, here, slot, step, block->v_scales, block->v_zeros);
    row0 += here;
    n -= here;
    for (; here > 0; --here, slot += step, k += k_step, v += v_step) {
      block->k[slot] = k;
      block->v[slot] = v;
    }
  }
}

// The rows of the block's slots `bits`; `missing` stands for the others, which stay as they are if
// it is null.
void find_rows(const KvRows& rows, const BlockKeys& keys, uint64_t bits, const void* missing,
               BlockRows* block) {
  block->bits = bits;
  const uint64_t run = keys.runs == 1 ? kAllKeys : every_fourth(0xFFFF);
  for (int i = 0; i < keys.runs; ++i) {
    const uint64_t wanted = bits & run << i;
    if (wanted == 0) continue;
    // From the first wanted row to the last: the table may end there.
    const int first = __builtin_ctzll(wanted);
    const int last = 63 - __builtin_clzll(wanted);
    find_run(rows, keys.row(first), (last - first) / keys.runs + 1, first, keys.runs, block);
  }
  if (missing == nullptr) return;
  for (uint64_t hidden = ~bits; hidden != 0; hidden &= hidden - 1) {
    const int slot = __builtin_ctzll(hidden);
    block->k[slot] = block->v[slot] = static_cast<const char*>(missing);
  }
}

// Asks for `bytes` of a row that is wanted soon, into the second level of cache.
KVC_SIMD_FN void prefetch(const char* row, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
