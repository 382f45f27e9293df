// Random operations on a PagedCache beside the plainest model there is: a vector of tokens for each
// sequence. Several steps are open at once, memory is refused now and then, slots that hold no row
// are NaN, and the bookkeeping is counted again after every operation.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <tuple>
#include <utility>
#include <vector>

#include "support/paged.h"

namespace kvcache::testing {
namespace {

constexpr std::int64_t kNumPages = 12;

// What to do, and three numbers that say to whom and how much.
struct Op {
  std::int64_t kind = 0, a = 0, b = 0, c = 0;
};

std::ostream& operator<<(std::ostream& out, const Op& op) {
  return out << "{" << op.kind << ", " << op.a << ", " << op.b << ", " << op.c << "}";
}

rc::Gen<Op> any_op() {
  const auto number = [] { return rc::gen::inRange<std::int64_t>(0, 64); };
  return rc::gen::map(rc::gen::tuple(number(), number(), number(), number()), [](const auto& n) {
    return Op{std::get<0>(n), std::get<1>(n), std::get<2>(n), std::get<3>(n)};
  });
}

struct OpenStep {
  PagedCache::Step step;
  std::vector<SequenceId> seqs;
  std::vector<Tokens> tokens;  // new ones, by sequence
  bool written = false;
};

std::int64_t size_of_tokens(const Tokens& tokens) {
  return static_cast<std::int64_t>(tokens.size());
}

class Soak {
 public:
  // Layers of two kinds: two groups, unless they are alike.
  Soak(Layout layout, std::int64_t page_size, const std::vector<LayerSpec>& specs)
      : f_(config(layout, page_size, specs, &memory_)),
        last_token_(std::min(largest_token(specs[0]), largest_token(specs[1]))) {}

  void run(const Op& op) {
    switch (op.kind % 12) {
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
      default:
        return append(op);
    }
  }

  // Everything that can be seen agrees with the model.
  void check() {
    const Status status = f_.cache.check_invariants();
    RC_ASSERT(status.to_string() == "ok");
    std::vector<SequenceId> seqs;
    for (const auto& [seq, tokens] : model_) {
      seqs.push_back(seq);
      RC_ASSERT(f_.tokens(seq) == tokens);
      RC_ASSERT(std::int64_t(f_.pages(seq).size()) == pages_of(size_of_tokens(tokens)));
    }
    for (std::int64_t layer = 0; layer < f_.num_layers; ++layer) {
      const OwnedKvView view = f_.cache.view(layer, seqs).value();
      for (std::size_t i = 0; i < seqs.size(); ++i) {
        RC_ASSERT(f_.tokens(view, std::int32_t(i), layer) == model_[seqs[i]]);
      }
      for (OpenStep& open : steps_) check_view(open, layer);
    }
    const PagedStats stats = f_.cache.stats();
    RC_ASSERT(stats.sequences == std::int64_t(model_.size()));
    RC_ASSERT(stats.open_steps == std::int64_t(steps_.size()));
    const std::int64_t groups = f_.cache.num_groups();
    RC_ASSERT(stats.pages_held + stats.pages_reserved + groups * f_.cache.free_pages() ==
              groups * kNumPages);
    RC_ASSERT(f_.cache.nbytes() == stored_bytes(seqs));
    RC_ASSERT(stats.pages_high_water >= stats.pages_held + stats.pages_reserved);
    RC_ASSERT(memory_.committed_bytes() == f_.cache.reserved_bytes());
  }

 private:
  static CacheConfig config(Layout layout, std::int64_t page_size,
                            const std::vector<LayerSpec>& specs, MemoryResource* memory) {
    CacheConfig config = PagedFixture::config(layout, DType::kF32, kNumPages, page_size, 3);
    for (std::size_t i = 0; i < config.layers.size(); ++i) config.layers[i] = specs[i % 2];
    config.memory = memory;
    return config;
  }

  // Tokens that element() makes exact rows of, in the storage of both K and V.
  static double largest_token(const LayerSpec& spec) {
    const bool wide =
        spec.key().format.dtype == DType::kF32 && spec.value().format.dtype == DType::kF32;
    return wide ? 1 << 20 : 63;
  }

  // Committed rows, those in the same place once.
  std::int64_t stored_bytes(const std::vector<SequenceId>& seqs) {
    std::int64_t bytes = 0;
    for (std::int64_t layer = 0; layer < f_.num_layers; ++layer) {
      std::set<std::int64_t> slots;
      for (const SequenceId seq : seqs) {
        const Pages pages = f_.pages(seq, layer);
        const std::int64_t page_size = f_.cache.page_size();
        for (std::int64_t row = 0; row < size_of_tokens(model_[seq]); ++row) {
          slots.insert(pages[std::size_t(row / page_size)] * page_size + row % page_size);
        }
      }
      bytes += std::int64_t(slots.size()) * bytes_per_token(f_.spec(layer));
    }
    return bytes;
  }

