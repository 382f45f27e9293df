// Any bytes as operations on a PagedCache, beside a vector of tokens for each sequence.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "support/fuzz.h"
#include "support/paged.h"

namespace kvcache::fuzz {
namespace {

using testing::Counts;
using testing::PagedFixture;
using testing::Tokens;

std::int64_t length_of(const Tokens& tokens) { return static_cast<std::int64_t>(tokens.size()); }

struct Sequence {
  SequenceId id;
  Tokens tokens;
};

// A step of one or two sequences, which are known by their ids.
struct OpenStep {
  PagedCache::Step step;
  std::vector<SequenceId> seqs;
  std::vector<Tokens> fresh;  // new tokens, by sequence
  bool written = false;
};

class Paged {
 public:
  explicit Paged(std::uint32_t which)
      : f_(config(which % 2 == 0 ? Layout::kHND : Layout::kNHD, 1 + which / 2 % 4, &memory_)) {}

  void run(Numbers& input) {
    const std::uint32_t kind = input.byte();
    const std::uint32_t a = input.byte();
    const std::uint32_t b = input.byte();
    switch (kind % 10) {
      case 0:
        if (model_.size() < 8) model_.push_back({f_.open(), {}});
        return;
      case 1:
        return release(a);
      case 2:
      case 3:
        return reserve(a, b);
      case 4:
        return write(a);
      case 5:
      case 6:
        return commit(a, b);
      case 7:
        return roll_back(a, b);
      case 8:
        return fork(a, b);
      default:
        return kind / 10 % 2 == 0 ? cut(a, b) : reorder(a, b);
    }
  }

  void check() {
    const Status status = f_.cache.check_invariants();
    expect(status.ok(), "sound bookkeeping; found: " + status.to_string());
    for (const Sequence& sequence : model_) {
      expect(f_.tokens(sequence.id) == sequence.tokens, "the tokens of the model");
    }
    for (const OpenStep& open : steps_) check_view(open);
    const PagedStats stats = f_.cache.stats();
    expect(stats.sequences == std::ssize(model_) && stats.open_steps == std::ssize(steps_),
           "as many sequences and steps as are open");
    expect(stats.pages_held + stats.pages_reserved + f_.cache.free_pages() == kNumPages,
           "every page counted once");
  }

 private:
  static constexpr std::int64_t kNumPages = 10;

  static CacheConfig config(Layout layout, std::int64_t page_size, MemoryResource* memory) {
    CacheConfig config = PagedFixture::config(layout, DType::kF32, kNumPages, page_size);
    config.memory = memory;
    return config;
  }

  Sequence* pick(std::uint32_t which) {
    return model_.empty() ? nullptr : &model_[which % model_.size()];
  }
  Sequence& named(SequenceId id) {
    return *std::find_if(model_.begin(), model_.end(),
                         [id](const Sequence& sequence) { return sequence.id == id; });
  }
  bool busy(SequenceId id) const {
    return std::any_of(steps_.begin(), steps_.end(), [id](const OpenStep& open) {
      return std::find(open.seqs.begin(), open.seqs.end(), id) != open.seqs.end();
    });
  }
  // A call on a sequence fails exactly when the sequence is in a step.
  bool allowed(SequenceId id, const Status& status) const {
    const StatusCode expected = busy(id) ? StatusCode::kInvalidArgument : StatusCode::kOk;
    expect(status.code() == expected, "another outcome than " + status.to_string());
    return status.ok();
  }

  void release(std::uint32_t a) {
    Sequence* sequence = pick(a);
    if (sequence == nullptr || !allowed(sequence->id, f_.cache.release(sequence->id))) return;
    model_.erase(model_.begin() + (sequence - model_.data()));
  }

  void reserve(std::uint32_t a, std::uint32_t b) {
    if (model_.empty() || steps_.size() > 3) return;
    std::vector<SequenceId> seqs;
    std::vector<Tokens> fresh;
    std::vector<Append> appends;
    bool any_busy = false;
    const std::size_t wanted = std::min<std::size_t>(1 + a % 2, model_.size());
    for (std::size_t i = 0; i < wanted; ++i) {
      seqs.push_back(model_[(a / 2 + i) % model_.size()].id);
      Tokens& tokens = fresh.emplace_back();
      for (std::uint32_t t = 0; t < (b + 3 * i) % 9; ++t) {
        next_token_ = next_token_ % 60 + 1;  // small: exact in every type
        tokens.push_back(static_cast<double>(next_token_));
      }
      appends.push_back({seqs.back(), length_of(tokens)});
      any_busy = any_busy || busy(seqs.back());
    }
    if (b >= 240) memory_.fail_after(0);
    Result<PagedCache::Step> step = f_.cache.reserve(appends);
    memory_.never_fail();
    const StatusCode code = step.status().code();
    expect((code == StatusCode::kInvalidArgument) == any_busy,
           "a refusal of a busy sequence alone");
    expect(code != StatusCode::kOutOfMemory || b >= 240, "memory where it is not refused");
    if (step.ok()) steps_.push_back({std::move(step).value(), seqs, fresh, false});
  }

