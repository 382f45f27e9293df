// The rows that few query rows read, and their order: step by step. Part of attention.inl.
//
// The order of keys is that of the slots of a cut (BlockKeys): a row of each part in turn, streams
// of memory read side by side. A step is 16 keys, four rows of each part. Where some are hidden,
// the next that are seen take their place, as long as these are of the same block and no whole
// step. Steps follow one another without a pause: keys of the cut, its values, keys of the cut
// after it. Where a step's rows are is found when its lines may be asked for, a few steps before
// they are computed with, and kept until then.
namespace kvcache::internal::KVC_SIMD {
namespace {

constexpr int kStep = 16;  // keys
constexpr int kStepVecs = kStep / kLanes;
constexpr int kStepRows = kStep / kStreams;  // of each part
constexpr uint64_t kAllOfStep = 0xffff;

// What steps read, one after the other.
enum class Stretch : uint8_t { kKeys, kValues, kNextKeys };

struct Step {
  const char* rows[kStep];    // `count` of them in the order of their slots, then the last again
  const char* scales[kStep];  // of coded rows; where `runs`, those of the first kStreams alone
  const char* zeros[kStep];
  uint64_t slots;  // of the block: keys that some row of the chunk sees
  int block;       // of the cut
  int count;
  Stretch stretch;
  bool whole;  // 16 slots side by side
  bool runs;   // of each part, four rows that follow one another in a page

  int first_slot() const { return __builtin_ctzll(slots); }
  const char* scales_of(int key) const {
    return runs ? scales[key % kStreams] + key / kStreams * 2 : scales[key];
  }
  const char* zeros_of(int key) const {
    return runs ? zeros[key % kStreams] + key / kStreams : zeros[key];
  }
};

// Asks for the line at `at`.
template <Prefetch kAsk>
KVC_SIMD_FN void ask(const char* at) {
  if constexpr (kAsk == Prefetch::kL1) __builtin_prefetch(at, 0, 3);
  if constexpr (kAsk == Prefetch::kL2) __builtin_prefetch(at, 0, 2);
  if constexpr (kAsk == Prefetch::kL3) __builtin_prefetch(at, 0, 1);
}

// Asks for the lines of bytes at .. at + kBytes of a row, beside the loads of as many.
template <Prefetch kAsk, int64_t kBytes>
KVC_SIMD_FN void ask_beside(const char* row, int64_t at) {
  if constexpr (kAsk == Prefetch::kNone) return;
  if constexpr (kBytes >= 64) {
#pragma GCC unroll 4
    for (int64_t byte = 0; byte < kBytes; byte += 64) ask<kAsk>(row + at + byte);
  } else {
    if (at % 64 == 0) ask<kAsk>(row + at);
  }
}

// Calls f.template operator()<level>(): kNone where whole rows are not asked for.
template <typename F>
KVC_SIMD_FN void for_prefetch(Prefetch level, F f) {
  switch (level) {
    case Prefetch::kL1:
      return f.template operator()<Prefetch::kL1>();
    case Prefetch::kL2:
      return f.template operator()<Prefetch::kL2>();
    case Prefetch::kL3:
      return f.template operator()<Prefetch::kL3>();
    default:
      return f.template operator()<Prefetch::kNone>();
  }
}

// Steps between a row's being asked for and its use. Rows are asked for 10 KiB ahead: farther, the
// first cache loses them again, nearer, memory does not answer in time. First lines of pages go
// ahead by a block.
KVC_SIMD_FN int steps_ahead(Prefetch level, int64_t row_bytes) {
  if (level == Prefetch::kNone) return 1;
  if (level == Prefetch::kRuns) return kBlock / kStep;
  const int64_t step_bytes = kStep * row_bytes;
  return static_cast<int>(max_of(1, min_of((10240 + step_bytes / 2) / step_bytes, 6)));
}

class Steps {
 public:
  // `seen` [blocks of the cut]: the keys that some row of the chunk sees.
  Steps(const CutTask& task, const uint64_t* seen, int ahead)
      : task_(task),
        seen_(seen),
        ahead_(static_cast<unsigned>(ahead)),
        first_lines_(task.tile->prefetch == Prefetch::kRuns) {
    enter(Stretch::kKeys);
    for (int i = 0; i <= ahead; ++i) find(&ring_[i]);
  }

