// Random operations on batches over one cache beside the plainest model there is: for each layer of
// each row a vector of tokens, and the first of them that is held. Layers keep all tokens, windows,
// sinks or chunks. Steps by name and forward passes that nobody announces, layers that
// are left out, forks that share pages, memory that is refused now and then; everything that can be
// seen is compared after every operation, so that a failing call that changed something is seen.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "support/paged_batch.h"
#include "support/paged_model.h"
#include "support/soak.h"

namespace kvcache::testing {
namespace {

constexpr std::int64_t kNumPages = 14;
constexpr std::int64_t kLayers = 3;
constexpr std::int64_t kMostRows = 5;
constexpr std::size_t kMostBatches = 3;

using Rows = std::vector<Tokens>;

// A batch and what it should be.
struct Pair {
  PagedBatch batch;
  const PagedModel* rules;
  std::vector<Rows> held = std::vector<Rows>(kLayers);       // [layer][row], committed
  std::vector<Counts> first = std::vector<Counts>(kLayers);  // [layer][row] the oldest beside sinks
  Counts lengths = {};                                       // [row]
  bool open = false, announced = false;
  Counts counts = {};                                    // of the open step
  std::vector<Rows> fresh = std::vector<Rows>(kLayers);  // [layer]: what it wrote; none if nothing

  std::int64_t num_rows() const { return static_cast<std::int64_t>(lengths.size()); }
  bool written(std::int64_t layer) const { return !fresh[std::size_t(layer)].empty(); }
  bool left_out(std::int64_t layer) const {
    for (std::size_t row = 0; row < lengths.size(); ++row) {
      if (size_of_tokens(held[std::size_t(layer)][row]) != lengths[row]) return true;
    }
    return false;
  }
  // Whether the step ends by itself: where layers drop rows, the last one's queries come first.
  bool complete() const {
    if (rules->drops_rows()) return false;
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      if (!written(layer) && !left_out(layer)) return false;
    }
    return true;
  }

  void keep(const Counts& accepted) {
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      for (std::size_t row = 0; row < fresh[layer].size(); ++row) {
        const Tokens& tokens = fresh[layer][row];
        held[layer][row].insert(held[layer][row].end(), tokens.begin(),
                                tokens.begin() + accepted[row]);
      }
    }
    for (std::size_t row = 0; row < lengths.size(); ++row) {
      if (accepted[row] == 0) continue;
      lengths[row] += accepted[row];
      for (std::size_t layer = 0; layer < kLayers; ++layer) {
        first[layer][row] =
            std::max(first[layer][row], rules->first(std::int64_t(layer), lengths[row]));
      }
    }
    forget();
  }
  // Rows without tokens, after the others or instead of none.
  void add(std::size_t count) {
    lengths.insert(lengths.end(), count, 0);
    for (Rows& rows : held) rows.insert(rows.end(), count, {});
    for (Counts& rows : first) rows.insert(rows.end(), count, 0);
  }
  void clear() {
    lengths.clear();
    for (Rows& rows : held) rows.clear();
    for (Counts& rows : first) rows.clear();
    forget();
  }
  void erase(std::int64_t row) {
    lengths.erase(lengths.begin() + row);
    for (Rows& rows : held) rows.erase(rows.begin() + row);
    for (Counts& rows : first) rows.erase(rows.begin() + row);
  }
  // What is held of a layer's row, of `tokens` in all.
  SequenceModel model(std::size_t row, std::int64_t layer) const {
    SequenceModel seq = rules->open();
    seq.tokens = held[std::size_t(layer)][row];
    for (std::size_t l = 0; l < kLayers; ++l) seq.first[l] = first[l][row];
    return seq;
  }
  // The pages that a row has in the group of a layer: by its length, whatever layers were left out.
  std::set<std::int64_t> pages(std::size_t row, std::int64_t layer) const {
    SequenceModel seq = model(row, layer);
    seq.tokens.resize(std::size_t(lengths[row]));
    return rules->live_pages(seq, layer);
  }
  bool reaches(std::size_t row, std::int64_t length) const {
    SequenceModel seq = model(row, 0);
    seq.tokens.resize(std::size_t(lengths[row]));
    return length >= lengths[row] || rules->reaches(seq, length);
  }
  void forget() {
    open = false;
    for (Rows& rows : fresh) rows.clear();
  }
  // What a call that changes rows does first. False: it is refused.
  bool settle() {
    if (open && announced) return false;
    if (open) keep(counts);
    return true;
  }
  // Rows become those at `sources`.
  void select(const Counts& sources) {
    Counts chosen;
    for (const std::int64_t source : sources) chosen.push_back(lengths[std::size_t(source)]);
    lengths = chosen;
    for (Rows& rows : held) {
      Rows next;
      for (const std::int64_t source : sources) next.push_back(rows[std::size_t(source)]);
      rows = next;
    }
    for (Counts& rows : first) {
      Counts next;
      for (const std::int64_t source : sources) next.push_back(rows[std::size_t(source)]);
      rows = next;
    }
  }
  void shorten(std::size_t row, std::int64_t to) {
    lengths[row] = to;
    for (Rows& rows : held) {
      if (size_of_tokens(rows[row]) > to) rows[row].resize(std::size_t(to));
    }
  }
};

