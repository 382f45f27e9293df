// Random operations on a PrefixCache beside the model of support/prefix_world.h: sequences that are
// opened from matches, grow, fork, are cut and released, while pages are evicted, pinned, expire
// and memory is refused. What a match finds is what the events say is known, to the token, and
// every row of it is that of its text.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cache/prefix/node.h"
#include "support/prefix_world.h"

namespace kvcache::testing {
namespace {

struct SoakShape {
  const char* name;
  std::vector<Life> lives;
  std::int64_t num_pages;
  std::int64_t page_size;
  std::size_t sequences;  // open at once, at most
  std::int32_t alphabet;
  Eviction eviction = Eviction::kLru;
  std::int64_t rewind_tokens = 0;
  std::int64_t budget_percent = 100;  // of what all pages and their tables weigh
};

class PrefixSoak {
 public:
  PrefixSoak(const SoakShape& shape, std::uint64_t seed)
      : shape_(shape), random_(seed), world_(config(shape, &memory_), options(this, shape)) {
    EXPECT_OK(world_.prefixes->set_quota(1, 3 * 4096));
  }

  void run(std::int64_t operations, std::int64_t check_every) {
    for (std::int64_t i = 0; i < operations && !::testing::Test::HasFailure(); ++i) {
      switch (below(32)) {
        case 0:
        case 1:
          memory_.fail_after(static_cast<std::int64_t>(below(3)));
          break;
        case 2:
        case 3:
          memory_.fail_at_random(random_(), 2 + below(3));
          break;
        default:
          break;
      }
      operate();
      memory_.never_fail();
      EXPECT_LE(world_.cache.reserved_bytes(), world_.config.budget_bytes);
      EXPECT_LE(memory_.committed_bytes(), world_.cache.reserved_bytes());
      EXPECT_LE(memory_.peak_bytes(), world_.config.budget_bytes);
      if (i % check_every == 0) check();
    }
    check();
    for (const Live& live : live_) EXPECT_OK(world_.cache.release(live.seq));
    live_.clear();
    pins_.clear();
    check();
  }
  PrefixStats stats() const { return world_.prefixes->stats(); }

 private:
  struct Live {
    SequenceId seq;
    PrefixNamespace name;
    Text text;
  };

  static CacheConfig config(const SoakShape& shape, MemoryResource* memory) {
    CacheConfig config =
        PrefixWorld::config_of(shape.lives, shape.num_pages, shape.page_size, memory);
    config.rewind_tokens = shape.rewind_tokens;
    // All pages, their tables and some sharing.
    const auto groups = static_cast<std::int64_t>(shape.lives.size());
    const std::int64_t page =
        groups * shape.page_size * 8 + 48 * groups + 4 * shape.page_size + 304;
    config.budget_bytes = (shape.num_pages * page + 20000) * shape.budget_percent / 100;
    if (shape.budget_percent < 100) config.num_pages = 0;  // as many as that allows one group
    return config;
  }
  static PrefixOptions options(PrefixSoak* soak, const SoakShape& shape) {
    PrefixOptions options;
    options.event_capacity = 1 << 16;
    options.eviction = shape.eviction;
    options.clock = [soak] { return soak->now_; };
    return options;
  }

  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }
  Text any_text(std::size_t most) {
    Text text;
    // Few different beginnings, and any end.
    const std::size_t length = 1 + below(most);
    std::uint64_t state = below(6) + 1;
    const std::size_t straight = below(length + 1);
    for (std::size_t t = 0; t < length; ++t) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      const std::uint64_t token = t < straight ? state >> 40 : below(1000);
      text.push_back(
          static_cast<std::int32_t>(token % static_cast<std::uint64_t>(shape_.alphabet)));
    }
    return text;
  }
  PrefixNamespace any_name() {
    return named(static_cast<int>(below(2)), static_cast<int>(below(3)));
  }
  Live* any_live() { return live_.empty() ? nullptr : &live_[below(live_.size())]; }
  void drop(Live* live) {
    *live = std::move(live_.back());
    live_.pop_back();
  }

