// exp on vectors. Included by rows.cpp only, inside its own namespace, after vec.h.
//
// e^x = 2^k e^r with k = round(x / ln 2) and |r| <= ln(2)/2. ln 2 is split so that k * ln2_high is exact, fused or not.
// e^r = 1 + r + r^2 Q(r); Q and its truncation error come from native/exp.py: 0.004 ulp (float), 0.002 ulp (double).

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

// z - m as a sum of two numbers: x rounded, low the rounding error (Knuth's TwoSum; exact in any order of magnitude).
template <class F>
inline void difference(vec<F> z, vec<F> m, vec<F>& x, vec<F>& low) {
  x = z - m;
  const vec<F> back = x - z;
  low = (z - (x - back)) - (m + back);
}

// e^(x + low) 2^shift for x <= 0, and 0 below the lowest normal result (-inf included); NaN stays NaN. The factor keeps
// every term above the subnormal range, where adding up terms would lose their digits.
template <class F>
inline vec<F> exp_scaled(vec<F> x, vec<F> low) {
  using S = Simd<F>;
  using T = ExpTable<F>;
  // Adding 1.5 * 2^mantissa rounds to an integer and leaves it, biased, in the low bits: shifted, they are 2^k.
  const F magic = F(1.5) * static_cast<F>(int64_t{1} << S::mantissa);
  const mask<F> gone = x < S::lowest;
  const vec<F> t = x * T::log2e + magic;
  const vec<F> k = t - magic;
  const vec<F> r = ((x - k * T::ln2_high) - k * T::ln2_low) + low;
  const mask<F> exponent = (mask<F>(t) + (S::bias + S::shift)) << S::mantissa;
  vec<F> q = r * T::q[0] + T::q[1];
  for (unsigned i = 2; i < sizeof(T::q) / sizeof(F); ++i) q = q * r + T::q[i];
  const vec<F> e = (r + r * r * q + F(1)) * vec<F>(exponent);
  return gone ? vec<F>{} : e;
}