class Soak {
 public:
  Soak(Layout layout, std::int64_t page_size, std::int64_t rewind_tokens,
       const std::vector<LayerSpec>& specs)
      : config_(config(layout, page_size, rewind_tokens, specs, &memory_)),
        f_(config_),
        rules_(config_) {
    for (const LayerSpec& spec : specs) last_token_ = std::min(last_token_, largest_token(spec));
    pairs_.push_back(Pair{f_.batch(), &rules_});
  }

  void run(const Op& op) {
    Pair& pair = pairs_[std::size_t(op.a) % pairs_.size()];
    refusing_ = op.c % 8 == 7;
    if (refusing_) memory_.fail_after(0);
    switch (op.kind % 16) {
      case 0:
        add(pair, op);
        break;
      case 1:
        release(pair, op);
        break;
      case 2:
        begin(pair, op);
        break;
      case 3:
      case 4:
        write(pair, op);
        break;
      case 5:
        commit(pair, op);
        break;
      case 6:
        rollback(pair);
        break;
      case 7:
      case 8:
        update(pair, op.b % kLayers, 1 + op.b / 4 % 3, 1 + op.b % kMostRows);
        break;
      case 9:
      case 10:
        forward(pair, op);
        break;
      case 11:
        select(pair, op);
        break;
      case 12:
        repeat(pair, op);
        break;
      case 13:
        rewind(pair, op);
        break;
      case 14:
        truncate(pair, op);
        break;
      default:
        fork_or_drop(op);
    }
    memory_.never_fail();
  }

  void check() {
    RC_ASSERT(f_.cache.check_invariants().to_string() == "ok");
    std::int64_t sequences = 0, open_steps = 0;
    for (const Pair& pair : pairs_) {
      sequences += pair.num_rows();
      open_steps += pair.open ? 1 : 0;
      RC_ASSERT(pair.batch.num_rows() == pair.num_rows());
      RC_ASSERT(pair.batch.step_open() == pair.open);
      for (std::int64_t layer = 0; layer < kLayers; ++layer) check_layer(pair, layer);
    }
    const PagedStats stats = f_.cache.stats();
    RC_ASSERT(stats.sequences == sequences);
    RC_ASSERT(stats.open_steps == open_steps);
    // A statement of its own: it changes what it is compared with.
    const std::int64_t settled = settled_bytes(memory_, f_.cache);
    RC_ASSERT(settled == f_.cache.reserved_bytes());
  }

