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

// Races do not depend on the width of vectors: there one backend is enough.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// `few` where tests are slow.
template <typename T>
constexpr T unless_slow(T many, T few) {
  return kSlow ? few : many;
}

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_SUPPORT_SLOW_H_
