// exp, tanh and the largest lane, over the primitives of the header that includes this.

namespace kvcache::internal::KVC_SIMD {

// e^x for x <= 0 and NaN; below -87 it is 0 (no denormals). Relative error below 2e-7.
// x = n ln 2 + r with |r| <= ln 2 / 2; polynomial of Cephes' expf (Moshier), 2^n by the exponent.
// e^0 is exactly 1.
KVC_SIMD_FN F32 exp(F32 x) {
  const F32 shift = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F32 shifted = fma(x, set1(1.44269504088896341f), shift);
  const F32 n = shifted - shift;
  F32 r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F32 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + set1(1.0f);
  // The integer n stands in the low bits of `shifted`; a NaN stays in p.
  const F32 power = from_bits((bits_of(shifted) + set1_u32(127)) << 23);
  return x < set1(-87.0f) ? zero() : p * power;
}

KVC_SIMD_FN float exp1(float x) { return exp(set1(x))[0]; }

// Absolute error below 2e-7, relative error too: an odd polynomial (Cephes' tanhf) near 0, else
// (1 - e) / (1 + e) with e = exp(-2 |x|).
KVC_SIMD_FN F32 tanh(F32 x) {
  const U32 sign = bits_of(x) & set1_u32(0x80000000u);
  const F32 a = from_bits(bits_of(x) ^ sign);
  const F32 z = a * a;
  F32 p = set1(-5.70498872745e-3f);
  p = fma(p, z, set1(2.06390887954e-2f));
  p = fma(p, z, set1(-5.37397155531e-2f));
  p = fma(p, z, set1(1.33314422036e-1f));
  p = fma(p, z, set1(-3.33332819422e-1f));
  const F32 near = fma(p * z, a, a);
  const F32 e = exp(set1(-2.0f) * a);
  const F32 far = (set1(1.0f) - e) / (set1(1.0f) + e);
  const F32 result = a < set1(0.625f) ? near : far;
  return from_bits(bits_of(result) | sign);
}

KVC_SIMD_FN float reduce_max(F32 x) {
#if KVC_SIMD_BYTES >= 64
  x = max(x, upper<8>(x));
#endif
#if KVC_SIMD_BYTES >= 32
  x = max(x, upper<4>(x));
#endif
  x = max(x, upper<2>(x));
  x = max(x, upper<1>(x));
  return x[0];
}

}  // namespace kvcache::internal::KVC_SIMD