  void operate() {
    switch (below(20)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return open();
      case 4:
      case 5:
      case 6:
      case 7:
      case 8:
      case 9:
        return append();
      case 10:
      case 11:
      case 12:
        return release();
      case 13:
        return fork();
      case 14:
        return cut();
      case 15:
        return reorder();
      case 16:
        return pin();
      case 17:
        return age();
      default:
        return append();
    }
  }

  void open() {
    if (live_.size() >= shape_.sequences) return release();
    const PrefixNamespace name = any_name();
    Text text = any_text(shape_.page_size > 8 ? 200 : 60);
    if (Live* other = any_live(); other != nullptr && below(2) == 0 && !other->text.empty()) {
      text = joined(
          Text(other->text.begin(),
               other->text.begin() + static_cast<std::ptrdiff_t>(1 + below(other->text.size()))),
          any_text(4));
    }
    const Numbers before = numbers();
    const PrefixExplanation expected = world_.prefixes->explain(text, name).value();
    auto handle = world_.prefixes->match(text, name);
    if (!handle.ok()) {
      EXPECT_EQ(numbers(), before);
      return;
    }
    EXPECT_EQ(handle->length(), expected.length);
    EXPECT_EQ(handle->reason(), expected.reason);
    EXPECT_LE(handle->length(), static_cast<std::int64_t>(text.size()) - 1);
    check_found(name, text, expected);
    auto seq = world_.prefixes->open(*handle);
    if (!seq.ok()) return;
    text.resize(static_cast<std::size_t>(handle->length()));
    EXPECT_TRUE(world_.holds(*seq, name, text));
    live_.push_back({*seq, name, text});
    if (below(4) == 0) {
      EXPECT_OK(world_.prefixes->set_priority(*handle, static_cast<std::int64_t>(below(101))));
    }
  }

  // What is known is what the events say, to the token.
  void check_found(const PrefixNamespace& name, const Text& text, const PrefixExplanation& found) {
    take_events();
    const auto page = static_cast<std::size_t>(shape_.page_size);
    std::int32_t words[8];
    std::memcpy(words, name.bits.data(), sizeof words);
    std::uint64_t key = internal::hash_tokens(static_cast<std::uint64_t>(name.tenant), words, 8);
    std::size_t whole = 0;
    for (; whole + page <= text.size(); whole += page) {
      const std::uint64_t next = internal::hash_tokens(key, text.data() + whole, shape_.page_size);
      if (known_.count(next) == 0) break;
      key = next;
    }
    if (expiring_) return;
    // The longest common beginning with a page behind that one is seen by `stored` alone; whole
    // pages must agree.
    EXPECT_GE(found.stored, std::min<std::int64_t>(static_cast<std::int64_t>(whole),
                                                   static_cast<std::int64_t>(text.size()) - 1));
    EXPECT_LT(found.stored, static_cast<std::int64_t>(whole + page));
  }

  void take_events() {
    PrefixEvent events[256];
    for (std::int64_t count = 1; count > 0;) {
      count = world_.prefixes->take_events(events);
      for (std::int64_t i = 0; i < count; ++i) {
        const PrefixEvent& event = events[i];
        ASSERT_NE(event.kind, PrefixEvent::Kind::kLost);
        EXPECT_EQ(event.number, ++last_event_);
        if (event.kind == PrefixEvent::Kind::kStored) {
          EXPECT_TRUE(known_.insert(event.key).second);
        } else {
          EXPECT_EQ(known_.erase(event.key), 1U);
        }
      }
    }
    EXPECT_EQ(static_cast<std::int64_t>(known_.size()), world_.prefixes->stats().pages);
  }

  void append() {
    Live* const live = any_live();
    if (live == nullptr) return;
    const Text more = any_text(1 + below(10));
    const bool with_ids = below(50) != 0;
    const Numbers before = numbers();
    const Append append{
        live->seq, static_cast<std::int64_t>(more.size()),
        with_ids ? std::span<const std::int32_t>(more) : std::span<const std::int32_t>()};
    auto step = world_.cache.reserve({&append, 1});
    if (!step.ok()) {
      EXPECT_NE(step.status().code(), StatusCode::kInternal);
      EXPECT_EQ(numbers(), before);
      return;
    }
    const Text text = joined(live->text, more);
    EXPECT_OK(world_.write(*step, live->name, text, live->text.size()));
    std::int64_t kept = static_cast<std::int64_t>(more.size());
    if (below(8) == 0) kept = static_cast<std::int64_t>(below(more.size() + 1));
    if (kept == 0 && below(2) == 0) {
      EXPECT_OK(world_.cache.rollback(*step));
      return;
    }
    EXPECT_OK(world_.cache.commit(*step, {&kept, 1}));
    live->text.insert(live->text.end(), more.begin(),
                      more.begin() + static_cast<std::ptrdiff_t>(kept));
  }

