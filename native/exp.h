// exp and log1p on vectors. Included by rows.cpp only, inside its own namespace, after vec.h.
//
// e^z = 2^k e^r with k = round(z / ln 2) and |r| <= ln(2)/2. ln 2 is split so that k * ln2_high is exact, fused or not.
// e^r = 1 + r + r^2 Q(r). log f = 2 artanh(s) with s = (f - 1)/(f + 1). Q, P and their truncation errors come from
// native/polynomials.py; docs/mathematics.md derives the bounds.

template <class F>
struct ExpTable;

template <>
struct ExpTable<float> {
  static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f, log2e = 0x1.715476p+0f;
  static constexpr float q[] = {0.0001989099082f, 0.001393365f,  0.008333310925f,
                                0.04166646493f,   0.1666666668f, 0.5000000013f};
};

template <>
struct ExpTable<double> {
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33, log2e = 0x1.71547652b82fep+0;
  static constexpr double q[] = {2.09146869680868772e-9, 2.51052170047207452e-8, 2.75572736431102953e-7,
                                 2.75572554002064244e-6, 0.0000248015873255477412, 0.000198412698748206253,
                                 0.00138888888888837483, 0.00833333333332613513, 0.0416666666666666698,
                                 0.16666666666666671, 0.5};
};

// Q(r) in Horner's rule over pairs: half the latency of the plain one, no more operations.
template <class F>
LASTLAYER_INLINE inline vec<F> polynomial(const F* c, int n, vec<F> r, vec<F> r2) {
  vec<F> q = n % 2 ? splat(c[0]) : r * c[0] + c[1];
  for (int i = 2 - n % 2; i < n; i += 2) q = q * r2 + (r * c[i] + c[i + 1]);
  return q;
}

// 2^shift e^(z - m) for z <= m, m finite; 0 below the lowest normal result, -inf included; NaN stays NaN. The factor keeps
// terms above the subnormal range, where adding them up would lose their digits. The rounding error of z - m (Knuth's
// TwoSum: exact in any order of magnitude) is put back. In place, n vectors step by step: each waits for the step before.
template <int n, class F>
LASTLAYER_INLINE inline void to_terms(vec<F>* z, vec<F> m) {
  using S = Simd<F>;
  using T = ExpTable<F>;
  // Adding 1.5 * 2^mantissa rounds to an integer and leaves it, biased, in the low bits: shifted, they are a power of 2.
  constexpr F magic = F(1.5) * static_cast<F>(int64_t{1} << S::mantissa) + (S::bias + S::shift);
  vec<F> x[n], low[n], t[n], r[n], r2[n], q[n];
#define LASTLAYER_EACH _Pragma("GCC unroll 8") for (int i = 0; i < n; ++i)
  LASTLAYER_EACH x[i] = z[i] - m;
  LASTLAYER_EACH t[i] = x[i] * T::log2e + magic;
  LASTLAYER_EACH low[i] = x[i] - z[i];
  LASTLAYER_EACH r[i] = t[i] - magic;
  LASTLAYER_EACH low[i] = (z[i] - (x[i] - low[i])) - (m + low[i]);
  LASTLAYER_EACH r[i] = ((x[i] - r[i] * T::ln2_high) - r[i] * T::ln2_low) + low[i];
  LASTLAYER_EACH r2[i] = r[i] * r[i];
  LASTLAYER_EACH q[i] = polynomial(T::q, sizeof(T::q) / sizeof(F), r[i], r2[i]);
  LASTLAYER_EACH t[i] = vec<F>(mask<F>(t[i]) << S::mantissa);
  LASTLAYER_EACH q[i] = (r[i] + r2[i] * q[i]) * t[i] + t[i];
  LASTLAYER_EACH z[i] = x[i] < S::lowest ? vec<F>{} : q[i];
#undef LASTLAYER_EACH
}

template <class F>
LASTLAYER_INLINE inline vec<F> term(vec<F> z, vec<F> m) {
  to_terms<1, F>(&z, m);
  return z;
}

// m, or 0 where it is not finite: what `term` can be measured from.
template <class F>
LASTLAYER_INLINE inline vec<F> finite_or_0(vec<F> m) {
  const vec<F> zero{};
  return m - m == zero ? m : zero;
}

// log(1 + x) for x >= 0, in doubles; NaN stays NaN. 1 + x = 2^k f with f in [sqrt(1/2), sqrt(2)); what rounding 1 + x
// lost is put back.
LASTLAYER_INLINE inline vec<double> log1p(vec<double> x) {
  using T = ExpTable<double>;
  constexpr double p[] = {0.14616585424888622, 0.153317106182107716, 0.18182889455674946, 0.22222211130259877,
                          0.285714286260032687, 0.399999999998994432, 0.666666666666666969};
  constexpr int64_t root = 0x3fe6a09e667f3bcd, one = 0x3ff0000000000000;  // sqrt(1/2), 1
  const vec<double> u = 1.0 + x;
  const mask<double> exponent = (mask<double>(u) - root) >> 52, power = exponent << 52;
  const vec<double> f = vec<double>(mask<double>(u) - power), g = f - 1.0, k = __builtin_convertvector(exponent, vec<double>);
  const vec<double> s = g / (2.0 + g), t = s * s;
  const vec<double> q = polynomial(p, sizeof p / sizeof *p, t, t * t);
  // What is lost is below an ulp of u. 1/f = 1 - g + g^2 - ... is exact where it matters, at g = 0.
  const vec<double> lost = (x - (u - 1.0)) * ((1.0 - g * (1.0 - g)) * vec<double>(one - power));
  const vec<double> low = k * T::ln2_low + (lost - s * (g - t * q));
  return k * T::ln2_high + (g + low);
}
