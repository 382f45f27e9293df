// Where tests take five to fifty times as long: under a sanitizer, and on a processor that is
// emulated. There they go through fewer cases of a kind.
#ifndef KVCACHE_TESTS_SUPPORT_SLOW_H_
#define KVCACHE_TESTS_SUPPORT_SLOW_H_

namespace kvcache::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(KVC_EMULATED)
inline constexpr bool kSlow = true;
#else
inline constexpr bool kSlow = false;
#endif

// Where the fastest backend is enough: races do not depend on the width of vectors, and what an
// emulated processor is for is its own.
#if defined(__SANITIZE_THREAD__) || defined(KVC_EMULATED)
inline constexpr bool kOneBackend = true;
#else
inline constexpr bool kOneBackend = false;
#endif

// `few` where tests are slow.
template <typename T>
constexpr T unless_slow(T many, T few) {
  return kSlow ? few : many;
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_SLOW_H_
