// Few classes: a vector holds one class of as many rows as it has lanes, so that no sum crosses lanes and a row of two
// classes does not pay for a vector of sixteen. Included by rows.cpp, inside its namespace. Formulas as there; a row's
// result depends on its number of classes and logits alone, whichever rows share its vectors.

constexpr int few = 32;

// Columns of rows [begin, begin + count): column j holds class j; lanes without a row repeat the first.
template <class T>
inline void rows_to_columns(const Tile& tile, int64_t begin, int count, vec<Statistic<T>>* columns) {
  using F = Statistic<T>;
  constexpr int w = Vec<F>::width;
  F* flat = reinterpret_cast<F*>(columns);
  for (int k = 0; k < w; ++k) {
    const T* row = static_cast<const T*>(tile.data) + (begin + (k < count ? k : 0)) * tile.row_stride;
    for (int64_t j = 0; j < tile.classes; ++j) flat[j * w + k] = widen(row[j * tile.class_stride]);
  }
}

template <class T>
inline void columns_to_rows(const vec<Statistic<T>>* columns, const Tile& tile, int64_t begin, int count) {
  using F = Statistic<T>;
  const F* flat = reinterpret_cast<const F*>(columns);
  for (int k = 0; k < count; ++k) {
    T* row = static_cast<T*>(tile.data) + (begin + k) * tile.row_stride;
    for (int64_t j = 0; j < tile.classes; ++j) row[j * tile.class_stride] = narrow<T>(flat[j * Vec<F>::width + k]);
  }
}

template <class F>
inline void weights_to_columns(const Weights& weight, int64_t classes, int64_t begin, int count, vec<F>* columns) {
  if (weight.row_stride == 0) {
    for (int64_t j = 0; j < classes; ++j) columns[j] = splat(static_cast<const F*>(weight.data)[j]);
    return;
  }
  const Tile tile{const_cast<void*>(weight.data), 0, classes, weight.row_stride, 1};
  rows_to_columns<F>(tile, begin, count, columns);
}

template <class F>
struct Lanes {
  vec<F> max;
  vec_double<F> rest, moment, spread, mass;

  inline RowState row(int k) const {
    return {static_cast<double>(max[k]), rest[k], moment[k], spread[k], mass[k], false};
  }
};

template <class F, bool with_moment, bool with_weight>
inline Lanes<F> fold_lanes(const vec<F>* z, int classes, const vec<F>* u) {
  vec<F> m = z[0];
  for (int j = 1; j < classes; ++j) m = z[j] > m ? z[j] : m;
  Sums<F, with_moment, with_weight> sums;
  for (int j = 0; j < classes; j += 8) {
    const int to = j + 8 < classes ? j + 8 : classes;
    for (int k = j; k < to; ++k) sums.add(z[k], m, with_weight ? u[k] : vec<F>{}, true);
    sums.widen_sums();
  }
  const double unit = std::ldexp(1.0, -Simd<F>::shift);
  const vec_double<F> others = __builtin_convertvector(sums.ties, vec_double<F>) - 1.0;
  return {m, others + unit * sums.term_total, unit * sums.moment_total, sums.spread_total, sums.mass_total};
}

template <class F>
inline vec<F> to_narrow(vec_double<F> v) { return __builtin_convertvector(v, vec<F>); }

// 2^-shift / (1 + rest), NaN in rows without a distribution.
template <class F>
inline vec_double<F> unit_share(vec<F> max, vec_double<F> rest) {
  const vec_double<F> nothing = to_double<F>(max - max);  // 0, or NaN where max is not finite
  return std::ldexp(1.0, -Simd<F>::shift) / (1.0 + rest) + nothing;
}

