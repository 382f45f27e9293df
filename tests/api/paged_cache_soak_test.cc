// Random operations on a PagedCache beside the plainest model there is (support/paged_model.h).
// Layers keep all tokens, windows with and without sinks, or chunks, up to four kinds in one cache.
// Several steps are open at once, there is a budget now and then, memory is refused, slots that
// hold no row are NaN, and the bookkeeping is counted again after every operation. Views are
// attended over, those of sequences without queries too.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "kvcache/attention.h"
#include "support/paged.h"
#include "support/paged_model.h"
#include "support/soak.h"

namespace kvcache::testing {
namespace {

constexpr std::int64_t kNumPages = 12;

struct OpenStep {
  PagedCache::Step step;
  std::vector<SequenceId> seqs;
  std::vector<Tokens> tokens;  // new ones, by sequence
  Counts rooms;                // pages taken, by group
  bool written = false;
};

using Model = SequenceModel;

class Soak {
 public:
  // A group for each kind of layer. `budget`: of 16 parts between the least that such a cache may
  // have and what all its pages need; 16 is none.
  Soak(Layout layout, std::int64_t page_size, std::int64_t rewind_tokens, std::int64_t budget,
       const std::vector<LayerSpec>& specs)
      : config_(config(layout, page_size, rewind_tokens, budget, specs, &memory_)),
        f_(config_),
        rules_(config_),
        touched_(rules_.groups().size(), 0) {
    for (const LayerSpec& spec : specs) last_token_ = std::min(last_token_, largest_token(spec));
  }

  void run(const Op& op) {
    switch (op.kind % 13) {
      case 0:
        return open();
      case 1:
        return release(op);
      case 2:
      case 3:
        return reserve(op);
      case 4:
        return write(op);
      case 5:
      case 6:
        return commit(op);
      case 7:
        return rollback(op);
      case 8:
        return fork(op);
      case 9:
        return cut(op);
      case 10:
        return reorder(op);
      case 11:
        return hold(op);
      default:
        return append(op);
    }
  }

  // Everything that can be seen agrees with the model.
  void check() {
    const Status status = f_.cache.check_invariants();
    RC_ASSERT(status.to_string() == "ok");
    std::vector<SequenceId> seqs;
    for (const auto& [seq, model] : model_) {
      seqs.push_back(seq);
      RC_ASSERT(f_.cache.seq_length(seq).value() == size_of_tokens(model.tokens));
      for (std::int64_t layer = 0; layer < f_.num_layers; ++layer) {
        RC_ASSERT(f_.cache.first_position(layer, seq).value() == model.first[std::size_t(layer)]);
        RC_ASSERT(f_.held(layer, seq) == rules_.held(model, layer));
        RC_ASSERT(f_.pages(seq, layer).size() == rules_.live_pages(model, layer).size());
      }
    }
    for (std::int64_t layer = 0; layer < f_.num_layers; ++layer) {
      const OwnedKvView view = f_.cache.view(layer, seqs).value();
      for (std::size_t i = 0; i < seqs.size(); ++i) {
        RC_ASSERT(f_.tokens(view, std::int32_t(i), layer) == rules_.held(model_[seqs[i]], layer));
      }
      check_attention(view, layer, std::vector<Tokens>(seqs.size()), Counts(seqs.size(), 0));
      for (OpenStep& open : steps_) check_view(open, layer);
    }
    const PagedStats stats = f_.cache.stats();
    RC_ASSERT(stats.sequences == std::int64_t(model_.size()));
    RC_ASSERT(stats.open_steps == std::int64_t(steps_.size()));
    const Counts used = used_pages();
    std::int64_t in_use = 0;
    for (std::size_t group = 0; group < used.size(); ++group) {
      in_use += used[group];
      RC_ASSERT(f_.cache.free_pages(std::int64_t(group)) == free_pages(used, group));
    }
    RC_ASSERT(f_.cache.num_groups() == std::int64_t(used.size()));
    RC_ASSERT(stats.pages_held + stats.pages_reserved == in_use);
    if (config_.budget_bytes > 0) RC_ASSERT(f_.cache.reserved_bytes() <= config_.budget_bytes);
    RC_ASSERT(f_.cache.nbytes() == stored_bytes(seqs));
    RC_ASSERT(stats.pages_high_water >= stats.pages_held + stats.pages_reserved);
    // A statement of its own: it changes what it is compared with.
    const std::int64_t settled = settled_bytes(memory_, f_.cache);
    RC_ASSERT(settled == f_.cache.reserved_bytes());
  }

