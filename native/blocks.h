// One pass over a row for a draw: of each block of classes its maximum, and the sum of exp((z - maximum) / T).
// Included by draws.cpp only, inside its own namespace.
//
// A block is read twice: for its maximum, and, from the nearest cache, for its terms. Sums are of eight vectors in F,
// then in doubles. Terms below e^lowest of the block's largest count as that, which no sum of floats shows.

// e^r = 1 + r (1 + r Q(r)), with a term less than exp.h has: what that loses, 0.2 units of 2^-24, no sum of floats shows.
template <class F>
struct Term : ExpTable<F> {
  static constexpr F lowest = F(-708);
};

template <>
struct Term<float> : ExpTable<float> {
  static constexpr float lowest = -87.0f, ln2 = 0x1.62e43p-1f;  // off by 2e-9: for 126 multiples, four units
  static constexpr float q[] = {0.001392618359f, 0.008363179053f, 0.04166655462f, 0.1666657699f, 0.5f};
};

#if defined(__FMA__) || defined(__AVX512F__)
constexpr bool fused = true;  // products are added before they are rounded: ln 2 need not be split
#else
constexpr bool fused = false;
#endif

#if defined(__AVX512F__)
// e^x = 2^(n/16) e^r with n = 16 k + i: 2^(i/16) from a table that fits a register, and |r| <= ln(2)/32 needs three terms.
// An entry has i << 19 taken off, which adding n << 19 puts back: one addition scales by 2^k.
template <int n>
LASTLAYER_INLINE inline void exponentials_by_table(vec<float>* x) {
  alignas(64) static constexpr uint32_t roots[] = {
      0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
      0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
  constexpr float magic = 0x1.8p23f, sixteenth = 0x1.62e43p-5f;
  const __m512 table = _mm512_load_ps(roots);
  vec<float> t[n], r[n], q[n];
#define LASTLAYER_EACH _Pragma("GCC unroll 8") for (int i = 0; i < n; ++i)
  LASTLAYER_EACH x[i] = larger(splat(Term<float>::lowest), x[i]);
  LASTLAYER_EACH t[i] = x[i] * (16 * ExpTable<float>::log2e) + magic;
  LASTLAYER_EACH r[i] = t[i] - magic;
  LASTLAYER_EACH r[i] = x[i] - r[i] * sixteenth;
  LASTLAYER_EACH q[i] = r[i] * 0.16666667f + 0.5f;
  LASTLAYER_EACH q[i] = q[i] * r[i] + 1.0f;
  LASTLAYER_EACH q[i] = q[i] * r[i] + 1.0f;
  LASTLAYER_EACH t[i] = vec<float>(mask<float>(_mm512_permutexvar_ps(_mm512_castps_si512(t[i]), table)) + (mask<float>(t[i]) << 19));
  LASTLAYER_EACH x[i] = q[i] * t[i];
#undef LASTLAYER_EACH
}
#endif

// e^x for x <= 0, at least e^lowest; NaN stays NaN. In place, n vectors step by step: each waits for the step before.
template <int n, class F>
LASTLAYER_INLINE inline void exponentials(vec<F>* x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<F, float>) return exponentials_by_table<n>(x);
#endif
  using S = Simd<F>;
  using T = Term<F>;
  constexpr F magic = F(1.5) * static_cast<F>(int64_t{1} << S::mantissa);
  constexpr int terms = sizeof(T::q) / sizeof(F);
  vec<F> t[n], r[n], q[n];
#define LASTLAYER_EACH _Pragma("GCC unroll 8") for (int i = 0; i < n; ++i)
  LASTLAYER_EACH x[i] = larger(splat(T::lowest), x[i]);
  LASTLAYER_EACH t[i] = x[i] * T::log2e + magic;
  LASTLAYER_EACH r[i] = t[i] - magic;
  if constexpr (fused && std::is_same_v<F, float>) {
    LASTLAYER_EACH r[i] = x[i] - r[i] * T::ln2;
  } else {
    LASTLAYER_EACH r[i] = (x[i] - r[i] * T::ln2_high) - r[i] * T::ln2_low;
  }
  LASTLAYER_EACH q[i] = r[i] * T::q[0] + T::q[1];
#pragma GCC unroll 16
  for (int k = 2; k < terms; ++k) {
    LASTLAYER_EACH q[i] = q[i] * r[i] + T::q[k];
  }
  LASTLAYER_EACH q[i] = q[i] * r[i] + F(1);
  LASTLAYER_EACH q[i] = q[i] * r[i] + F(1);
  LASTLAYER_EACH x[i] = vec<F>(mask<F>(q[i]) + (mask<F>(t[i]) << S::mantissa));
#undef LASTLAYER_EACH
}

