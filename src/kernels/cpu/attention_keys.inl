// Which keys of a block a query sees, and where their rows are. Part of attention.inl.
namespace kvcache::internal::KVC_SIMD {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;

constexpr int kBlock = static_cast<int>(kBlockKeys);
constexpr int kBlockVecs = kBlock / kLanes;

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

// Where the rows of a block are. `bits` says which rows these are; the others stand on zeros.
struct BlockRows {
  const char* k[kBlock];
  const char* v[kBlock];
  uint64_t bits;
};

// The rows of `bits` of the block whose bit 0 is row `row0`; `missing` stands for the others.
void find_rows(const KvRows& rows, int64_t row0, uint64_t bits, const void* missing,
               BlockRows* block) {
  const int64_t k_size = rows.k_dtype == DType::kF32 ? 4 : 2;
  const int64_t v_size = rows.v_dtype == DType::kF32 ? 4 : 2;
  const int64_t k_step = rows.k_token_stride * k_size;
  const int64_t v_step = rows.v_token_stride * v_size;
  block->bits = bits;
  for (int begin = 0, end = 0; begin < kBlock; begin = end) {
    // A run of rows of one page. Without a table all rows are slots of the only page.
    int64_t slot = row0 + begin;
    int64_t page = 0;
    end = kBlock;
    const bool before = slot < 0;  // rows of the block before the part's first
    if (before) {
      end = static_cast<int>(min_of(kBlock, -row0));
    } else if (rows.block_table != nullptr) {
      page = slot / rows.page_size;
      slot -= page * rows.page_size;
      end = static_cast<int>(min_of(kBlock, begin + rows.page_size - slot));
    }
    const uint64_t run = bits & bit_range(begin, end);
    if (run == 0) {
      for (int key = begin; key < end; ++key) {
        block->k[key] = block->v[key] = static_cast<const char*>(missing);
      }
      continue;
    }
    if (rows.block_table != nullptr) page = rows.block_table[page];
    const char* k = static_cast<const char*>(rows.k) + page * rows.k_page_stride * k_size +
                    (slot - begin) * k_step;
    const char* v = static_cast<const char*>(rows.v) + page * rows.v_page_stride * v_size +
                    (slot - begin) * v_step;
    for (int key = begin; key < end; ++key) {
      block->k[key] = k + key * k_step;
      block->v[key] = v + key * v_step;
    }
    for (uint64_t hidden = ~run & bit_range(begin, end); hidden != 0; hidden &= hidden - 1) {
      const int key = __builtin_ctzll(hidden);
      block->k[key] = block->v[key] = static_cast<const char*>(missing);
    }
  }
}

// Asks for a line of a row that is wanted soon, into the second level of cache.
KVC_SIMD_FN void prefetch(const char* line) { __builtin_prefetch(line, 0, 2); }

// The same for `bytes` of a row.
KVC_SIMD_FN void prefetch(const char* row, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) prefetch(row + byte);
}

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