  // Whatever is open: a batch that goes gives all back.
  void end() {
    pairs_.clear();
    const PagedStats stats = f_.cache.stats();
    RC_ASSERT(stats.sequences + stats.open_steps + stats.pages_held + stats.pages_reserved == 0);
    RC_ASSERT(f_.cache.check_invariants().to_string() == "ok");
  }

 private:
  static CacheConfig config(Layout layout, std::int64_t page_size, std::int64_t rewind_tokens,
                            const std::vector<LayerSpec>& specs, MemoryResource* memory) {
    CacheConfig config = PagedFixture::config(layout, DType::kF32, kNumPages, page_size, kLayers);
    config.layers = specs;
    config.rewind_tokens = rewind_tokens;
    config.memory = memory;
    return config;
  }

  void check_layer(const Pair& pair, std::int64_t layer) {
    const Rows& held = pair.held[std::size_t(layer)];
    Rows seen;
    Counts lengths;
    for (std::size_t row = 0; row < held.size(); ++row) {
      if (pair.open && !pair.announced && pair.written(layer)) {
        lengths.push_back(size_of_tokens(held[row]) + pair.counts[row]);
      } else {
        lengths.push_back(size_of_tokens(held[row]));
      }
      RC_ASSERT(pair.batch.first_position(std::int64_t(row), layer).value() ==
                pair.first[std::size_t(layer)][row]);
      seen.push_back(rules_.held(pair.model(row, layer), layer));
      if (!pair.written(layer)) continue;
      const Tokens& fresh = pair.fresh[std::size_t(layer)][row];
      seen[row].insert(seen[row].end(), fresh.begin(), fresh.end());
    }
    RC_ASSERT(f_.lengths(pair.batch, layer) == lengths);
    const bool missing =
        pair.open && !pair.written(layer) &&
        std::any_of(pair.counts.begin(), pair.counts.end(), [](std::int64_t n) { return n > 0; });
    if (pair.left_out(layer) || missing) {
      RC_ASSERT(pair.batch.view(layer).status().code() == StatusCode::kInvalidArgument);
      return;
    }
    RC_ASSERT(f_.tokens_of(pair.batch, layer) == seen);
    const bool announced = pair.open && pair.announced;
    const bool equal = std::all_of(seen.begin(), seen.end(), [&](const Tokens& row) {
      return row.size() == seen.front().size();
    });
    if (equal && !announced && !seen.empty()) RC_ASSERT(f_.gathered(pair.batch, layer) == seen);
  }

  Rows new_tokens(const Counts& counts) {
    Rows rows;
    for (const std::int64_t count : counts) {
      Tokens row;
      for (std::int64_t i = 0; i < count; ++i) {
        token_ = token_ < last_token_ ? token_ + 1 : 1;
        row.push_back(token_);
      }
      rows.push_back(row);
    }
    return rows;
  }

  // How many more pages than are free a step over the rows of a batch takes in one of the groups: 0
  // where all have room. A shared tail costs one more.
  std::int64_t short_of(const Pair& pair, const Counts& counts) const {
    std::int64_t worst = 0;
    const Counts groups = rules_.groups();
    for (std::size_t group = 0; group < groups.size(); ++group) {
      const std::int64_t layer = groups[group];
      std::map<std::int32_t, std::int64_t> references;
      for (const Pair& other : pairs_) {
        for (const SequenceId seq : other.batch.sequences()) {
          for (const std::int32_t page : f_.pages(seq, layer)) ++references[page];
        }
      }
      std::int64_t pages = 0;
      const std::int64_t page_size = f_.cache.page_size();
      for (std::size_t row = 0; row < counts.size(); ++row) {
        const bool fresh = row >= pair.lengths.size();
        const std::int64_t length = fresh ? 0 : pair.lengths[row];
        std::set<std::int64_t> live;
        if (!fresh) live = pair.pages(row, layer);
        std::set<std::int64_t> all = live;
        for (std::int64_t p = length; p < length + counts[row]; ++p) all.insert(p / page_size);
        pages += std::int64_t(all.size() - live.size());
        const bool goes_on =
            counts[row] > 0 && length % page_size != 0 && live.count(length / page_size) > 0;
        if (goes_on && references[f_.pages(pair.batch.sequences()[row], layer).back()] > 1) ++pages;
      }
      worst = std::max(worst, pages - f_.cache.free_pages(std::int64_t(group)));
    }
    return worst;
  }