  const Step& here() const { return ring_[at_ % kRing]; }
  const Step& ahead() const { return ring_[(at_ + ahead_) % kRing]; }
  // Whether the step after this one is of the same block.
  bool block_goes_on() const {
    const Step& next = ring_[(at_ + 1) % kRing];
    return next.block == here().block && next.stretch == here().stretch;
  }
  void advance() {
    ++at_;
    find(&ring_[(at_ + ahead_) % kRing]);
  }

 private:
  static constexpr unsigned kRing = 8;

  // Rows begin .. end of the page that a stream is in.
  struct Stream {
    const char* data;
    const char* scales;
    const char* zeros;
    int64_t begin, end;
  };

  // A place in each stream.
  struct Places {
    using Four = int64_t __attribute__((vector_size(kStreams * sizeof(int64_t)), aligned(8)));
    static_assert(sizeof(const char*) == sizeof(int64_t));
    Four at = {};

    void set(int s, const char* place) { at[s] = reinterpret_cast<int64_t>(place); }
    void put(int64_t behind, const char** to) const {  // bytes
      const Four places = at + behind;
      __builtin_memcpy(to, &places, sizeof(places));
    }
    void ask(int s) const { __builtin_prefetch(reinterpret_cast<const char*>(at[s]), 0, 3); }
  };

  void enter(Stretch stretch) {
    stretch_ = stretch;
    view_ = stretch == Stretch::kValues ? &task_.rows->v : &task_.rows->k;
    scaled_ = view_->scale_page_stride != 0;
    const Cut& cut = stretch == Stretch::kNextKeys ? task_.next : task_.cut;
    keys_ = keys_of_parts(*task_.rows, cut, 0);
    blocks_ = static_cast<int>(cut.keys / kBlock);
    following_ = -1;
    for (Stream& stream : streams_) stream.begin = stream.end = 0;
    enter_block(0);
  }

  void enter_block(int block) {
    block_ = block;
    left_ = 0;
    if (block >= blocks_) return;
    if (stretch_ != Stretch::kNextKeys) {
      left_ = seen_[block];
      return;
    }
    // Nobody knows yet what is seen of it: blocks that are there.
    const int64_t row = row_of(block * kBlock);
    const bool there =
        row >= task_.rows->first_row && row_of(block * kBlock + kBlock - 1) < task_.rows->num_rows;
    left_ = there ? kAllKeys : 0;
  }

  // The row of the part in slot `slot` of the cut.
  int64_t row_of(int slot) const {
    return keys_.row0 + slot % kStreams * keys_.stream_keys + slot / kStreams;
  }

  void find(Step* step) {
    while (left_ == 0) {
      if (block_ + 1 < blocks_) {
        enter_block(block_ + 1);
      } else if (stretch_ != Stretch::kNextKeys) {
        enter(stretch_ == Stretch::kKeys ? Stretch::kValues : Stretch::kNextKeys);
      } else {  // there is nothing more: rows that are in cache
        *step = here();
        step->stretch = Stretch::kNextKeys;
        return;
      }
    }
    step->stretch = stretch_;
    step->block = block_;
    const int first = __builtin_ctzll(left_);
    const uint64_t all = kAllOfStep << first / kStep * kStep;
    step->whole = (left_ & all) == all;
    if (step->whole) {
      step->slots = all;
      find_whole(step, block_ * (kBlock / kStep) + first / kStep);
    } else {
      find_seen(step);
    }
    left_ &= ~step->slots;
  }

  // The rows of step `number` of the cut: four of each stream.
  void find_whole(Step* step, int number) {
    if (number != following_ && !enter_pages(number)) return find_seen(step);
    step->count = kStep;
    step->runs = true;
    const int64_t stride = view_->token_stride;
    const Places first = first_;
#pragma GCC unroll 4
    for (int i = 0; i < kStepRows; ++i) first.put(i * stride, step->rows + i * kStreams);
    first_.at = first.at + kStepRows * stride;
    if (scaled_) {
      first_scales_.put(0, step->scales);
      first_zeros_.put(0, step->zeros);
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s) first_scales_.ask(s);
      first_scales_.at += kStepRows * 2;
      first_zeros_.at += kStepRows;
    }
    following_ = number + 1 < last_ ? number + 1 : -1;
  }

