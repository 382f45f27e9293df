// A PrefixCache among threads, as prefix.h and paged_cache.h promise it: changing calls are
// serialised by the caller, const calls run together, and attention over views that are valid runs
// beside any call. Readers attend to what they matched, without a lock, while a writer stores,
// evicts and releases. For ThreadSanitizer; what is read is right anywhere.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <utility>
#include <vector>

#include "support/prefix_world.h"

namespace kvcache::testing {
namespace {

constexpr std::int64_t kPageSize = 4;
constexpr std::int64_t kWindow = 10;
constexpr std::int64_t kSeen = kWindow - 1;  // of a window the next token takes one

// Texts that begin alike: `number` says where they part, and what comes behind.
Text text_of(std::int32_t number) {
  return joined(counted(1, 4 + number % 5 * 5), counted(1000 * (number + 1), 9 + number % 7));
}

// The mean of the rows that a query behind `length` rows sees, which is what attention over equal
// scores gives.
double mean_of(const Text& text, std::int64_t layer, std::int64_t length, std::int64_t seen) {
  std::uint64_t state = 0;
  double sum = 0;
  for (std::int64_t t = 0; t < length; ++t) {
    const double row = row_of({}, layer, text, static_cast<std::size_t>(t), &state);
    if (t >= length - seen) sum += row;
  }
  return sum / static_cast<double>(seen);
}

class PrefixCacheThreads : public ::testing::Test {
 protected:
  // A text that is matched, looked at with others, attended to by itself, and let go of.
  void read(std::int32_t number) {
    const Text text = text_of(number);
    SequenceId seq{};
    {
      const std::unique_lock alone(turn_);
      auto handle = world_.prefixes->match(text);
      if (!handle.ok()) return;  // no room for a handle beside all that is held
      auto opened = world_.prefixes->open(*handle);
      if (!opened.ok()) return;
      seq = *opened;
    }
    std::vector<OwnedKvView> views;
    std::int64_t length = 0;
    {
      const std::shared_lock together(turn_);
      length = world_.cache.seq_length(seq).value();
      EXPECT_TRUE(world_.holds(seq, {}, Text(text.begin(), text.begin() + length)));
      EXPECT_OK(world_.prefixes->explain(text).status());
      EXPECT_GE(world_.prefixes->stats().pages, 0);
      EXPECT_LE(world_.cache.reserved_bytes(), world_.config.budget_bytes);
      EXPECT_GE(world_.cache.nbytes(), length);
      EXPECT_GE(world_.cache.free_pages(), 0);
      EXPECT_EQ(world_.prefixes->tenant_bytes(0), 0);
      EXPECT_GE(world_.cache.stats().pages_held, 0);
      EXPECT_OK(world_.cache.block_table(0, {&seq, 1}).status());
      world_.check();
      for (std::int64_t layer = 0; layer < 2 && length > 0; ++layer) {
        views.push_back(world_.cache.view(layer, {&seq, 1}).value());
      }
    }
    for (int i = 0; i < 4 && length > 0; ++i) attend_to(text, length, views);
    const std::unique_lock alone(turn_);
    EXPECT_OK(world_.cache.release(seq));
  }

  void attend_to(const Text& text, std::int64_t length, const std::vector<OwnedKvView>& views) {
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      const float query = 0;
      float out = 0;
      AttentionOptions options;
      if (layer == 1) options.window = kSeen;
      ExecContext context;
      context.executor = &serial_executor();
      const std::int64_t seen = layer == 1 ? std::min(length, kSeen) : length;
      ASSERT_OK(attend(TensorView(&query, DType::kF32, {1, 1, 1, 1}), {},
                       views[static_cast<std::size_t>(layer)],
                       MutableTensorView(&out, DType::kF32, {1, 1, 1, 1}), {}, options, context));
      const double expected = mean_of(text, layer, length, seen);
      EXPECT_NEAR(out, expected, 1e-5 * expected) << "layer " << layer << ", length " << length;
    }
    ++attended_;
  }