  void release() {
    Live* const live = any_live();
    if (live == nullptr) return;
    EXPECT_TRUE(world_.holds(live->seq, live->name, live->text));
    EXPECT_OK(world_.cache.release(live->seq));
    drop(live);
  }

  void fork() {
    Live* const live = any_live();
    if (live == nullptr || live_.size() >= shape_.sequences) return;
    const std::size_t length = below(live->text.size() + 1);
    const Numbers before = numbers();
    auto seq = world_.cache.fork(live->seq, static_cast<std::int64_t>(length));
    if (!seq.ok()) {
      EXPECT_EQ(numbers(), before);
      return;
    }
    Live child{*seq, live->name, live->text};
    child.text.resize(length);
    live_.push_back(child);
  }

  void cut() {
    Live* const live = any_live();
    if (live == nullptr) return;
    const std::size_t length = below(live->text.size() + 1);
    if (!world_.cache.truncate(live->seq, static_cast<std::int64_t>(length)).ok()) return;
    live->text.resize(length);
  }

  void reorder() {
    if (live_.size() < 2) return;
    const std::size_t a = below(live_.size());
    const std::size_t b = below(live_.size());
    if (a == b) return;
    const SequenceId seqs[] = {live_[a].seq, live_[b].seq};
    const std::int64_t beams[] = {static_cast<std::int64_t>(below(2)),
                                  static_cast<std::int64_t>(below(2))};
    const TensorView view(beams, DType::kI64, {2});
    const Numbers before = numbers();
    if (!world_.cache.reorder(seqs, view).ok()) {
      EXPECT_EQ(numbers(), before);
      return;
    }
    const Live was[] = {live_[a], live_[b]};
    live_[a].name = was[beams[0]].name;
    live_[a].text = was[beams[0]].text;
    live_[b].name = was[beams[1]].name;
    live_[b].text = was[beams[1]].text;
  }

  void pin() {
    if (!pins_.empty() && (pins_.size() > 3 || below(2) == 0)) {
      auto handle = std::move(pins_.back());
      pins_.pop_back();
      EXPECT_OK(world_.prefixes->unpin(handle));
      return;
    }
    Live* const live = any_live();
    if (live == nullptr) return;
    auto handle = world_.prefixes->match(live->text, live->name);
    if (!handle.ok() || !world_.prefixes->pin(*handle).ok()) return;
    pins_.push_back(std::move(*handle));
  }

  void age() {
    now_ += static_cast<std::int64_t>(below(100));
    switch (below(4)) {
      case 0:
        world_.prefixes->evict(static_cast<std::int64_t>(below(3)));
        return;
      case 1:
        world_.prefixes->remove_expired();
        return;
      case 2: {
        Live* const live = any_live();
        if (live == nullptr || below(8) != 0) return;
        auto handle = world_.prefixes->match(live->text, live->name);
        if (!handle.ok()) return;
        expiring_ = true;
        EXPECT_OK(world_.prefixes->set_ttl(*handle, 1 + static_cast<std::int64_t>(below(50))));
        return;
      }
      default:
        if (below(64) == 0) {
          EXPECT_OK(world_.prefixes->set_quota(static_cast<std::int64_t>(below(3)),
                                               static_cast<std::int64_t>(below(4)) * 1024 - 1));
        }
    }
  }

  using Numbers = std::vector<std::int64_t>;
  // What no refused call may change.
  Numbers numbers() const {
    const PagedStats paged = world_.cache.stats();
    const PrefixStats index = world_.prefixes->stats();
    return {world_.cache.nbytes(),
            world_.cache.reserved_bytes(),
            paged.pages_held,
            paged.pages_cached,
            paged.pages_reserved,
            paged.sequences,
            paged.open_steps,
            index.pages,
            index.pages_unheld,
            index.pages_evicted,
            index.matches,
            index.namespaces,
            world_.cache.free_pages()};
  }