  // Finds the rows from which on whole steps, number .. last_ of them, lie in a page each stream.
  bool enter_pages(int number) {
    int64_t steps = blocks_ * (kBlock / kStep);
    for (int s = 0; s < kStreams; ++s) {
      const int64_t row = row_of(number * kStep + s);
      Stream& stream = streams_[s];
      if (row < stream.begin || row >= stream.end) enter_page(&stream, row);
      const int64_t at = row - stream.begin;
      first_.set(s, stream.data + at * view_->token_stride);
      if (scaled_) {
        first_scales_.set(s, stream.scales + at * 2);
        first_zeros_.set(s, stream.zeros + at);
      }
      steps = min_of(steps, (stream.end - row) / kStepRows);
    }
    last_ = number + static_cast<int>(steps);
    return steps > 0;
  }

  // Row by row: the slots of a whole step, or up to 16 keys of the block before one.
  void find_seen(Step* step) {
    following_ = -1;
    step->runs = false;
    uint64_t rest = step->slots;
    if (!step->whole) {
      rest = left_;
      for (uint64_t all = kAllOfStep; all != 0; all <<= kStep) {
        if ((left_ & all) == all) rest &= (all & -all) - 1;
      }
    }
    const uint64_t from = rest;
    int64_t row0[kStreams];
    for (int s = 0; s < kStreams; ++s) row0[s] = row_of(block_ * kBlock + s);
    const int64_t stride = view_->token_stride;
    int n = 0;
    for (; rest != 0 && n < kStep; rest &= rest - 1) {
      const auto slot = static_cast<unsigned>(__builtin_ctzll(rest));
      Stream& stream = streams_[slot % kStreams];
      const int64_t row = row0[slot % kStreams] + slot / kStreams;
      if (row < stream.begin || row >= stream.end) enter_page(&stream, row);
      if (scaled_) set_scales(stream, row, step, n);
      step->rows[n++] = stream.data + (row - stream.begin) * stride;
    }
    step->slots = from & ~rest;
    step->count = n;
    for (int i = n; i < kStep; ++i) step->rows[i] = step->rows[n - 1];
    for (int i = n; scaled_ && i < kStep; ++i) {
      step->scales[i] = step->scales[n - 1];
      step->zeros[i] = step->zeros[n - 1];
    }
  }

  static void set_scales(const Stream& stream, int64_t row, Step* step, int key) {
    step->scales[key] = stream.scales + (row - stream.begin) * 2;
    step->zeros[key] = stream.zeros + (row - stream.begin);
  }

  void enter_page(Stream* stream, int64_t row) {
    const KvRows& rows = *task_.rows;
    // Without a table all rows are slots of the only page.
    const bool pages = rows.block_table != nullptr;
    const int64_t index = pages ? row / rows.page_size : 0;
    stream->begin = index * rows.page_size;
    stream->end = pages ? stream->begin + rows.page_size : rows.num_rows;
    const int64_t page = pages ? rows.block_table[entry_of(rows, index)] : 0;
    stream->data = page_start(*view_, page);
    if (scaled_) {
      const char* start = page_start(*view_, page, view_->scale_page_stride);
      stream->scales = start + view_->scale_offset;
      stream->zeros = start + view_->zero_offset;
    }
    if (first_lines_) {
      __builtin_prefetch(stream->data + (row - stream->begin) * view_->token_stride, 0, 3);
    }
  }

  const CutTask& task_;
  const uint64_t* seen_;
  const unsigned ahead_;
  const bool first_lines_;  // of pages are asked for
  bool scaled_ = false;     // rows of the stretch have scales beside them
  Stretch stretch_ = Stretch::kKeys;
  const RowsView* view_ = nullptr;
  BlockKeys keys_;      // of the stretch: its first block
  int blocks_ = 0;      // of the stretch
  int block_ = 0;       // of the step to be found
  uint64_t left_ = 0;   // what is seen of it and not yet in a step
  int following_ = -1;  // the step whose rows begin at first_
  int last_ = 0;        // behind the last step within the same pages
  unsigned at_ = 0;
  // Of the step to be found, where it follows the last one.
  Places first_, first_scales_, first_zeros_;
  Stream streams_[kStreams];
  Step ring_[kRing];
};

}  // namespace
}  // namespace kvcache::internal::KVC_SIMD