  OpenStep* pick_step(std::uint32_t which) {
    return steps_.empty() ? nullptr : &steps_[which % steps_.size()];
  }
  void forget(OpenStep* open) { steps_.erase(steps_.begin() + (open - steps_.data())); }

  void write(std::uint32_t a) {
    OpenStep* open = pick_step(a);
    if (open == nullptr) return;
    Tokens all;
    for (const Tokens& tokens : open->fresh) all.insert(all.end(), tokens.begin(), tokens.end());
    expect(f_.write(open->step, all).ok(), "a write");
    open->written = true;
  }

  void commit(std::uint32_t a, std::uint32_t b) {
    OpenStep* open = pick_step(a);
    if (open == nullptr) return;
    if (!open->written && open->step.num_new_tokens() > 0) {
      expect(f_.cache.commit(open->step).code() == StatusCode::kInvalidArgument,
             "no commit of rows that were not written");
      return;
    }
    Counts accepted;
    for (const Tokens& tokens : open->fresh) accepted.push_back(b++ % (length_of(tokens) + 1));
    expect(f_.cache.commit(open->step, accepted).ok(), "a commit");
    for (std::size_t i = 0; i < open->seqs.size(); ++i) {
      Tokens& kept = named(open->seqs[i]).tokens;
      kept.insert(kept.end(), open->fresh[i].begin(), open->fresh[i].begin() + accepted[i]);
    }
    forget(open);
  }

  void roll_back(std::uint32_t a, std::uint32_t b) {
    OpenStep* open = pick_step(a);
    if (open == nullptr) return;
    if (b % 2 == 0) expect(f_.cache.rollback(open->step).ok(), "a rollback");
    forget(open);  // which rolls back too
  }

  void fork(std::uint32_t a, std::uint32_t b) {
    const Sequence* parent = pick(a);
    if (parent == nullptr || model_.size() > 8) return;
    const std::int64_t length = b % (length_of(parent->tokens) + 1);
    const Result<SequenceId> child = f_.cache.fork(parent->id, length);
    if (!allowed(parent->id, child.status())) return;
    Tokens tokens(parent->tokens.begin(), parent->tokens.begin() + length);
    model_.push_back({*child, std::move(tokens)});
  }

  void cut(std::uint32_t a, std::uint32_t b) {
    Sequence* sequence = pick(a);
    if (sequence == nullptr) return;
    const std::int64_t length = b / 2 % (length_of(sequence->tokens) + 1);
    const Status status = b % 2 == 0
                              ? f_.cache.truncate(sequence->id, length)
                              : f_.cache.rewind(sequence->id, length_of(sequence->tokens) - length);
    if (allowed(sequence->id, status)) sequence->tokens.resize(static_cast<std::size_t>(length));
  }

  void reorder(std::uint32_t a, std::uint32_t b) {
    if (model_.empty()) return;
    const std::int64_t count = 1 + a % std::ssize(model_);
    std::vector<SequenceId> seqs;
    std::vector<Tokens> sources;
    Counts beams;
    bool any_busy = false;
    for (std::int64_t i = 0; i < count; ++i) {
      seqs.push_back(model_[static_cast<std::size_t>(i)].id);
      beams.push_back((b >> i % 7) % count);
      sources.push_back(model_[static_cast<std::size_t>(beams.back())].tokens);
      any_busy = any_busy || busy(seqs.back());
    }
    const Status status = f_.cache.reorder(seqs, testing::indices(beams));
    expect(status.code() == (any_busy ? StatusCode::kInvalidArgument : StatusCode::kOk),
           "another outcome than " + status.to_string());
    for (std::size_t i = 0; status.ok() && i < sources.size(); ++i) model_[i].tokens = sources[i];
  }

  void check_view(const OpenStep& open) {
    if (!open.written) return;
    for (std::int64_t layer = 0; layer < f_.num_layers; ++layer) {
      const OwnedKvView view = f_.cache.view(open.step, layer).value();
      for (std::size_t i = 0; i < open.seqs.size(); ++i) {
        Tokens expected = named(open.seqs[i]).tokens;
        expected.insert(expected.end(), open.fresh[i].begin(), open.fresh[i].end());
        expect(f_.tokens(view, static_cast<std::int32_t>(i), layer) == expected,
               "the step's view to show old and new tokens");
      }
    }
  }

  testing::TestMemory memory_;
  PagedFixture f_;
  std::vector<Sequence> model_;
  std::vector<OpenStep> steps_;
  std::int64_t next_token_ = 0;
};

}  // namespace
}  // namespace kvcache::fuzz

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr int kMaxOps = 96;
  kvcache::fuzz::Numbers input(data, size);
  kvcache::fuzz::Paged paged(input.byte());
  for (int i = 0; i < kMaxOps && !input.empty(); ++i) {
    paged.run(input);
    paged.check();
  }
  return 0;
}
