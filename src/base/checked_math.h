// Integer arithmetic on sizes: int64 throughout, overflow reported instead of wrapped.
#ifndef KVCACHE_SRC_BASE_CHECKED_MATH_H_
#define KVCACHE_SRC_BASE_CHECKED_MATH_H_

#include <cstdint>
#include <initializer_list>

namespace kvcache::internal {

// *out = a + b. False, with *out unspecified, if that does not fit.
[[nodiscard]] inline bool checked_add(std::int64_t a, std::int64_t b, std::int64_t* out) noexcept {
  return !__builtin_add_overflow(a, b, out);
}

// *out = a * b. False, with *out unspecified, if that does not fit.
[[nodiscard]] inline bool checked_mul(std::int64_t a, std::int64_t b, std::int64_t* out) noexcept {
  return !__builtin_mul_overflow(a, b, out);
}

// *out = the product of `factors`, each >= 0; 0 as soon as one of them is 0, whatever the others.
// False, with *out unspecified, if a factor is negative or the product does not fit.
[[nodiscard]] inline bool checked_product(std::initializer_list<std::int64_t> factors,
                                          std::int64_t* out) noexcept {
  bool zero = false;
  for (std::int64_t factor : factors) {
    if (factor < 0) return false;
    zero = zero || factor == 0;
  }
  *out = zero ? 0 : 1;
  if (zero) return true;
  for (std::int64_t factor : factors) {
    if (!checked_mul(*out, factor, out)) return false;
  }
  return true;
}

// No byte count of ours passes this, so that sums of two never overflow.
inline constexpr std::int64_t kMaxBytes = std::int64_t{1} << 62;

// REQUIRES: a >= 0, b > 0.
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept {
  return a / b + (a % b != 0 ? 1 : 0);
}

// The multiples of `unit` next to a. REQUIRES: a >= 0, unit > 0, and the result fits.
constexpr std::int64_t round_up(std::int64_t a, std::int64_t unit) noexcept {
  return ceil_div(a, unit) * unit;
}
constexpr std::int64_t round_down(std::int64_t a, std::int64_t unit) noexcept {
  return a / unit * unit;
}

}  // namespace kvcache::internal

#endif  // KVCACHE_SRC_BASE_CHECKED_MATH_H_