// The maximum of n classes in each lane, NaN left aside: all different classes, where they are above -inf.
template <class F>
LASTLAYER_INLINE inline vec<F> lane_maxima(const F* z, int64_t n, vec<F>& lowest) {
  constexpr int w = Vec<F>::width;
  vec<F> m[4], low[2] = {splat(F(0)), splat(F(0))};
  for (auto& each : m) each = splat(static_cast<F>(-infinity));
  int64_t i = 0;
  for (; i + 4 * w <= n; i += 4 * w) {
    for (int k = 0; k < 4; ++k) {
      const vec<F> each = load(z + i + k * w);
      m[k] = larger(each, m[k]);
      low[k % 2] = smaller(each, low[k % 2]);
    }
  }
  for (; i < n; i += w) {
    const bool some = n - i < w;
    m[0] = larger(some ? load_some(z + i, 1, n - i, static_cast<F>(-infinity)) : load(z + i), m[0]);
    low[0] = smaller(some ? load_some(z + i, 1, n - i, F(0)) : load(z + i), low[0]);
  }
  lowest = smaller(low[0], low[1]);
  return larger(larger(m[0], m[1]), larger(m[2], m[3]));
}

// The sums over n classes of e^(z - m), and of e^((z - m) scale) if that is another one. m is finite.
template <bool scaled, class F>
inline void add_terms(const F* z, int64_t n, F m, F scale, double& plain, double& tempered) {
  constexpr int w = Vec<F>::width;
  constexpr int ahead = 16384;  // bytes: four blocks of floats, while there is something to do meanwhile
  vec_double<F> sum{}, scaled_sum{};
  const auto some = [&](auto count, const F* at) LASTLAYER_INLINE {
    constexpr int k = decltype(count)::value, once = k < 4 ? k : 4;
    vec<F> x[k], y[k];
    for (int i = 0; i < k; ++i) x[i] = load(at + i * w) - m;
    if constexpr (scaled)
      for (int i = 0; i < k; ++i) y[i] = x[i] * scale;
    for (int i = 0; i < k; i += once) exponentials<once, F>(x + i);
    sum += to_double<F>(total_of<k, F>(x));
    if constexpr (scaled) {
      for (int i = 0; i < k; i += once) exponentials<once, F>(y + i);
      scaled_sum += to_double<F>(total_of<k, F>(y));
    }
  };
  int64_t i = 0;
  for (; i + 8 * w <= n; i += 8 * w) {
    for (unsigned k = 0; k < 8 * w * sizeof(F); k += 64) prefetch(reinterpret_cast<const char*>(z + i) + ahead + k);
    some(std::integral_constant<int, 8>{}, z + i);
  }
  for (; i + w <= n; i += w) some(std::integral_constant<int, 1>{}, z + i);
  plain = sum_lanes<F>(sum);
  tempered = sum_lanes<F>(scaled_sum);
  // One by one, so that lanes without a class add nothing at all.
  for (; i < n; ++i) {
    const double x = static_cast<double>(z[i]) - m;
    plain += std::exp(x);
    if (scaled) tempered += std::exp(x * scale);
  }
}

// What is known of the blocks of a row.
struct Sums {
  double *raw_top, *raw_mass;  // as passed, at T = 1
  double *top, *mass;          // with the edits, at the temperature asked for
  double *holes;               // with the edits: how many classes are -inf
  double* lanes;               // with the edits: 16 maxima of different classes, or -inf

  Sums(double* at, int64_t blocks)
      : raw_top(at), raw_mass(at + blocks), top(at + 2 * blocks), mass(at + 3 * blocks), holes(at + 4 * blocks),
        lanes(at + 5 * blocks) {}
};

// A row as it was passed, or with its edits: blocks of F, side by side.
template <class T>
class Source {
  using F = Statistic<T>;
  const T* z;
  const int64_t stride;
  const int64_t *edit, *edits_end;
  const double* value;

 public:
  const int64_t classes;

  Source(const Tile& tile, int64_t row, const DrawCall* call = nullptr)
      : z(static_cast<const T*>(tile.data) + row * tile.row_stride), stride(tile.class_stride), edit(nullptr),
        edits_end(nullptr), value(nullptr), classes(tile.classes) {
    if (!call || !call->edit_start) return;
    edit = call->edit_index + call->edit_start[row];
    edits_end = call->edit_index + call->edit_start[row + 1];
    value = call->edit_value + call->edit_start[row];
  }