  // A text that is stored as far as it is not known, and what else changes the cache.
  void write(std::int32_t number) {
    const Text text = text_of(number);
    const std::unique_lock alone(turn_);
    auto handle = world_.prefixes->match(text);
    if (!handle.ok()) return;
    const SequenceId seq = world_.prefixes->open(*handle).value();
    if (number % 3 == 0) {
      EXPECT_OK(world_.prefixes->set_priority(*handle, number % 100));
    }
    if (number % 5 == 0) {
      EXPECT_OK(world_.prefixes->pin(*handle));
      EXPECT_OK(world_.prefixes->unpin(*handle));
    }
    handle = Status(StatusCode::kNotFound, "dropped");
    const Status status = world_.append(seq, {}, text);
    EXPECT_TRUE(!status.ok() || world_.holds(seq, {}, text));
    EXPECT_TRUE(status.ok() || status.code() == StatusCode::kRetryLater) << status.to_string();
    EXPECT_OK(world_.cache.release(seq));
    if (number % 4 == 0) world_.prefixes->evict(2);
  }

  static CacheConfig config() {
    CacheConfig config = PrefixWorld::config_of({{}, {kWindow}}, 0, kPageSize);
    config.budget_bytes = 24000;
    return config;
  }

  PrefixWorld world_{config()};
  std::shared_mutex turn_;
  std::atomic<std::int64_t> attended_ = 0;
};

TEST_F(PrefixCacheThreads, ReadersAttendToWhatTheyMatchedBesideAWriterThatEvicts) {
  std::atomic<bool> writing = true;
  // Beside the writer, and one round after it: however the threads were run, some text is there.
  const auto reader = [&](std::int32_t first) {
    for (std::int32_t i = 0; writing; ++i) read((first + 7 * i) % 40);
    for (std::int32_t number = 0; number < 40; ++number) read(number);
  };
  std::thread one(reader, 0), other(reader, 20);
  for (std::int32_t i = 0; i < 400 && !HasFailure(); ++i) {
    write(i * 11 % 40);
    std::this_thread::yield();
  }
  writing = false;
  one.join();
  other.join();
  world_.check();
  EXPECT_GT(attended_, 0);
  EXPECT_GT(world_.prefixes->stats().pages_evicted, 0);
  EXPECT_EQ(world_.cache.stats().sequences, 0);
}

// Rows of an open step, and of others' sequences, while the step is written: views of both are
// attended to without a lock.
TEST_F(PrefixCacheThreads, WhatIsSharedIsReadWhileItsOtherSharersGrow) {
  const Text text = counted(1, 22);
  EXPECT_EQ(world_.ask(text), 0);
  const auto found = [&] {
    return world_.prefixes->open(world_.prefixes->match(text).value()).value();
  };
  const SequenceId still = found();
  const std::int64_t length = world_.cache.seq_length(still).value();
  std::vector<OwnedKvView> views;
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    views.push_back(world_.cache.view(layer, {&still, 1}).value());
  }
  std::atomic<bool> writing = true;
  std::thread reader([&] {
    for (int i = 0; (writing || i < 50) && !HasFatalFailure(); ++i) attend_to(text, length, views);
  });
  for (std::int32_t i = 0; i < 60; ++i) {
    // Its first write copies the page that it shares with the reader.
    const SequenceId seq = found();
    EXPECT_OK(world_.append(seq, {}, joined(text, counted(100 + i, 5))));
    EXPECT_OK(world_.cache.release(seq));
    world_.prefixes->evict(1);
  }
  writing = false;
  reader.join();
  EXPECT_TRUE(world_.holds(still, {}, Text(text.begin(), text.begin() + length)));
  EXPECT_OK(world_.cache.release(still));
  world_.check();
}

}  // namespace
}  // namespace kvcache::testing