  // No page is left once nobody is.
  void end() {
    steps_.clear();
    for (const auto& [seq, model] : model_) RC_ASSERT(f_.cache.release(seq).ok());
    model_.clear();
    const PagedStats stats = f_.cache.stats();
    RC_ASSERT(stats.sequences + stats.open_steps + stats.pages_held + stats.pages_reserved == 0);
    RC_ASSERT(f_.cache.nbytes() == 0);
    check();
  }

 private:
  static CacheConfig config(Layout layout, std::int64_t page_size, std::int64_t rewind_tokens,
                            std::int64_t budget, const std::vector<LayerSpec>& specs,
                            MemoryResource* memory) {
    CacheConfig config = PagedFixture::config(layout, DType::kF32, kNumPages, page_size);
    config.rewind_tokens = rewind_tokens;
    config.layers = specs;
    config.memory = memory;
    if (budget == 16) return config;
    const Counts bytes = page_bytes(config);
    const std::int64_t tables = table_bytes(config, 1, 0, 0);
    std::int64_t all = 0, least = bytes.front();
    for (const std::int64_t each : bytes) {
      all += each;
      least = std::min(least, each);
    }
    const std::int64_t low = all - least + kNumPages * (least + tables);
    const std::int64_t high = kNumPages * (all + tables);
    config.budget_bytes = low + (high - low) * budget / 16;
    return config;
  }

  // Pages that tables name or steps have taken, by group.
  Counts used_pages() const {
    Counts used;
    for (const std::int64_t layer : rules_.groups()) {
      std::set<std::int32_t> pages;
      for (const auto& [seq, model] : model_) {
        for (const std::int32_t page : f_.pages(seq, layer)) pages.insert(page);
      }
      std::int64_t count = std::int64_t(pages.size());
      for (const OpenStep& open : steps_) count += open.rooms[used.size()];
      used.push_back(count);
    }
    return used;
  }
  // Page ids in tables and taken by steps.
  std::int64_t entries() const {
    std::int64_t count = 0;
    for (const std::int64_t layer : rules_.groups()) {
      for (const auto& [seq, model] : model_) {
        count += std::int64_t(f_.pages(seq, layer).size());
      }
    }
    for (const OpenStep& open : steps_) {
      for (const std::int64_t room : open.rooms) count += room;
    }
    return count;
  }
  // The least that the cache could hold with `used` pages, so many sequences more and page ids.
  std::int64_t least_bytes(const Counts& used, std::int64_t sequences,
                           std::int64_t more_entries) const {
    const Counts bytes = page_bytes(config_);
    std::int64_t touched = 0, sum = 0;
    for (std::size_t group = 0; group < used.size(); ++group) {
      touched = std::max({touched, touched_[group], used[group]});
      sum += used[group] * bytes[group];
    }
    return sum + table_bytes(config_, touched, std::int64_t(model_.size()) + sequences,
                             entries() + more_entries);
  }
  bool in_budget(std::int64_t bytes) const {
    return config_.budget_bytes == 0 || bytes <= config_.budget_bytes;
  }
  // What free_pages() should say: more pages of one group, each in a table and with a block of ids.
  std::int64_t free_pages(Counts used, std::size_t group) const {
    std::int64_t count = kNumPages - used[group];
    if (config_.budget_bytes == 0) return count;
    for (used[group] += count; count > 0; --count, --used[group]) {
      if (in_budget(least_bytes(used, 0, 2 * count))) break;
    }
    return count;
  }
  // Whether tables of more sequences and page ids have room now, before they are there.
  bool has_room(std::int64_t sequences, std::int64_t more_entries) const {
    return in_budget(least_bytes(used_pages(), sequences, more_entries));
  }
  // The same, as the cache said.
  static bool agrees_on_room(bool fits, const Status& status) {
    RC_ASSERT((status.code() == StatusCode::kRetryLater) == !fits);
    return fits;
  }
  std::int64_t live_entries(const Model& model) const {
    std::int64_t count = 0;
    for (const std::int64_t layer : rules_.groups()) {
      count += std::int64_t(rules_.live_pages(model, layer).size());
    }
    return count;
  }

