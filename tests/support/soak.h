// What the random tests of paged caches share: operations by number, any storage, any life, and the
// loop that runs them for as long as is wanted.
#ifndef KVCACHE_TESTS_SUPPORT_SOAK_H_
#define KVCACHE_TESTS_SUPPORT_SOAK_H_

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ostream>
#include <sstream>
#include <tuple>
#include <vector>

#include "kvcache/layer_spec.h"
#include "support/slow.h"

namespace kvcache::testing {

// What to do, and three numbers that say to whom and how much.
struct Op {
  std::int64_t kind = 0, a = 0, b = 0, c = 0;
};
using Ops = std::vector<Op>;

inline std::ostream& operator<<(std::ostream& out, const Op& op) {
  return out << "{" << op.kind << ", " << op.a << ", " << op.b << ", " << op.c << "}";
}

inline Ops any_ops() {
  const auto number = [] { return rc::gen::inRange<std::int64_t>(0, 64); };
  const auto op =
      rc::gen::map(rc::gen::tuple(number(), number(), number(), number()), [](const auto& n) {
        return Op{std::get<0>(n), std::get<1>(n), std::get<2>(n), std::get<3>(n)};
      });
  return *rc::gen::container<Ops>(op);
}

// Any storage types, and K and V of any of the sizes that element() knows.
inline LayerSpec any_spec() {
  const auto dtype = [] { return rc::gen::element(DType::kF32, DType::kF16, DType::kBF16); };
  return LayerSpec::kv(2, *rc::gen::inRange<std::int64_t>(1, 3),
                       *rc::gen::inRange<std::int64_t>(1, 3), plain(*dtype()), plain(*dtype()));
}

// All tokens, a window with or without sinks, or chunks.
inline Life any_life() {
  Life life;
  const int kind = *rc::gen::inRange(0, 4);
  if (kind == 1 || kind == 2) life.window = *rc::gen::inRange<std::int64_t>(1, 9);
  if (kind == 2) life.sink_tokens = *rc::gen::inRange<std::int32_t>(1, 6);
  if (kind == 3) life.chunk = *rc::gen::inRange<std::int64_t>(1, 9);
  return life;
}

// Tokens that element() makes exact rows of, in the storage of both K and V.
inline double largest_token(const LayerSpec& spec) {
  const bool wide =
      spec.key().format.dtype == DType::kF32 && spec.value().format.dtype == DType::kF32;
  return wide ? 1 << 20 : 63;
}

// Runs `property`, which returns how many operations it did, on random numbers: for a moment, or by
// KVCACHE_SOAK_SECONDS and KVCACHE_SOAK_OPERATIONS at least so long and so many, new ones every
// time, whose number is then printed.
template <typename Property>
void soak(const char* name, Property property) {
  const char* const text = std::getenv("KVCACHE_SOAK_SECONDS");
  const char* const wanted = std::getenv("KVCACHE_SOAK_OPERATIONS");
  const bool asked = text != nullptr || wanted != nullptr;
  const double seconds = text != nullptr ? std::atof(text) : asked ? 0 : 0.2;
  const long long least = wanted != nullptr ? std::atoll(wanted) : 0;
  const auto begin = std::chrono::steady_clock::now();
  const auto spent = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  rc::detail::TestMetadata metadata;
  metadata.id = metadata.description = name;
  rc::detail::TestParams params = rc::detail::configuration().testParams;
  params.maxSuccess = unless_slow(20, 5);
  long long operations = 0;
  do {
    ++params.seed;
    const auto result = rc::detail::checkTestable(
        [&] { operations += static_cast<long long>(property()); }, metadata, params);
    std::ostringstream message;
    rc::detail::printResultMessage(result, message);
    ASSERT_TRUE(result.template is<rc::detail::SuccessResult>()) << message.str();
  } while (spent() < seconds || operations < least);
  if (asked) std::printf("%s: %lld operations, 0 differences\n", name, operations);
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_SOAK_H_
