#include "runner/replay/replay.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "runner/replay/trace.h"

namespace kvcache::runner {
namespace {

// Sessions that go on, prompts that never come back, and a beginning that all share.
std::vector<TraceRequest> small_trace() {
  std::vector<TraceRequest> requests;
  std::int64_t next = 1;
  std::vector<std::vector<std::int64_t>> sessions(4);
  for (int turn = 0; turn < 40; ++turn) {
    std::vector<std::int64_t>& session = sessions[static_cast<std::size_t>(turn * 7 % 4)];
    if (session.empty()) session.push_back(0);
    session.push_back(next++);
    TraceRequest request;
    request.blocks = turn % 3 == 2 ? std::vector<std::int64_t>{0, next++, next++} : session;
    request.input_length = 512 * static_cast<std::int64_t>(request.blocks.size());
    requests.push_back(request);
  }
  return requests;
}

Result<std::vector<TraceRequest>> read(const std::string& text) {
  std::istringstream lines(text);
  TraceReader reader(lines);
  std::vector<TraceRequest> requests;
  TraceRequest request;
  for (;;) {
    const Result<bool> more = reader.next(&request);
    if (!more.ok()) return more.status();
    if (!*more) return requests;
    requests.push_back(request);
  }
}

TEST(TraceReader, ReadsALineForEachRequestAndSaysWhichOneIsWrong) {
  const auto read_two = read(
      "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 9, \"hash_ids\": [0, 7]}\n\n"
      "{\"input_length\": 512, \"hash_ids\": [0]}\n");
  ASSERT_TRUE(read_two.ok());
  ASSERT_EQ(read_two->size(), 2U);
  EXPECT_EQ((*read_two)[0].blocks, (std::vector<std::int64_t>{0, 7}));
  const char* const wrong[] = {"nothing",
                               "{\"input_length\": 0, \"hash_ids\": []}",
                               "{\"input_length\": 513, \"hash_ids\": [1]}",
                               "{\"input_length\": 5, \"hash_ids\": [-1]}",
                               "{\"input_length\": 5, \"hash_ids\": [4294967296]}",
                               "{\"input_length\": 1e99, \"hash_ids\": [1]}"};
  for (const char* line : wrong) {
    const auto result = read(std::string("{\"input_length\": 1, \"hash_ids\": [1]}\n") + line);
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument) << line;
    EXPECT_EQ(result.status().message().rfind("line 2: found ", 0), 0U) << line;
  }
}

TEST(Replay, WithRoomForAllItFindsWhatIsThereAndNothingElse) {
  const auto trace = small_trace();
  const double infinite = replay_ideal(trace, 0).token_hit_ratio();
  EXPECT_GT(infinite, 0.2);
  for (const Eviction eviction :
       {Eviction::kLru, Eviction::kS3Fifo, Eviction::kArc, Eviction::kAdaptive}) {
    for (const std::int64_t block : {std::int64_t{16}, std::int64_t{512}}) {
      const auto replay = Replay::create(1 << 20, block, eviction).value();
      for (const TraceRequest& request : trace) ASSERT_TRUE(replay->add(request).ok());
      EXPECT_EQ(replay->result().wrong_hits, 0);
      EXPECT_NEAR(replay->result().token_hit_ratio(), infinite, 1e-9);
    }
  }
}

TEST(Replay, NoPolicyIsBetterThanBeladyAndNoneHitsWrong) {
  const auto trace = small_trace();
  for (const std::int64_t capacity : {std::int64_t{16} * 512, std::int64_t{24} * 512}) {
    const double belady = replay_ideal(trace, capacity).token_hit_ratio();
    for (const Eviction eviction :
         {Eviction::kLru, Eviction::kS3Fifo, Eviction::kArc, Eviction::kAdaptive}) {
      const auto replay = Replay::create(capacity, 512, eviction).value();
      for (const TraceRequest& request : trace) ASSERT_TRUE(replay->add(request).ok());
      EXPECT_EQ(replay->result().wrong_hits, 0);
      EXPECT_LE(replay->result().token_hit_ratio(), belady + 1e-9);
    }
  }
}

}  // namespace
}  // namespace kvcache::runner