  // Committed rows that are held, those in the same place once.
  std::int64_t stored_bytes(const std::vector<SequenceId>& seqs) {
    std::int64_t bytes = 0;
    for (std::int64_t layer = 0; layer < f_.num_layers; ++layer) {
      std::set<std::int64_t> slots;
      for (const SequenceId seq : seqs) {
        const Pages pages = f_.pages(seq, layer);
        const std::set<std::int64_t> live = rules_.live_pages(model_[seq], layer);
        const std::int64_t page_size = f_.cache.page_size();
        for (const std::int64_t row : rules_.positions(model_[seq], layer)) {
          const auto entry = std::distance(live.begin(), live.find(row / page_size));
          slots.insert(pages[std::size_t(entry)] * page_size + row % page_size);
        }
      }
      bytes += std::int64_t(slots.size()) * bytes_per_token(f_.spec(layer));
    }
    return bytes;
  }

  Tokens new_tokens(std::int64_t count) {
    Tokens tokens;
    for (std::int64_t i = 0; i < count; ++i) {
      token_ = token_ < last_token_ ? token_ + 1 : 1;
      tokens.push_back(token_);
    }
    return tokens;
  }

  void check_view(OpenStep& open, std::int64_t layer) {
    const Result<OwnedKvView> view = f_.cache.view(open.step, layer);
    if (!open.written && open.step.num_new_tokens() > 0) {
      RC_ASSERT(view.status().code() == StatusCode::kInvalidArgument);
      return;
    }
    std::vector<Tokens> all;
    Counts counts;
    for (std::size_t i = 0; i < open.seqs.size(); ++i) {
      Tokens expected = rules_.held(model_[open.seqs[i]], layer);
      expected.insert(expected.end(), open.tokens[i].begin(), open.tokens[i].end());
      RC_ASSERT(f_.tokens(*view, std::int32_t(i), layer) == expected);
      all.push_back(model_[open.seqs[i]].tokens);
      all.back().insert(all.back().end(), open.tokens[i].begin(), open.tokens[i].end());
      counts.push_back(size_of_tokens(open.tokens[i]));
    }
    check_attention(*view, layer, all, counts);
  }

  // The last counts[i] tokens of tokens[i] ask with zeros: what they get is the mean of what they
  // see.
  void check_attention(const KvView& view, std::int64_t layer, const std::vector<Tokens>& tokens,
                       const Counts& counts) const {
    const LayerSpec& spec = f_.spec(layer);
    std::vector<std::int32_t> indptr = {0};
    for (const std::int64_t count : counts) {
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(count));
    }
    AttentionOptions options;
    options.window = static_cast<std::int32_t>(spec.life.window);
    options.sink_tokens = spec.life.sink_tokens;
    options.chunk = static_cast<std::int32_t>(spec.life.chunk);
    const HostTensor q(DType::kF32, {indptr.back(), spec.key().heads, spec.key().dim});
    HostTensor out(DType::kF32, {indptr.back(), spec.value().heads, spec.value().dim});
    const Status status = attend(q, indptr, view, out.mutable_view(), {}, options);
    RC_ASSERT(status.to_string() == "ok");
    const std::int64_t width = spec.value().heads * spec.value().dim;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      for (std::int64_t t = 0; t < counts[i]; ++t) {
        const std::int64_t n = size_of_tokens(tokens[i]) - counts[i] + t;
        double sum = 0, seen = 0;
        for (std::int64_t p = 0; p <= n; ++p) {
          if (!sees(spec.life, n, p)) continue;
          sum += tokens[i][std::size_t(p)];
          ++seen;
        }
        const double expected = element(sum / seen, layer, 0, 0, true);
        const double found = values(out)[std::size_t((indptr[i] + t) * width)];
        RC_ASSERT(std::abs(found - expected) <= 1e-4 * std::abs(expected));
      }
    }
  }