  int64_t size(int64_t b) const { return std::min(block, classes - b * block); }
  bool edited() const { return edit != edits_end; }

  // The first edit of a class from j up.
  const int64_t* edit_from(int64_t j) const {
    const int64_t *low = edit, *high = edits_end;
    while (low < high) {
      const int64_t* middle = low + (high - low) / 2;
      *middle < j ? low = middle + 1 : high = middle;
    }
    return low;
  }

  bool edited(int64_t b) const {
    const int64_t* at = edit_from(b * block);
    return at != edits_end && *at < (b + 1) * block;
  }

  // The block as it was passed; the buffer is used where it does not lie in memory like that.
  const F* raw(int64_t b, F* buffer) const {
    const T* from = z + b * block * stride;
    if constexpr (std::is_same_v<T, F>)
      if (stride == 1) return from;
    const int64_t n = size(b);
    constexpr int w = Vec<F>::width;
    int64_t j = 0;
    if (stride == 1)
      for (; j + w <= n; j += w) store(buffer + j, load(from + j));
    for (; j < n; ++j) buffer[j] = widen(from[j * stride]);
    return buffer;
  }

  // The block with its edits.
  const F* operator()(int64_t b, F* buffer) const {
    const F* from = raw(b, buffer);
    if (!edited() || !edited(b)) return from;
    if (from != buffer) std::memcpy(buffer, from, size(b) * sizeof(F));
    for (const int64_t* at = edit_from(b * block); at != edits_end && *at < (b + 1) * block; ++at)
      buffer[*at - b * block] = static_cast<F>(value[at - edit]);
    return buffer;
  }

  double raw_at(int64_t j) const { return static_cast<double>(widen(z[j * stride])); }
};

// Sums over the blocks [from, to); with `tempered`, masses at this scale, else only what the model says.
template <class T>
void sum_blocks(const Source<T>& row, int64_t from, int64_t to, double scale, bool tempered, bool lanes, const Sums& out) {
  using F = Statistic<T>;
  constexpr int w = Vec<F>::width;
  alignas(64) F buffer[block], patched[block];
  using Limits = std::numeric_limits<F>;  // neither 0 nor infinity, or -inf would become NaN
  const F s = static_cast<F>(std::max<double>(Limits::min(), std::min<double>(scale, Limits::max())));
  const bool two = tempered && scale != 1;
  for (int64_t b = from; b < to; ++b) {
    const int64_t n = row.size(b);
    const F* z = row.raw(b, buffer);
    vec<F> lowest;
    const vec<F> raw_lanes = lane_maxima(z, n, lowest);
    vec<F> edited_lanes = raw_lanes;
    const F m = maximum<F>(raw_lanes);
    out.raw_top[b] = out.top[b] = m;
    out.raw_mass[b] = out.mass[b] = 0;
    const auto terms = [&](const F* at, F top, bool both, double& plain, double& scaled) {
      if (!(top > static_cast<F>(-infinity))) {  // nothing, unless there is a NaN
        for (int64_t j = 0; j < n; ++j) plain += at[j] == at[j] ? 0 : nan;
        return;
      }
      if (both)
        add_terms<true>(at, n, top, s, plain, scaled);
      else
        add_terms<false>(at, n, top, s, plain, scaled);
    };
    const bool changed = row.edited() && row.edited(b);
    terms(z, m, two && !changed, out.raw_mass[b], out.mass[b]);
    if (!two) out.mass[b] = out.raw_mass[b];
    const F* y = z;
    if (changed) {
      y = row(b, patched);
      edited_lanes = lane_maxima(y, n, lowest);
      const F top = maximum<F>(edited_lanes);
      double plain = 0, scaled = 0;
      terms(y, top, two, plain, scaled);
      out.top[b] = top;
      out.mass[b] = two && top > static_cast<F>(-infinity) ? scaled : plain;
    }
    out.holes[b] = 0;
    if (any(lowest == splat(static_cast<F>(-infinity))))
      for (int64_t j = 0; j < n; ++j) out.holes[b] += y[j] == static_cast<F>(-infinity);
    if (lanes) {
      alignas(64) F each[w];
      store(each, edited_lanes);
      for (int k = 0; k < 16; ++k) out.lanes[b * 16 + k] = k < w ? static_cast<double>(each[k]) : -infinity;
    }
  }
}
