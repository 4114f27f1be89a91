// SIMD vectors of the build's native width, as compiler vector extensions; conversions of the storage types.
// Included by rows.cpp only, inside its unnamed namespace: the linker must not share code between instruction sets.
#if defined(__AVX512F__)
#define LASTLAYER_BYTES 64
#elif defined(__AVX2__)
#define LASTLAYER_BYTES 32
#else
#define LASTLAYER_BYTES 16
#endif

template <class F>
struct Simd;

template <>
struct Simd<float> {
  using bits = int32_t;
  static constexpr int mantissa = 23, bias = 127, shift = 64;
  static constexpr float lowest = -131.0f;  // exp(lowest) 2^shift is the last normal number
};

template <>
struct Simd<double> {
  using bits = int64_t;
  static constexpr int mantissa = 52, bias = 1023, shift = 512;
  static constexpr double lowest = -1062.0;
};

template <class F>
struct Vec {
  typedef F type __attribute__((vector_size(LASTLAYER_BYTES)));
  typedef typename Simd<F>::bits mask __attribute__((vector_size(LASTLAYER_BYTES)));
  static constexpr int width = LASTLAYER_BYTES / sizeof(F);
};

template <class F>
using vec = typename Vec<F>::type;
template <class F>
using mask = typename Vec<F>::mask;

template <class F>
inline vec<F> load(const F* p) {
  vec<F> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class F>
inline void store(F* p, vec<F> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class F>
inline vec<F> splat(F x) {
  return x - vec<F>{};  // x - 0 in every lane: keeps the sign of zero, infinities and NaN
}

template <class F>
struct Doubles {
  typedef double type __attribute__((vector_size(Vec<F>::width * sizeof(double))));
};
template <class F>
using vec_double = typename Doubles<F>::type;

template <class F>
inline vec_double<F> to_double(vec<F> v) {
  return __builtin_convertvector(v, vec_double<F>);
}

template <class F>
inline double sum_lanes(vec_double<F> v) {
  double total = 0;
  for (int i = 0; i < Vec<F>::width; ++i) total += v[i];
  return total;
}

template <class F>
inline F maximum(vec<F> v) {
  F m = v[0];
  for (int i = 1; i < Vec<F>::width; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

template <class F>
inline bool any(mask<F> m) {
  typename Simd<F>::bits bits = 0;
  for (int i = 0; i < Vec<F>::width; ++i) bits |= m[i];
  return bits != 0;
}

// ---- storage types -------------------------------------------------------------------------------------------------

struct half { uint16_t bits; };
struct bfloat { uint16_t bits; };

inline float from_bits(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline uint32_t to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Scaling by 2^112 moves half's exponent range into float's, subnormal numbers included.
  return from_bits(to_bits(from_bits(rest << 13) * 0x1p112f) | sign);
#endif
}

template <class T>
inline T narrow(float x);
template <class T>
inline T narrow(double x);

template <>
inline float narrow<float>(float x) { return x; }
template <>
inline double narrow<double>(double x) { return x; }

template <>
inline bfloat narrow<bfloat>(float x) {  // to nearest, ties to even
  const uint32_t bits = to_bits(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
inline half narrow<half>(float x) {  // to nearest, ties to even
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (rest >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (rest < 0x38800000u)  // subnormal: adding 0.5 rounds at 2^-24
    return {static_cast<uint16_t>(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000u))};
  return {static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13))};
#endif
}

// Whole blocks: the compiler vectorises the loops for bfloat; half takes the F16C instructions where there are any.
template <class T, class F>
inline void widen_block(const T* from, int64_t stride, int n, F* to) {
  if (stride == 1) {
    int i = 0;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, half>)
      for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
#elif defined(__F16C__)
    if constexpr (std::is_same_v<T, half>)
      for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    for (; i < n; ++i) to[i] = widen(from[i]);
  } else {
    for (int i = 0; i < n; ++i) to[i] = widen(from[i * stride]);
  }
}

template <class T, class F>
inline void narrow_block(const F* from, int n, T* to, int64_t stride) {
  if (stride == 1) {
    int i = 0;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, half>)
      for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), 0));
#elif defined(__F16C__)
    if constexpr (std::is_same_v<T, half>)
      for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < n; ++i) to[i] = narrow<T>(from[i]);
  } else {
    for (int i = 0; i < n; ++i) to[i * stride] = narrow<T>(from[i]);
  }
}
