#include "cache/prefix/adaptive.h"

#include <bit>
#include <cmath>

namespace kvcache::internal {
namespace {

// Ages are entries touched since; the first step, of which later ones are multiples.
constexpr int kFirstAgeBits = 6;
constexpr double kFirstAge = 1 << kFirstAgeBits;
// Entries that are imagined never to be used, at each age: few observations prove little.
constexpr double kDoubt = 28;
// What is kept of the counts at each look.
constexpr double kMemory = 0.87;
// A text that was gone on with more often than this is shared by many, and says nothing about what
// comes behind it.
constexpr int kMostTurns = 22;
constexpr std::int64_t kLeastLook = 2000;

// How far behind lru: a share of all uses, and a few more from the start.
constexpr double kRegret = 0.0004;
constexpr double kSlack = 40;
// What lru would hold and is gone: a share of all entries, or a few, and more for each use ahead of
// lru.
constexpr double kLeastGone = 0.0125;
constexpr double kGonePerLead = 42;
constexpr double kFewGone = 250;

constexpr int kUsesBits = 8;

double begin_of(int age) noexcept {
  return age == 0 ? 0 : kFirstAge * std::exp2(static_cast<double>(age - 1) / 2);
}

}  // namespace

void AdaptivePolicy::begin(std::int32_t num_entries) noexcept {
  const auto count = static_cast<std::size_t>(num_entries);
  entries_ = reinterpret_cast<Entry*>(memory_);
  auto* const ghosts = reinterpret_cast<Ghost*>(memory_ + count * sizeof(Entry));
  ghosts_.begin(ghosts, reinterpret_cast<std::int32_t*>(ghosts + kGhosts * count));
  // Before anything is learned the oldest is worth the least.
  for (auto& ages : worth_) {
    for (int age = 0; age < kAges; ++age) ages[age] = 1 / (begin_of(age) + 1);
  }
}

void AdaptivePolicy::grow(std::int32_t entries) noexcept {
  capacity_ = entries;
  lru_.grow(entries);
  ghosts_.grow(static_cast<std::int32_t>(
      std::min<std::int64_t>(std::int64_t{kGhosts} * entries, INT32_MAX)));
}

int AdaptivePolicy::age_of(std::uint32_t last) const noexcept {
  const std::uint64_t age = static_cast<std::uint32_t>(now_) - last;
  if (age >> kFirstAgeBits == 0) return 0;
  const int bits = static_cast<int>(std::bit_width(age)) - 1;
  const int half = age * age >> (2 * bits + 1) != 0 ? 1 : 0;  // beyond the root of 2
  return std::min(kAges - 1, 1 + 2 * (bits - kFirstAgeBits) + half);
}

void AdaptivePolicy::classify(std::int32_t entry) noexcept {
  Entry& mine = entries_[entry];
  mine.last = static_cast<std::uint32_t>(now_);
  mine.in_class = mine.is_used ? 2 : mine.uses > 0 ? 1 : 0;
  lru_.add(now_);
}

void AdaptivePolicy::inserted(std::int32_t entry, std::int32_t parent, std::uint64_t key,
                              std::int64_t) noexcept {
  ++now_;
  Entry& mine = entries_[entry];
  mine = {};
  mine.key = key;
  if (const std::int32_t ghost = ghosts_.find(key); ghost >= 0) {
    const Ghost& was = ghosts_.all()[ghost];
    const int in_class = was.note >> kUsesBits;
    mine.uses = static_cast<std::uint8_t>(std::min(was.note % (1 << kUsesBits) + 1, 255));
    mine.is_used = true;
    ++used_[in_class][age_of(was.when)];
    if (lru_.holds(time_of(was.when))) --lead_;
    forget(ghost);
  } else if (parent >= 0 && entries_[parent].uses <= kMostTurns) {
    mine.uses = entries_[parent].uses;
  }
  classify(entry);
  queues_[mine.in_class].push_newest(entries_, entry);
  if (now_ >= next_look_) learn();
}

void AdaptivePolicy::used(std::int32_t entry) noexcept {
  ++now_;
  Entry& mine = entries_[entry];
  ++used_[mine.in_class][age_of(mine.last)];
  if (!lru_.holds(time_of(mine.last))) ++lead_;
  lru_.remove(time_of(mine.last), false);
  if (!mine.aside) queues_[mine.in_class].erase(entries_, entry);
  if (mine.uses < 255) ++mine.uses;
  mine.is_used = true;
  classify(entry);
  if (!mine.aside) queues_[mine.in_class].push_newest(entries_, entry);
  if (now_ >= next_look_) learn();
}

void AdaptivePolicy::released(std::int32_t entry) noexcept {
  Entry& mine = entries_[entry];
  lru_.remove(time_of(mine.last), false);
  lru_.add(now_);
  mine.last = static_cast<std::uint32_t>(now_);
  if (mine.aside) return;
  queues_[mine.in_class].erase(entries_, entry);
  queues_[mine.in_class].push_newest(entries_, entry);
}

void AdaptivePolicy::removed(std::int32_t entry, bool evicted) noexcept {
  const Entry& mine = entries_[entry];
  if (!mine.aside) queues_[mine.in_class].erase(entries_, entry);
  if (!evicted || ghosts_.find(mine.key) >= 0) {
    lru_.remove(time_of(mine.last), false);
    return;
  }
  if (ghosts_.is_full()) {
    const std::int32_t oldest = gone_.oldest();
    const Ghost& ghost = ghosts_.all()[oldest];
    ++ended_[ghost.note >> kUsesBits][age_of(ghost.when)];
    forget(oldest);
  }
  const std::int32_t ghost = ghosts_.add(mine.key);
  ghosts_.all()[ghost].note = mine.in_class << kUsesBits | mine.uses;
  ghosts_.all()[ghost].when = mine.last;
  gone_.push_newest(ghosts_.all(), ghost);
  lru_.count_ghost(time_of(mine.last), 1);
}

void AdaptivePolicy::forget(std::int32_t ghost) noexcept {
  lru_.remove(time_of(ghosts_.all()[ghost].when), true);
  gone_.erase(ghosts_.all(), ghost);
  ghosts_.remove(ghost);
}

std::int32_t AdaptivePolicy::victim() noexcept {
  std::int32_t best = -1;
  const auto age = [&](std::int32_t entry) {
    return static_cast<std::uint32_t>(now_) - entries_[entry].last;
  };
  for (const EntryQueue<Entry>& queue : queues_) {
    const std::int32_t entry = queue.oldest();
    if (entry >= 0 && (best < 0 || age(entry) > age(best))) best = entry;
  }
  // So far it is what lru would do.
  const auto lead = static_cast<double>(lead_);
  if (best < 0 || lead < -kRegret * static_cast<double>(now_) - kSlack) return best;
  if (static_cast<double>(lru_.ghosts()) >=
      std::max(kFewGone, kLeastGone * static_cast<double>(capacity_)) +
          kGonePerLead * std::max(0.0, lead)) {
    return best;
  }
  double least = worth_of(best);
  for (const EntryQueue<Entry>& queue : queues_) {
    const std::int32_t entry = queue.oldest();
    if (entry < 0 || entry == best) continue;
    if (const double worth = worth_of(entry); worth < least) {
      best = entry;
      least = worth;
    }
  }
  return best;
}

void AdaptivePolicy::learn() noexcept {
  next_look_ = now_ + std::max(kLeastLook, capacity_ / 8);
  for (int c = 0; c < kClasses; ++c) {
    double chance[kAges];  // of an entry that has come to an age to be used at it
    double reached = 0;
    for (int age = kAges; age-- > 0;) {
      reached += used_[c][age] + ended_[c][age];
      chance[age] = std::min(0.999, (used_[c][age] + 0.01) / (reached + kDoubt));
    }
    for (int age = 0; age < kAges; ++age) {
      double alive = 1, hits = 0, time = 0, best = 0;
      for (int later = age; later < kAges; ++later) {
        hits += alive * chance[later];
        time += alive * (1 - chance[later] / 2) * (begin_of(later + 1) - begin_of(later));
        alive *= 1 - chance[later];
        best = std::max(best, hits / time);
      }
      worth_[c][age] = best;
    }
    for (int age = 0; age < kAges; ++age) {
      used_[c][age] *= kMemory;
      ended_[c][age] *= kMemory;
    }
  }
}

void AdaptivePolicy::set_aside(std::int32_t entry) noexcept {
  queues_[entries_[entry].in_class].erase(entries_, entry);
  entries_[entry].aside = true;
}

void AdaptivePolicy::put_back(std::int32_t entry) noexcept {
  entries_[entry].aside = false;
  queues_[entries_[entry].in_class].push_oldest(entries_, entry);
}

}  // namespace kvcache::internal
