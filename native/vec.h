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
  static constexpr double least = 0x1p-60;  // times 2^-shift it is normal still
};

template <>
struct Simd<double> {
  using bits = int64_t;
  static constexpr int mantissa = 52, bias = 1023, shift = 512;
  static constexpr double lowest = -1062.0;
  static constexpr double least = 0x1p-508;
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
inline vec<F> splat(F x) {
  return x - vec<F>{};  // x - 0 in every lane: keeps the sign of zero, infinities and NaN
}

// a > b ? a : b and a < b ? a : b, as x86 defines its instructions: b where either is NaN.
inline vec<float> larger(vec<float> a, vec<float> b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

inline vec<float> smaller(vec<float> a, vec<float> b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

inline vec<double> larger(vec<double> a, vec<double> b) {
#if defined(__AVX512F__)
  return _mm512_max_pd(a, b);
#elif defined(__AVX2__)
  return _mm256_max_pd(a, b);
#else
  return a > b ? a : b;
#endif
}

inline vec<double> smaller(vec<double> a, vec<double> b) {
#if defined(__AVX512F__)
  return _mm512_min_pd(a, b);
#elif defined(__AVX2__)
  return _mm256_min_pd(a, b);
#else
  return a < b ? a : b;
#endif
}

// As many doubles, or 64-bit integers, as a vector of F has lanes: one native vector for doubles, two for floats.
template <class V, int n>
struct Parts {
  V part[n];

  auto operator[](int lane) const {
    constexpr int w = sizeof(V) / sizeof(part[0][0]);
    return part[lane / w][lane % w];
  }
};

template <class F>
using vec_double = Parts<vec<double>, Vec<F>::width / Vec<double>::width>;
template <class F>
using mask_double = Parts<mask<double>, Vec<F>::width / Vec<double>::width>;

template <class Function, class V, int n, class... Others>
LASTLAYER_INLINE inline auto each_part(const Function& f, const Parts<V, n>& a, const Others&... others) {
  Parts<decltype(f(a.part[0], others.part[0]...)), n> result;
  for (int i = 0; i < n; ++i) result.part[i] = f(a.part[i], others.part[i]...);
  return result;
}

#define LASTLAYER_OPERATOR(sign)                                                                                      \
  template <class V, int n>                                                                                           \
  inline auto operator sign(const Parts<V, n>& a, const Parts<V, n>& b) {                                             \
    return each_part([](V x, V y) { return x sign y; }, a, b);                                                        \
  }                                                                                                                   \
  template <class V, int n>                                                                                           \
  inline auto operator sign(const Parts<V, n>& a, decltype(V{}[0]) b) {                                               \
    return each_part([b](V x) { return x sign b; }, a);                                                               \
  }                                                                                                                   \
  template <class V, int n>                                                                                           \
  inline auto operator sign(decltype(V{}[0]) a, const Parts<V, n>& b) {                                               \
    return each_part([a](V y) { return a sign y; }, b);                                                               \
  }
LASTLAYER_OPERATOR(+)
LASTLAYER_OPERATOR(-)
LASTLAYER_OPERATOR(*)
LASTLAYER_OPERATOR(/)
LASTLAYER_OPERATOR(&)
LASTLAYER_OPERATOR(!=)
LASTLAYER_OPERATOR(<)
LASTLAYER_OPERATOR(>=)
#undef LASTLAYER_OPERATOR

template <class V, int n, class Other>
inline Parts<V, n>& operator+=(Parts<V, n>& a, const Other& b) { return a = a + b; }
template <class V, int n, class Other>
inline Parts<V, n>& operator*=(Parts<V, n>& a, const Other& b) { return a = a * b; }

template <class M, class V, int n>
inline Parts<V, n> select(const Parts<M, n>& which, const Parts<V, n>& a, const Parts<V, n>& b) {
  return each_part([](M m, V x, V y) { return m ? x : y; }, which, a, b);
}

template <class V, size_t... lane>
inline auto lanes_at(V v, V w, std::index_sequence<lane...>) { return __builtin_shufflevector(v, w, lane...); }

template <size_t first, size_t... lane>
constexpr auto shifted(std::index_sequence<lane...>) { return std::index_sequence<(first + lane)...>{}; }

template <class F>
inline vec_double<F> to_double(vec<F> v) {
  if constexpr (std::is_same_v<F, double>) {
    return {v};
  } else {
#if defined(__AVX512F__)
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
#elif defined(__AVX2__)
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
#endif
    constexpr auto half = std::make_index_sequence<Vec<F>::width / 2>{};
    return {__builtin_convertvector(lanes_at(v, v, half), vec<double>),
            __builtin_convertvector(lanes_at(v, v, shifted<Vec<F>::width / 2>(half)), vec<double>)};
  }
}

template <class F>
struct Half {
  typedef F type __attribute__((vector_size(LASTLAYER_BYTES / 2)));
  typedef typename Simd<F>::bits mask __attribute__((vector_size(LASTLAYER_BYTES / 2)));
};

template <class F>
inline vec<F> to_narrow(const vec_double<F>& v) {
  if constexpr (std::is_same_v<F, double>)
    return v.part[0];
  else
#if defined(__AVX512F__)
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(v.part[0])), _mm512_cvtpd_ps(v.part[1]), 1);
#elif defined(__AVX2__)
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(v.part[0])), _mm256_cvtpd_ps(v.part[1]), 1);
#else
    return lanes_at(__builtin_convertvector(v.part[0], typename Half<F>::type),
                    __builtin_convertvector(v.part[1], typename Half<F>::type), std::make_index_sequence<Vec<F>::width>{});