  // The outcome of a call that reserves: no room is a reason, and refused memory, of which a new
  // row may be the first to hear.
  void judge_reserve(const Status& status, std::int64_t short_of) const {
    const StatusCode code = status.code();
    if (refusing_ && code == StatusCode::kOutOfMemory) return;
    if (short_of > 0) {
      RC_ASSERT(code == StatusCode::kRetryLater || code == StatusCode::kNeverFits);
    } else {
      RC_ASSERT(status.to_string() == "ok");
    }
  }

  // kInvalidArgument while a step by name is open, else success.
  bool agrees(Pair& pair, const Status& status) {
    if (!pair.settle()) {
      RC_ASSERT(status.code() == StatusCode::kInvalidArgument);
      return false;
    }
    // Sequences and sharing may need tables beyond what pages bring.
    if (refusing_ && status.code() == StatusCode::kOutOfMemory) return false;
    RC_ASSERT(status.to_string() == "ok");
    return true;
  }

  void add(Pair& pair, const Op& op) {
    const std::int64_t count = op.b % 3;
    if (pair.num_rows() + count > kMostRows) return;
    if (!agrees(pair, pair.batch.add(count))) return;
    pair.add(std::size_t(count));
  }

  void release(Pair& pair, const Op& op) {
    if (op.b % 16 == 15) {
      pair.batch.reset();
      pair.clear();
      return;
    }
    if (pair.num_rows() == 0) return;
    const std::int64_t row = op.b % pair.num_rows();
    if (!agrees(pair, pair.batch.release(row))) return;
    pair.erase(row);
  }

  void begin(Pair& pair, const Op& op) {
    Counts counts;
    for (std::int64_t row = 0; row < pair.num_rows(); ++row) {
      counts.push_back((op.b + 5 * row) % (f_.cache.page_size() + 2));
    }
    if (pair.open && pair.announced) {
      RC_ASSERT(pair.batch.begin(counts).code() == StatusCode::kInvalidArgument);
      return;
    }
    if (pair.open) {
      RC_ASSERT(pair.batch.commit().to_string() == "ok");
      pair.keep(pair.counts);
    }
    const std::int64_t missing = short_of(pair, counts);
    const Status status = pair.batch.begin(counts);
    judge_reserve(status, missing);
    if (!status.ok()) return;
    pair.open = pair.announced = true;
    pair.counts = counts;
  }

  void write(Pair& pair, const Op& op) {
    const std::int64_t layer = op.b % kLayers;
    const Rows rows = new_tokens(pair.open ? pair.counts : Counts(pair.lengths.size(), 1));
    const Status status = f_.write(pair.batch, layer, rows);
    if (!pair.open || !pair.announced || pair.left_out(layer)) {
      RC_ASSERT(status.code() == StatusCode::kInvalidArgument);
      return;
    }
    RC_ASSERT(status.to_string() == "ok");
    pair.fresh[std::size_t(layer)] = rows;
  }

  void commit(Pair& pair, const Op& op) {
    if (!pair.open) {
      RC_ASSERT(pair.batch.commit().code() == StatusCode::kInvalidArgument);
      return;
    }
    if (!pair.announced) {
      RC_ASSERT(pair.batch.commit().to_string() == "ok");
      pair.keep(pair.counts);
      return;
    }
    Counts accepted;
    std::int64_t sum = 0;
    for (std::size_t row = 0; row < pair.counts.size(); ++row) {
      const bool some = (op.b + std::int64_t(row)) % 3 == 0;
      accepted.push_back(some ? op.b % (pair.counts[row] + 1) : pair.counts[row]);
      sum += pair.counts[row];
    }
    bool whole = true;
    for (std::int64_t layer = 0; layer < kLayers; ++layer) whole = whole && pair.written(layer);
    if (!whole && sum > 0) {
      RC_ASSERT(pair.batch.commit(accepted).code() == StatusCode::kInvalidArgument);
      return;
    }
    RC_ASSERT(pair.batch.commit(accepted).to_string() == "ok");
    pair.keep(accepted);
  }