  bool busy(SequenceId seq) const {
    return std::any_of(steps_.begin(), steps_.end(), [seq](const OpenStep& open) {
      return std::find(open.seqs.begin(), open.seqs.end(), seq) != open.seqs.end();
    });
  }

  // A sequence, if there is one.
  std::optional<SequenceId> pick(std::int64_t which) const {
    if (model_.empty()) return std::nullopt;
    return std::next(model_.begin(), which % std::int64_t(model_.size()))->first;
  }

  // What a call on a sequence returns: an error exactly when the sequence is in a step.
  bool agrees(SequenceId seq, const Status& status) {
    if (busy(seq)) {
      RC_ASSERT(status.code() == StatusCode::kInvalidArgument);
      return false;
    }
    RC_ASSERT(status.to_string() == "ok");
    return true;
  }

  // The same for one that goes back to `length`, if what it needs is held.
  bool agrees_to(SequenceId seq, std::int64_t length, const Status& status) {
    if (busy(seq) || rules_.reaches(model_[seq], length)) return agrees(seq, status);
    RC_ASSERT(status.code() == StatusCode::kOutOfRange);
    return false;
  }

  // Any length up to the sequence's, every other time one a little less.
  std::int64_t to_length(const Op& op, SequenceId seq) {
    const std::int64_t length = size_of_tokens(model_[seq].tokens);
    return op.a % 2 == 0 ? op.b % (length + 1) : std::max<std::int64_t>(0, length - op.b % 4);
  }

  void open() {
    if (model_.size() >= 8) return;
    const bool fits = has_room(1, 0);
    const Result<SequenceId> seq = f_.cache.open();
    if (agrees_on_room(fits, seq.status())) model_[seq.value()] = rules_.open();
  }

  void release(const Op& op) {
    const auto seq = pick(op.a);
    if (!seq || !agrees(*seq, f_.cache.release(*seq))) return;
    model_.erase(*seq);
    RC_ASSERT(f_.cache.release(*seq).code() == StatusCode::kNotFound);
  }

  // Pages that a step over these sequences takes in the group of a layer; a shared tail costs one
  // more.
  std::int64_t room_for(const std::vector<Append>& appends, std::int64_t layer) const {
    std::map<std::int32_t, std::int64_t> references;
    for (const auto& [seq, model] : model_) {
      for (const std::int32_t page : f_.pages(seq, layer)) ++references[page];
    }
    std::int64_t pages = 0;
    for (const Append& append : appends) {
      const Model& model = model_.at(append.seq);
      const std::int64_t length = size_of_tokens(model.tokens);
      const std::set<std::int64_t> live = rules_.live_pages(model, layer);
      std::set<std::int64_t> all = live;
      for (std::int64_t p = length; p < length + append.count; ++p) {
        all.insert(p / f_.cache.page_size());
      }
      pages += std::int64_t(all.size() - live.size());
      const bool goes_on = append.count > 0 && length % f_.cache.page_size() != 0 &&
                           live.count(length / f_.cache.page_size()) > 0;
      if (goes_on && references[f_.pages(append.seq, layer).back()] > 1) ++pages;
    }
    return pages;
  }