template <class T>
void softmax_lanes(const Tile& z, const Tile& out, bool log, int64_t begin, int64_t end) {
  using F = Statistic<T>;
  constexpr int w = Vec<F>::width;
  const int classes = static_cast<int>(z.classes);
  vec<F> columns[few];
  for (int64_t i = begin; i < end; i += w) {
    const int count = static_cast<int>(end - i < w ? end - i : w);
    rows_to_columns<T>(z, i, count, columns);
    const Lanes<F> lanes = fold_lanes<F, false, false>(columns, classes, nullptr);
    if (log) {
      vec<F> log_sum = lanes.max - lanes.max;
      for (int k = 0; k < w; ++k) log_sum[k] += static_cast<F>(std::log1p(lanes.rest[k]));
      for (int j = 0; j < classes; ++j) columns[j] = (columns[j] - lanes.max) - log_sum;
    } else {
      const vec_double<F> share = unit_share<F>(lanes.max, lanes.rest);
      const vec<F> unit = to_narrow<F>(share), unit_low = to_narrow<F>(share - to_double<F>(unit));
      for (int j = 0; j < classes; ++j) {
        vec<F> x, low;
        difference<F>(columns[j], lanes.max, x, low);
        const vec<F> e = exp_scaled<F>(x, low);
        columns[j] = e * unit + e * unit_low;
      }
    }
    columns_to_rows<T>(columns, out, i, count);
  }
}

template <class T>
void gradient_lanes(const GradientCall& call, int64_t begin, int64_t end) {
  using F = Statistic<T>;
  using Index = typename Simd<F>::bits;
  constexpr int w = Vec<F>::width;
  const int classes = static_cast<int>(call.z.classes);
  const vec<F> zero{}, one = splat(F(1)), floor = splat(Simd<F>::lowest), cap = splat(static_cast<F>(call.inverse_softcap));
  vec<F> columns[few], weights[few];
  for (int64_t i = begin; i < end; i += w) {
    const int count = static_cast<int>(end - i < w ? end - i : w);
    vec_double<F> alpha{}, beta{}, gamma{}, delta{}, m{}, rest{}, log_sum{};
    mask<F> y{};
    for (int k = 0; k < w; ++k) {
      const int64_t row = i + (k < count ? k : 0), column = call.target ? call.target[row] - call.first_class : -1;
      alpha[k] = call.numbers.alpha[row];
      beta[k] = call.numbers.beta[row];
      gamma[k] = call.target ? call.numbers.gamma[row] : 0;
      delta[k] = call.weight.data ? call.numbers.delta[row] : 0;
      m[k] = call.max[row];
      rest[k] = call.rest[row];
      log_sum[k] = beta[k] != 0 ? std::log1p(rest[k]) : 0;
      y[k] = static_cast<Index>(column >= 0 && column < classes ? column : -1);
    }
    rows_to_columns<T>(call.z, i, count, columns);
    if (call.weight.data) weights_to_columns<F>(call.weight, classes, i, count, weights);
    const vec<F> max = to_narrow<F>(m), nothing = to_narrow<F>((m - m) + (rest - rest));  // NaN: no distribution
    const vec<F> unit = to_narrow<F>(unit_share<F>(max, rest)), a = to_narrow<F>(alpha), b = to_narrow<F>(beta);
    const vec<F> g = to_narrow<F>(gamma), d = to_narrow<F>(delta), logs = to_narrow<F>(log_sum);
    const vec_double<F> q = rest / (1.0 + rest), top_slope = alpha - beta * log_sum;
    const mask<F> loud = a != zero || b != zero || g != zero || d != zero;
    for (int j = 0; j < classes; ++j) {
      const mask<F> at_target = y == static_cast<Index>(j), top = columns[j] == max;
      vec<F> x, low, base = at_target ? g : zero;
      if (call.weight.data) base += d * weights[j];
      difference<F>(columns[j], max, x, low);
      const vec<F> p = exp_scaled<F>(x, low) * unit;
      x = x < floor ? floor : x;
      vec<F> dz = p * (a + b * (x - logs)) + base;
      if (any<F>(top)) {  // p = 1 - q: (slope + base) - q slope keeps the digits that p slope + base would cancel
        vec_double<F> exact = to_double<F>(at_target ? one : zero) * gamma;
        if (call.weight.data) exact += delta * to_double<F>(weights[j]);
        dz = top ? to_narrow<F>((top_slope + exact) - q * top_slope) : dz;
      }
      const vec<F> t = columns[j] * cap;
      if (call.inverse_softcap != 0) dz *= one - t * t;
      columns[j] = loud ? dz + nothing : zero;
    }
    columns_to_rows<T>(columns, call.out, i, count);
  }
}