#endif
}

template <class F>
inline mask<F> to_narrow(const mask_double<F>& v) {
  if constexpr (std::is_same_v<F, double>)
    return v.part[0];
  else
    return lanes_at(__builtin_convertvector(v.part[0], typename Half<F>::mask),
                    __builtin_convertvector(v.part[1], typename Half<F>::mask), std::make_index_sequence<Vec<F>::width>{});
}

// Joins the lanes of a vector two and two.
template <int width, class V, class Join>
inline auto reduce(V v, const Join& join) {
  if constexpr (width == 1) {
    return v[0];
  } else {
    constexpr auto half = std::make_index_sequence<width / 2>{};
    return reduce<width / 2>(join(lanes_at(v, v, half), lanes_at(v, v, shifted<width / 2>(half))), join);
  }
}

template <class F>
LASTLAYER_INLINE inline double sum_lanes(const vec_double<F>& v) {
  vec<double> sum = v.part[0];
  if constexpr (!std::is_same_v<F, double>) sum += v.part[1];
  return reduce<Vec<double>::width>(sum, [](auto a, auto b) { return a + b; });
}

// The sum of n vectors, in pairs of pairs.
template <int n, class F>
LASTLAYER_INLINE inline vec<F> total_of(const vec<F>* v) {
  if constexpr (n == 1)
    return v[0];
  else
    return total_of<n / 2, F>(v) + total_of<n / 2, F>(v + n / 2);
}

template <class F>
inline F maximum(vec<F> v) {
  return reduce<Vec<F>::width>(v, [](auto a, auto b) { return a > b ? a : b; });
}

// One bit per lane.
inline unsigned lanes_of(mask<float> m) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(m));
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(m));
#else
  return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8);
#endif
}

inline unsigned lanes_of(mask<double> m) {
#if defined(__AVX512F__)
  return _mm512_movepi64_mask(reinterpret_cast<__m512i>(m));
#elif defined(__AVX2__)
  return _mm256_movemask_pd(reinterpret_cast<__m256d>(m));
#else
  return (m[0] & 1) | (m[1] & 2);
#endif
}

template <class M>
inline bool any(M m) { return lanes_of(m) != 0; }

// f(lane) for each lane below count, 0 in the others: by way of memory, which is faster than lane by lane.
template <class F, class Function>
LASTLAYER_INLINE inline vec_double<F> by_lane(int count, const Function& f) {
  constexpr int w = Vec<F>::width;
  alignas(64) double lanes[w];
  if (count == w)
    for (int k = 0; k < w; ++k) lanes[k] = f(k);
  else
    for (int k = 0; k < w; ++k) lanes[k] = k < count ? f(k) : 0;
  vec_double<F> v;
  std::memcpy(&v, lanes, sizeof v);
  return v;
}