  // One to three sequences, next to each other in the model, with up to a few pages each.
  std::optional<OpenStep> try_reserve(const Op& op) {
    std::vector<Append> appends;
    std::vector<SequenceId> seqs;
    std::vector<Tokens> tokens;
    bool any_busy = false;
    const std::int64_t wanted = std::min<std::int64_t>(1 + op.b % 3, std::int64_t(model_.size()));
    for (std::int64_t i = 0; i < wanted; ++i) {
      seqs.push_back(*pick(op.a + i));
      tokens.push_back(new_tokens((op.c + 5 * i) % (2 * f_.cache.page_size() + 2)));
      appends.push_back({seqs.back(), size_of_tokens(tokens.back())});
      any_busy = any_busy || busy(seqs.back());
    }
    bool fits = true, never = false;
    const Counts groups = rules_.groups();
    Counts used = used_pages(), alone(groups.size(), 0), rooms;
    std::int64_t more = 0, kept = 0;
    for (std::size_t group = 0; group < groups.size(); ++group) {
      const std::int64_t room = room_for(appends, groups[group]);
      rooms.push_back(room);
      used[group] += room;
      more += room;
      fits = fits && used[group] <= kNumPages;
      for (const SequenceId seq : seqs) {
        alone[group] += std::int64_t(f_.pages(seq, groups[group]).size());
      }
      kept += alone[group];
      alone[group] += room;
      never = never || alone[group] > kNumPages;
    }
    if (fits) fits = in_budget(least_bytes(used, 0, more));
    never = never || !in_budget(least_bytes(alone, wanted - std::int64_t(model_.size()),
                                            kept + more - entries()));
    if (op.c % 8 == 7) memory_.fail_after(0);
    Result<PagedCache::Step> step = f_.cache.reserve(appends);
    memory_.never_fail();
    const StatusCode code = step.status().code();
    if (any_busy) {
      RC_ASSERT(code == StatusCode::kInvalidArgument);
    } else if (!fits) {
      RC_ASSERT(code == StatusCode::kRetryLater || code == StatusCode::kNeverFits);
      RC_ASSERT(code == StatusCode::kRetryLater || never);
    } else {
      RC_ASSERT(code == StatusCode::kOk || (code == StatusCode::kOutOfMemory && op.c % 8 == 7));
    }
    if (!step.ok()) return std::nullopt;
    for (std::size_t group = 0; group < used.size(); ++group) {
      touched_[group] = std::max(touched_[group], used[group]);
    }
    return OpenStep{std::move(*step), seqs, tokens, rooms, false};
  }

  void reserve(const Op& op) {
    if (model_.empty() || steps_.size() > 3) return;
    if (auto step = try_reserve(op)) steps_.push_back(std::move(*step));
  }

  void write_tokens(OpenStep& open) {
    Tokens all;
    for (const Tokens& tokens : open.tokens) all.insert(all.end(), tokens.begin(), tokens.end());
    RC_ASSERT(f_.write(open.step, all).to_string() == "ok");
    open.written = true;
  }

  void commit_tokens(OpenStep& open, std::int64_t seed) {
    std::vector<std::int64_t> accepted;
    for (const Tokens& tokens : open.tokens) {
      accepted.push_back(seed++ % 3 == 0 ? seed % (size_of_tokens(tokens) + 1)
                                         : size_of_tokens(tokens));
    }
    RC_ASSERT(f_.cache.commit(open.step, accepted).to_string() == "ok");
    for (std::size_t i = 0; i < open.seqs.size(); ++i) {
      const Tokens& tokens = open.tokens[i];
      rules_.append(model_[open.seqs[i]], Tokens(tokens.begin(), tokens.begin() + accepted[i]));
    }
  }

  void write(const Op& op) {
    if (steps_.empty()) return;
    OpenStep& open = steps_[std::size_t(op.a) % steps_.size()];
    if (op.b % 4 == 0) {  // another guess at the same tokens: the last write counts
      for (Tokens& tokens : open.tokens) tokens = new_tokens(size_of_tokens(tokens));
    }
    write_tokens(open);
  }

  void commit(const Op& op) {
    if (steps_.empty()) return;
    const std::size_t which = std::size_t(op.a) % steps_.size();
    OpenStep& open = steps_[which];
    if (!open.written && open.step.num_new_tokens() > 0) {
      RC_ASSERT(f_.cache.commit(open.step).code() == StatusCode::kInvalidArgument);
      return;
    }
    commit_tokens(open, op.b);
    let_go(open);
    steps_.erase(steps_.begin() + std::int64_t(which));
  }

  // What steps held for sequences that hold no more goes when these end.
  void let_go(const OpenStep& open) {
    for (const SequenceId seq : open.seqs) rules_.let_go(model_[seq]);
  }

  // By name, or by dropping the step.
  void rollback(const Op& op) {
    if (steps_.empty()) return;
    const std::size_t which = std::size_t(op.a) % steps_.size();
    if (op.b % 2 == 0) RC_ASSERT(f_.cache.rollback(steps_[which].step).ok());
    let_go(steps_[which]);
    steps_.erase(steps_.begin() + std::int64_t(which));
  }