  std::int64_t pages_of(std::int64_t tokens) const {
    const std::int64_t page_size = f_.cache.page_size();
    return (tokens + page_size - 1) / page_size;
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
    for (std::size_t i = 0; i < open.seqs.size(); ++i) {
      Tokens expected = model_[open.seqs[i]];
      expected.insert(expected.end(), open.tokens[i].begin(), open.tokens[i].end());
      RC_ASSERT(f_.tokens(*view, std::int32_t(i), layer) == expected);
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

  void open() {
    if (model_.size() < 8) model_[f_.open()] = {};
  }

  void release(const Op& op) {
    const auto seq = pick(op.a);
    if (!seq || !agrees(*seq, f_.cache.release(*seq))) return;
    model_.erase(*seq);
    RC_ASSERT(f_.cache.release(*seq).code() == StatusCode::kNotFound);
  }

  // Pages that a step over these sequences takes; a shared tail costs one more.
  std::int64_t room_for(const std::vector<Append>& appends) const {
    std::map<std::int32_t, std::int64_t> references;
    for (const auto& [seq, tokens] : model_) {
      for (const std::int32_t page : f_.pages(seq)) ++references[page];
    }
    std::int64_t pages = 0;
    for (const Append& append : appends) {
      const std::int64_t length = size_of_tokens(model_.at(append.seq));
      pages += pages_of(length + append.count) - pages_of(length);
      if (append.count == 0 || length % f_.cache.page_size() == 0) continue;
      if (references[f_.pages(append.seq).back()] > 1) ++pages;
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
    const std::int64_t room = room_for(appends);
    const std::int64_t free = f_.cache.free_pages();
    if (op.c % 8 == 7) memory_.fail_after(0);
    Result<PagedCache::Step> step = f_.cache.reserve(appends);
    memory_.never_fail();
    const StatusCode code = step.status().code();
    if (any_busy) {
      RC_ASSERT(code == StatusCode::kInvalidArgument);
    } else if (room > free) {
      RC_ASSERT(code == StatusCode::kRetryLater || code == StatusCode::kNeverFits);
      std::int64_t held = 0;
      for (const SequenceId seq : seqs) held += std::int64_t(f_.pages(seq).size());
      RC_ASSERT(code == StatusCode::kRetryLater || held + room > kNumPages);
    } else {
      RC_ASSERT(code == StatusCode::kOk || (code == StatusCode::kOutOfMemory && op.c % 8 == 7));
    }
    if (!step.ok()) return std::nullopt;
    return OpenStep{std::move(*step), seqs, tokens, false};
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
      Tokens& kept = model_[open.seqs[i]];
      kept.insert(kept.end(), open.tokens[i].begin(), open.tokens[i].begin() + accepted[i]);
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
    steps_.erase(steps_.begin() + std::int64_t(which));
  }

  // By name, or by dropping the step.
  void rollback(const Op& op) {
    if (steps_.empty()) return;
    const std::size_t which = std::size_t(op.a) % steps_.size();
    if (op.b % 2 == 0) RC_ASSERT(f_.cache.rollback(steps_[which].step).ok());
    steps_.erase(steps_.begin() + std::int64_t(which));
  }

  void fork(const Op& op) {
    const auto seq = pick(op.a);
    if (!seq || model_.size() > 8) return;
    const std::int64_t length = op.b % (size_of_tokens(model_[*seq]) + 1);
    const Result<SequenceId> child = f_.cache.fork(*seq, length);
    if (!agrees(*seq, child.status())) return;
    const Tokens& parent = model_[*seq];
    model_[*child] = Tokens(parent.begin(), parent.begin() + length);
  }

  void cut(const Op& op) {
    const auto seq = pick(op.a);
    if (!seq) return;
    const std::int64_t length = op.b % (size_of_tokens(model_[*seq]) + 1);
    const bool by_rest = op.c % 2 == 0;
    const Status status = by_rest ? f_.cache.rewind(*seq, size_of_tokens(model_[*seq]) - length)
                                  : f_.cache.truncate(*seq, length);
    if (agrees(*seq, status)) model_[*seq].resize(std::size_t(length));
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
    const Status status = f_.cache.reorder(seqs, indices(beams));
    if (any_busy) {
      RC_ASSERT(status.code() == StatusCode::kInvalidArgument);
      return;
    }
    RC_ASSERT(status.to_string() == "ok");
    const std::map<SequenceId, Tokens> before = model_;
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
  PagedFixture f_;
  std::map<SequenceId, Tokens> model_;
  std::vector<OpenStep> steps_;
  double last_token_;
  double token_ = 0;
};

// Any storage types, and K and V of any of the sizes that element() knows.
LayerSpec any_spec() {
  const auto dtype = [] { return rc::gen::element(DType::kF32, DType::kF16, DType::kBF16); };
  return LayerSpec::kv(2, *rc::gen::inRange<std::int64_t>(1, 3),
                       *rc::gen::inRange<std::int64_t>(1, 3), plain(*dtype()), plain(*dtype()));
}

// KVCACHE_SOAK_SECONDS: how long; new operations every time, and their number is printed.
TEST(PagedCacheSoak, RandomOperationsAgreeWithAVectorOfTokens) {
  const char* text = std::getenv("KVCACHE_SOAK_SECONDS");
  const double seconds = text == nullptr ? 0.2 : std::atof(text);
  const auto begin = std::chrono::steady_clock::now();
  rc::detail::TestMetadata metadata;
  metadata.id = metadata.description = "PagedCacheSoak";
  rc::detail::TestParams params = rc::detail::configuration().testParams;
  params.maxSuccess = 20;
  long long operations = 0;
  do {
    ++params.seed;
    const auto result = rc::detail::checkTestable(
        [&operations] {
          const auto layout = *rc::gen::element(Layout::kHND, Layout::kNHD);
          const auto page_size = *rc::gen::inRange<std::int64_t>(1, 6);
          const auto ops = *rc::gen::container<std::vector<Op>>(any_op());
          Soak soak(layout, page_size, {any_spec(), any_spec()});
          operations += static_cast<long long>(ops.size());
          for (const Op& op : ops) {
            soak.run(op);
            soak.check();
          }
        },
        metadata, params);
    std::ostringstream message;
    rc::detail::printResultMessage(result, message);
    ASSERT_TRUE(result.is<rc::detail::SuccessResult>()) << message.str();
  } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() <
           seconds);
  if (text != nullptr) {
    std::printf("PagedCacheSoak: %lld operations, 0 differences\n", operations);
  }
}

}  // namespace
}  // namespace kvcache::testing
