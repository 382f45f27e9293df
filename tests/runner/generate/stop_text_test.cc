#include "runner/generate/stop_text.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace kvcache::runner {
namespace {

// What comes out of `pieces`, in order, and at the end.
struct Shown {
  std::vector<std::string> pushed;
  std::string all;
  bool found = false;
};

Shown run(std::vector<std::string> stops, const std::vector<std::string>& pieces) {
  StopText stop(std::move(stops));
  Shown shown;
  for (const std::string& piece : pieces) {
    shown.pushed.push_back(stop.push(piece));
    shown.all += shown.pushed.back();
  }
  shown.all += stop.flush();
  shown.found = stop.found();
  return shown;
}

using Pieces = std::vector<std::string>;

TEST(StopTextTest, WithoutStopsEverythingPassesAtOnce) {
  EXPECT_EQ(run({}, {"a", "", "bc"}).pushed, (Pieces{"a", "", "bc"}));
  EXPECT_EQ(run({""}, {"a", "b"}).pushed, (Pieces{"a", "b"}));
}

TEST(StopTextTest, CutsBeforeAStopInsideAPiece) {
  const Shown shown = run({"END"}, {"one END two", "three"});
  EXPECT_EQ(shown.pushed, (Pieces{"one ", ""}));
  EXPECT_EQ(shown.all, "one ");
  EXPECT_TRUE(shown.found);
}

TEST(StopTextTest, FindsAStopThatSpansPieces) {
  const Shown shown = run({"END"}, {"one E", "N", "D two"});
  EXPECT_EQ(shown.pushed, (Pieces{"one ", "", ""}));
  EXPECT_EQ(shown.all, "one ");
  EXPECT_TRUE(shown.found);
}

TEST(StopTextTest, HoldsBackAPartialMatchAndThenShowsIt) {
  const Shown shown = run({"END"}, {"one E", "N", "X"});
  EXPECT_EQ(shown.pushed, (Pieces{"one ", "", "ENX"}));
  EXPECT_FALSE(shown.found);
}

TEST(StopTextTest, HoldsOnlyWhatMayStillBecomeAStop) {
  EXPECT_EQ(run({"aab"}, {"aaa"}).pushed, (Pieces{"a"}));
  EXPECT_EQ(run({"aab"}, {"aaa", "b"}).all, "a");
}

TEST(StopTextTest, ShowsWhatWasHeldWhenTheTextEnds) {
  const Shown shown = run({"END"}, {"the EN"});
  EXPECT_EQ(shown.all, "the EN");
  EXPECT_FALSE(shown.found);
}

TEST(StopTextTest, TheEarliestOfSeveralCuts) {
  EXPECT_EQ(run({"two", "one"}, {"zero one two"}).all, "zero ");
  EXPECT_EQ(run({"one two", "one"}, {"zero one two"}).all, "zero ");
  EXPECT_EQ(run({"\n\n", "."}, {"a\n", "b."}).all, "a\nb");
}

TEST(StopTextTest, AnySplitShowsTheSame) {
  const std::string text = "abababcabd";
  for (const char* stop : {"abc", "bab", "abd", "dd", "cab"}) {
    const Shown whole = run({stop}, {text});
    for (std::size_t size = 1; size < text.size(); ++size) {
      Pieces pieces;
      for (std::size_t at = 0; at < text.size(); at += size)
        pieces.push_back(text.substr(at, size));
      const Shown cut = run({stop}, pieces);
      EXPECT_EQ(cut.all, whole.all) << stop << " in pieces of " << size;
      EXPECT_EQ(cut.found, whole.found);
    }
  }
}

}  // namespace
}  // namespace kvcache::runner