  void fork(const Op& op) {
    const auto seq = pick(op.a);
    if (!seq || model_.size() > 8) return;
    const std::int64_t length = to_length(op, *seq);
    Model forked = model_[*seq];
    forked.tokens.resize(std::size_t(length));
    const bool fits = has_room(1, live_entries(forked));
    const Result<SequenceId> child = f_.cache.fork(*seq, length);
    if (!busy(*seq) && rules_.reaches(model_[*seq], length) &&
        !agrees_on_room(fits, child.status())) {
      return;
    }
    if (agrees_to(*seq, length, child.status())) model_[*child] = forked;
  }

  // Also while it is in a step, which lets go then, when it ends.
  void hold(const Op& op) {
    const auto seq = pick(op.a);
    if (!seq) return;
    const bool hold = op.b % 3 == 0;
    RC_ASSERT(f_.cache.hold_rows(*seq, hold).ok());
    if (busy(*seq)) {
      model_[*seq].holds = hold;
    } else {
      rules_.hold(model_[*seq], hold);
    }
  }

  void cut(const Op& op) {
    const auto seq = pick(op.a);
    if (!seq) return;
    const std::int64_t length = to_length(op, *seq);
    const bool by_rest = op.c % 2 == 0;
    const std::int64_t rest = size_of_tokens(model_[*seq].tokens) - length;
    const Status status = by_rest ? f_.cache.rewind(*seq, rest) : f_.cache.truncate(*seq, length);
    if (agrees_to(*seq, length, status)) model_[*seq].tokens.resize(std::size_t(length));
  }

  void reorder(const Op& op) {
    if (model_.size() < 2) return;
    const std::int64_t count = 2 + op.a % (std::int64_t(model_.size()) - 1);
    std::vector<SequenceId> seqs;
    std::vector<std::int64_t> beams;
    bool any_busy = false;
    for (std::int64_t i = 0; i < count; ++i) {
      seqs.push_back(*pick(op.b + i));
      beams.push_back((op.c * (i + 1) + i * i) % count);
      any_busy = any_busy || busy(seqs.back());
    }
    std::int64_t more = 0;
    for (std::size_t i = 0; i < seqs.size(); ++i) {
      more += live_entries(model_[seqs[std::size_t(beams[i])]]) - live_entries(model_[seqs[i]]);
    }
    const bool fits = has_room(0, more);
    const Status status = f_.cache.reorder(seqs, indices(beams));
    if (any_busy) {
      RC_ASSERT(status.code() == StatusCode::kInvalidArgument);
      return;
    }
    if (!agrees_on_room(fits, status)) return;
    RC_ASSERT(status.to_string() == "ok");
    const std::map<SequenceId, Model> before = model_;
    for (std::size_t i = 0; i < seqs.size(); ++i) {
      model_[seqs[i]] = before.at(seqs[std::size_t(beams[i])]);
    }
  }

  // A whole step at once: the common case.
  void append(const Op& op) {
    if (model_.empty()) return;
    std::optional<OpenStep> step = try_reserve(op);
    if (!step) return;
    write_tokens(*step);
    commit_tokens(*step, op.b);
  }

  TestMemory memory_;
  CacheConfig config_;
  PagedFixture f_;
  PagedModel rules_;
  std::map<SequenceId, Model> model_;
  std::vector<OpenStep> steps_;
  Counts touched_;  // by group: the most pages that were in use at once
  double last_token_ = 1 << 20;
  double token_ = 0;
};

TEST(PagedCacheSoak, RandomOperationsAgreeWithAVectorOfTokens) {
  soak("PagedCacheSoak", [] {
    const auto layout = *rc::gen::element(Layout::kHND, Layout::kNHD);
    const auto page_size = *rc::gen::inRange<std::int64_t>(1, 6);
    const Ops ops = any_ops();
    const auto rewind = *rc::gen::element<std::int64_t>(0, 0, 1, 2, 5);
    const auto budget = *rc::gen::element<std::int64_t>(0, 2, 5, 9, 16, 16, 16, 16);
    std::vector<LayerSpec> specs;
    for (int layer = *rc::gen::inRange(1, 5); layer > 0; --layer) {
      specs.push_back(any_spec().living(any_life()));
    }
    Soak soaked(layout, page_size, rewind, budget, specs);
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