  void rollback(Pair& pair) {
    const Status status = pair.batch.rollback();
    RC_ASSERT(status.ok() == pair.open);
    pair.forget();
  }

  // One layer of a forward pass of `count` tokens; whether it was taken.
  bool update(Pair& pair, std::int64_t layer, std::int64_t count, std::int64_t batch) {
    const bool fresh = pair.num_rows() == 0 && !pair.open;
    if (!fresh) batch = pair.num_rows();
    if (pair.open && !pair.announced && !pair.written(layer)) count = pair.counts.front();
    if (batch == 0) return false;
    const Rows rows = new_tokens(Counts(std::size_t(batch), count));
    if ((pair.open && pair.announced) || (!fresh && pair.left_out(layer))) {
      RC_ASSERT(f_.update(pair.batch, layer, rows).code() == StatusCode::kInvalidArgument);
      return false;
    }
    if (!pair.open || pair.written(layer)) {
      const bool by_itself = pair.open && count % 2 == 0;
      if (pair.open && !by_itself) RC_ASSERT(pair.batch.commit().to_string() == "ok");
      if (pair.open) pair.keep(pair.counts);
      const Counts counts(std::size_t(batch), count);
      Status status;
      if (by_itself) {  // which pages it has then is not known before
        status = f_.update(pair.batch, layer, rows);
      } else {
        const std::int64_t missing = short_of(pair, counts);
        status = f_.update(pair.batch, layer, rows);
        judge_reserve(status, missing);
      }
      if (!status.ok()) return false;
      if (fresh) {
        pair.add(std::size_t(batch));
      }
      pair.open = true;
      pair.announced = false;
      pair.counts = counts;
    } else {
      RC_ASSERT(f_.update(pair.batch, layer, rows).to_string() == "ok");
    }
    pair.fresh[std::size_t(layer)] = rows;
    if (pair.complete()) pair.keep(pair.counts);
    return true;
  }