  void check() {
    world_.check();
    world_.prefixes->evict(0);  // what a refusal left lent is asked for again
    EXPECT_EQ(memory_.committed_bytes(), world_.cache.reserved_bytes());
    take_events();
    if (const Live* live = any_live(); live != nullptr) {
      EXPECT_TRUE(world_.holds(live->seq, live->name, live->text));
    }
  }

  const SoakShape shape_;
  std::mt19937_64 random_;
  TestMemory memory_;
  std::int64_t now_ = 0;
  bool expiring_ = false;
  PrefixWorld world_;
  std::vector<Live> live_;
  std::vector<PrefixHandle> pins_;
  std::set<std::uint64_t> known_;
  std::int64_t last_event_ = 0;
};

std::int64_t soak_operations() {
  const char* const text = std::getenv("KVCACHE_SOAK_OPERATIONS");
  return text == nullptr ? 0 : std::atoll(text);
}

TEST(PrefixCacheSoak, AgreesWithTheModel) {
  const SoakShape shapes[] = {
      {"full", {{}}, 24, 4, 8, 3},
      {"few pages", {{}}, 5, 3, 4, 2},
      {"page of one", {{}}, 40, 1, 6, 2},
      {"full and window", {{}, {6}}, 24, 4, 6, 3},
      {"window", {{5}}, 16, 4, 6, 2},
      {"window of one", {{}, {1}}, 20, 4, 6, 2},
      {"window and sinks", {{}, {9, 0, 3}}, 24, 4, 6, 3},
      {"chunk", {{}, {0, 6}}, 24, 4, 6, 3},
      {"three", {{}, {7}, {0, 8}}, 24, 4, 6, 3, Eviction::kLru, 5},
      {"s3fifo", {{}}, 24, 4, 8, 3, Eviction::kS3Fifo},
      {"arc", {{}, {6}}, 24, 4, 8, 3, Eviction::kArc},
      {"adaptive", {{}}, 24, 4, 8, 3, Eviction::kAdaptive},
      {"budget", {{}}, 40, 4, 6, 3, Eviction::kLru, 0, 50},
      {"budget over groups", {{}, {6}}, 40, 4, 6, 3, Eviction::kLru, 0, 45},
      {"budget, arc", {{}, {9, 0, 3}}, 40, 4, 6, 3, Eviction::kArc, 0, 45},
      {"budget, s3fifo", {{}, {7}, {0, 8}}, 40, 4, 6, 3, Eviction::kS3Fifo, 2, 45},
      {"budget, adaptive", {{}, {6}}, 40, 4, 6, 3, Eviction::kAdaptive, 0, 45},
  };
  for (const SoakShape& shape : shapes) {
    for (std::uint64_t seed = 1; seed <= 4 && !HasFailure(); ++seed) {
      SCOPED_TRACE(std::string(shape.name) + ", seed " + std::to_string(seed));
      PrefixSoak(shape, seed).run(3000, 1);
    }
  }
}

// KVCACHE_SOAK_OPERATIONS: how many; with it the whole size.
TEST(PrefixCacheSoak, TenThousandSequencesKeepTheirRows) {
  const std::int64_t operations = std::max<std::int64_t>(soak_operations(), 20000);
  for (const Eviction eviction :
       {Eviction::kLru, Eviction::kS3Fifo, Eviction::kArc, Eviction::kAdaptive}) {
    SoakShape shape{"many", {{}, {12}}, 30000, 8, 10000, 4};
    shape.eviction = eviction;
    PrefixSoak soak(shape, 7);
    soak.run(operations / 4, operations / 16);
    const PrefixStats stats = soak.stats();
    if (soak_operations() > 0) {
      std::printf("%lld operations, %lld matches, %lld hits, %lld pages stored, %lld evicted\n",
                  static_cast<long long>(operations / 4), static_cast<long long>(stats.matches),
                  static_cast<long long>(stats.hits), static_cast<long long>(stats.pages_stored),
                  static_cast<long long>(stats.pages_evicted));
    }
  }
}

}  // namespace
}  // namespace kvcache::testing