template <class F>
LASTLAYER_INLINE inline void to_memory(double* to, int count, const vec_double<F>& v) {
  std::memcpy(to, &v, count == Vec<F>::width ? sizeof v : count * sizeof(double));
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

// Calls a template once per storage type: call(a value of that type).
template <class Call>
void by_type(DType type, const Call& call) {
  switch (type) {
    case DType::float32: return call(float{});
    case DType::float64: return call(double{});
    case DType::float16: return call(half{});
    case DType::bfloat16: return call(bfloat{});
  }
}

// ---- vectors of logits, from and to memory -------------------------------------------------------------------------

template <class T>
using Statistic = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class F>
struct Halves {  // as many 16-bit numbers as a vector of F has lanes, and the same in 32 bits
  typedef uint16_t stored __attribute__((vector_size(Vec<F>::width * 2)));
  typedef uint32_t wide __attribute__((vector_size(Vec<F>::width * 4)));
};

template <class T>
inline vec<Statistic<T>> load(const T* p) {
  using F = Statistic<T>;
  [[maybe_unused]] constexpr int w = Vec<F>::width;
  vec<F> v;
  if constexpr (std::is_same_v<T, F>) {
    std::memcpy(&v, p, sizeof v);
  } else if constexpr (std::is_same_v<T, bfloat>) {
    using stored = typename Halves<F>::stored;
    using wide = typename Halves<F>::wide;
    stored bits;
    std::memcpy(&bits, p, sizeof bits);
    v = vec<F>(__builtin_convertvector(bits, wide) << 16);
  } else {
#if defined(__AVX512F__)
    v = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    for (int i = 0; i < w; ++i) v[i] = widen(p[i]);
#endif
  }
  return v;
}

template <class T>
inline void store(T* p, vec<Statistic<T>> v) {
  using F = Statistic<T>;
  [[maybe_unused]] constexpr int w = Vec<F>::width;
  if constexpr (std::is_same_v<T, F>) {
    std::memcpy(p, &v, sizeof v);
  } else if constexpr (std::is_same_v<T, bfloat>) {
    using stored = typename Halves<F>::stored;
    using wide = typename Halves<F>::wide;
    const wide bits = wide(v), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40;
    const stored result = __builtin_convertvector(v != v ? nan : rounded, stored);
    std::memcpy(p, &result, sizeof result);
  } else {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 0));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0));
#else
    for (int i = 0; i < w; ++i) p[i] = narrow<T>(v[i]);
#endif
  }
}

// Around the caches; p lies at a multiple of the vector's size in T.
template <class T>
inline void store_past_cache(T* p, vec<Statistic<T>> v) {
  alignas(64) T kept[Vec<Statistic<T>>::width];
  store(kept, v);
#if defined(__SSE2__)
  constexpr int bytes = sizeof kept;
#if defined(__AVX512F__)
  if constexpr (bytes == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), _mm512_load_si512(kept));
#endif
#if defined(__AVX2__)
  if constexpr (bytes == 32)
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_load_si256(reinterpret_cast<const __m256i*>(kept)));
#endif
  if constexpr (bytes == 16)
    return _mm_stream_si128(reinterpret_cast<__m128i*>(p), _mm_load_si128(reinterpret_cast<const __m128i*>(kept)));
#endif
  std::memcpy(p, kept, sizeof kept);
}

inline void finish_stores() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }

// n < width elements at a stride; the lanes beyond them are filled with `rest`.
template <class T>
inline vec<Statistic<T>> load_some(const T* p, int64_t stride, int64_t n, Statistic<T> rest) {
  using F = Statistic<T>;
#if defined(__AVX512F__)
  if (stride == 1) {
    const unsigned some = (1u << n) - 1;
    if constexpr (std::is_same_v<T, float>) return _mm512_mask_loadu_ps(splat(rest), some, p);
    if constexpr (std::is_same_v<T, double>) return _mm512_mask_loadu_pd(splat(rest), some, p);
  }
#endif
  F lanes[Vec<F>::width];
  for (int i = 0; i < Vec<F>::width; ++i) lanes[i] = i < n ? widen(p[i * stride]) : rest;
  return load(lanes);
}

template <class T>
inline void store_some(T* p, int64_t stride, int64_t n, vec<Statistic<T>> v) {
  using F = Statistic<T>;
#if defined(__AVX512F__)
  if (stride == 1) {
    const unsigned some = (1u << n) - 1;
    if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, some, v);
    if constexpr (std::is_same_v<T, double>) return _mm512_mask_storeu_pd(p, some, v);
  }
#endif
  F lanes[Vec<F>::width];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i * stride] = narrow<T>(lanes[i]);
}