  // All layers that hold everything, one after the other.
  void forward(Pair& pair, const Op& op) {
    if (pair.open && pair.announced) return;
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      if (pair.num_rows() > 0 && pair.left_out(layer)) continue;
      if (!update(pair, layer, 1 + op.b % 4, 1 + op.c % kMostRows)) return;
    }
  }

  void select(Pair& pair, const Op& op) {
    if (pair.num_rows() == 0) return;
    Counts sources;
    const bool same = op.c % 2 == 0;
    const std::int64_t size = same ? pair.num_rows() : 1 + op.b % kMostRows;
    for (std::int64_t i = 0; i < size; ++i) {
      sources.push_back((op.c * (i + 1) + i * i + op.b) % pair.num_rows());
    }
    const HostTensor given = indices(sources, op.b % 2 == 0 ? DType::kI32 : DType::kI64);
    const Status status = same ? pair.batch.reorder(given) : pair.batch.select(given);
    if (agrees(pair, status)) pair.select(sources);
  }

  void repeat(Pair& pair, const Op& op) {
    const std::int64_t n = 1 + op.b % 2;
    if (pair.num_rows() == 0 || pair.num_rows() * n > kMostRows) return;
    if (!agrees(pair, pair.batch.repeat(n))) return;
    Counts sources;
    for (std::int64_t i = 0; i < pair.num_rows() * n; ++i) sources.push_back(i / n);
    pair.select(sources);
  }

  // Row b keeps its first to[b] tokens, those of a forward pass included; kOutOfRange where that is
  // behind what a layer holds.
  void shorten(Pair& pair, const Counts& to, const Status& status) {
    bool held = true;
    for (std::size_t row = 0; row < to.size(); ++row) held = held && pair.reaches(row, to[row]);
    if (!held && !(pair.open && pair.announced)) {
      RC_ASSERT(status.code() == StatusCode::kOutOfRange);
      return;
    }
    if (pair.open && !pair.announced && status.ok()) {
      Counts accepted;
      for (std::size_t row = 0; row < to.size(); ++row) {
        accepted.push_back(std::max<std::int64_t>(0, to[row] - pair.lengths[row]));
      }
      pair.keep(accepted);
    }
    if (!agrees(pair, status)) return;
    for (std::size_t row = 0; row < to.size(); ++row) pair.shorten(row, to[row]);
  }

  // By one number for all rows, or one for each.
  void rewind(Pair& pair, const Op& op) {
    Counts drop, to;
    bool fits = true;
    for (std::size_t row = 0; row < pair.lengths.size(); ++row) {
      const bool open = pair.open && !pair.announced;
      const std::int64_t length = pair.lengths[row] + (open ? pair.counts[row] : 0);
      drop.push_back(op.c % 2 == 0 ? op.b % 4 : (op.b + std::int64_t(row)) % 4);
      to.push_back(length - drop.back());
      fits = fits && drop.back() <= length;
    }
    const Status status =
        op.c % 2 == 0 ? pair.batch.rewind(op.b % 4) : pair.batch.rewind(std::span(drop));
    if (fits) return shorten(pair, to, status);
    RC_ASSERT(!status.ok());
    RC_ASSERT(status.code() == StatusCode::kOutOfRange || (pair.open && pair.announced));
  }

  void truncate(Pair& pair, const Op& op) {
    Counts to;
    for (std::size_t row = 0; row < pair.lengths.size(); ++row) {
      const bool open = pair.open && !pair.announced;
      to.push_back(std::min(pair.lengths[row] + (open ? pair.counts[row] : 0), op.b % 16));
    }
    const Status status = pair.batch.truncate(op.b % 16);
    shorten(pair, to, status);
  }

  void fork_or_drop(const Op& op) {
    const std::size_t which = std::size_t(op.a) % pairs_.size();
    Pair& pair = pairs_[which];
    if (pairs_.size() == kMostBatches || (op.b % 4 == 0 && pairs_.size() > 1)) {
      pairs_.erase(pairs_.begin() + std::int64_t(which));
      return;
    }
    Result<PagedBatch> child = pair.batch.fork();
    if (!agrees(pair, child.status())) return;
    Pair made{std::move(child).value(), &rules_};
    made.held = pair.held;
    made.first = pair.first;
    made.lengths = pair.lengths;
    pairs_.push_back(std::move(made));
  }

  TestMemory memory_;
  CacheConfig config_;
  BatchFixture f_;
  PagedModel rules_;
  std::vector<Pair> pairs_;
  double last_token_ = 1 << 20;
  double token_ = 0;
  bool refusing_ = false;  // the memory resource, during this operation
};

TEST(PagedBatchSoak, RandomOperationsAgreeWithAVectorOfTokens) {
  soak("PagedBatchSoak", [] {
    const auto layout = *rc::gen::element(Layout::kHND, Layout::kNHD);
    const auto page_size = *rc::gen::inRange<std::int64_t>(1, 6);
    const Ops ops = any_ops();
    const auto rewind = *rc::gen::element<std::int64_t>(0, 0, 1, 2, 5);
    const bool mixed = *rc::gen::arbitrary<bool>();  // else all tokens are kept, in one group
    std::vector<LayerSpec> specs;
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      specs.push_back(any_spec().living(mixed ? any_life() : Life()));
    }
    Soak soaked(layout, page_size, rewind, specs);
    for (const Op& op : ops) {
      soaked.run(op);
      soaked.check();
    }
    soaked.end();
    return ops.size();
  });
}

}  // namespace
}  // namespace kvcache::testing
