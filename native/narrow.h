// Few classes: a vector holds one class of as many rows as it has lanes, so that no sum crosses lanes and a row of two
// classes does not pay for a vector of sixteen. Included by rows.cpp, inside its namespace. Formulas as there.

// A vector of pairs becomes two: their first halves and their second halves; and back.
template <class V, size_t... lane>
inline V every_other(V a, V b, std::index_sequence<lane...>, bool odd) {
  return odd ? __builtin_shufflevector(a, b, (2 * lane + 1)...) : __builtin_shufflevector(a, b, (2 * lane)...);
}

template <class V, size_t... lane>
inline V zipped(V a, V b, std::index_sequence<lane...>, bool high) {
  constexpr size_t w = sizeof...(lane);
  return high ? __builtin_shufflevector(a, b, (lane % 2 * w + w / 2 + lane / 2)...)
              : __builtin_shufflevector(a, b, (lane % 2 * w + lane / 2)...);
}

// n vectors hold rows of n classes one after the other: column j goes to columns[j * step].
template <int n, class F>
inline void split(const vec<F>* x, vec<F>* columns, int step) {
  if constexpr (n == 1) {
    *columns = *x;
  } else {
    constexpr auto lanes = std::make_index_sequence<Vec<F>::width>{};
    vec<F> even[n / 2], odd[n / 2];
    for (int i = 0; i < n / 2; ++i) even[i] = every_other(x[2 * i], x[2 * i + 1], lanes, false);
    for (int i = 0; i < n / 2; ++i) odd[i] = every_other(x[2 * i], x[2 * i + 1], lanes, true);
    split<n / 2, F>(even, columns, 2 * step);
    split<n / 2, F>(odd, columns + step, 2 * step);
  }
}

template <int n, class F>
inline void join(const vec<F>* columns, int step, vec<F>* x) {
  if constexpr (n == 1) {
    *x = *columns;
  } else {
    constexpr auto lanes = std::make_index_sequence<Vec<F>::width>{};
    vec<F> even[n / 2], odd[n / 2];
    join<n / 2, F>(columns, 2 * step, even);
    join<n / 2, F>(columns + step, 2 * step, odd);
    for (int i = 0; i < n / 2; ++i) x[2 * i] = zipped(even[i], odd[i], lanes, false);
    for (int i = 0; i < n / 2; ++i) x[2 * i + 1] = zipped(even[i], odd[i], lanes, true);
  }
}

// As many rows as lanes, of n classes, side by side in memory.
template <int n, class T>
inline void split_rows(const T* data, vec<Statistic<T>>* columns) {
  using F = Statistic<T>;
  vec<F> x[n];
  for (int i = 0; i < n; ++i) x[i] = load(data + i * Vec<F>::width);
  split<n, F>(x, columns, 1);
}

template <int n, class T>
inline void join_rows(const vec<Statistic<T>>* columns, T* data) {
  using F = Statistic<T>;
  vec<F> x[n];
  join<n, F>(columns, 1, x);
  for (int i = 0; i < n; ++i) store(data + i * Vec<F>::width, x[i]);
}

// Columns of rows [begin, begin + count): column j holds class j; lanes without a row repeat the first. A square of as
// many rows and classes as there are lanes is turned in registers.
template <class T>
inline void rows_to_columns(const Tile& tile, int64_t begin, int count, vec<Statistic<T>>* columns) {
  using F = Statistic<T>;
  constexpr int w = Vec<F>::width;
  const T* data = static_cast<const T*>(tile.data) + begin * tile.row_stride;
  const int64_t classes = tile.classes, stride = tile.row_stride;
  if (count == w && stride == 1) {
    for (int64_t j = 0; j < classes; ++j) columns[j] = load(data + j * tile.class_stride);
  } else if (count == w && tile.class_stride == 1 && stride == classes && classes == 2 && w > 2) {
    split_rows<2>(data, columns);
  } else if (count == w && tile.class_stride == 1 && stride == classes && classes == 4 && w > 4) {
    split_rows<4>(data, columns);
  } else if (count == w && tile.class_stride == 1) {
    for (int64_t j = 0; j < classes; j += w) {
      const int64_t n = classes - j < w ? classes - j : w;
      vec<F> x[w], turned[w];
      for (int k = 0; k < w; ++k) x[k] = n == w ? load(data + k * stride + j) : load_some(data + k * stride + j, 1, n, F(0));
      split<w, F>(x, turned, 1);
      for (int64_t k = 0; k < n; ++k) columns[j + k] = turned[k];
    }
  } else {
    F* flat = reinterpret_cast<F*>(columns);
    for (int k = 0; k < w; ++k)
      for (int64_t j = 0; j < classes; ++j) flat[j * w + k] = widen(data[(k < count ? k : 0) * stride + j * tile.class_stride]);
  }
}

template <class T>
inline void columns_to_rows(const vec<Statistic<T>>* columns, const Tile& tile, int64_t begin, int count) {
  using F = Statistic<T>;
  constexpr int w = Vec<F>::width;
  T* data = static_cast<T*>(tile.data) + begin * tile.row_stride;
  const int64_t classes = tile.classes, stride = tile.row_stride;
  if (count == w && stride == 1) {
    for (int64_t j = 0; j < classes; ++j) store(data + j * tile.class_stride, columns[j]);
  } else if (count == w && tile.class_stride == 1 && stride == classes && classes == 2 && w > 2) {
    join_rows<2>(columns, data);
  } else if (count == w && tile.class_stride == 1 && stride == classes && classes == 4 && w > 4) {
    join_rows<4>(columns, data);
  } else if (count == w && tile.class_stride == 1) {
    for (int64_t j = 0; j < classes; j += w) {
      const int64_t n = classes - j < w ? classes - j : w;
      vec<F> x[w], turned[w];
      for (int k = 0; k < w; ++k) x[k] = k < n ? columns[j + k] : vec<F>{};
      join<w, F>(x, 1, turned);
      for (int k = 0; k < w; ++k) {
        if (n == w)
          store(data + k * stride + j, turned[k]);
        else
          store_some(data + k * stride + j, 1, n, turned[k]);
      }
    }
  } else {
    const F* flat = reinterpret_cast<const F*>(columns);
    for (int k = 0; k < count; ++k)
      for (int64_t j = 0; j < classes; ++j) data[k * stride + j * tile.class_stride] = narrow<T>(flat[j * w + k]);
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

// e[k] becomes the term of z[k] for k in [begin, end), four at a time.
template <class F>
LASTLAYER_INLINE inline void terms_of(const vec<F>* z, int begin, int end, vec<F> from, vec<F>* e) {
  int k = begin;
  for (; k + 4 <= end; k += 4) {
    for (int i = k; i < k + 4; ++i) e[i] = z[i];
    to_terms<4, F>(e + k, from);
  }
  for (; k < end; ++k) e[k] = term<F>(z[k], from);
}

// Folds columns z with weights u; e receives their terms.
template <class F, bool with_moment, bool with_weight>
LASTLAYER_INLINE inline Lanes<F> fold_lanes(const vec<F>* z, int classes, const vec<F>* u, vec<F>* e) {
  const vec<F> zero{}, large = splat(std::numeric_limits<F>::max());
  vec<F> m = splat(static_cast<F>(-infinity));
  for (int j = 0; j < classes; ++j) m = larger(z[j], m);
  const vec<F> from = finite_or_0<F>(m);
  const mask<F> finite = m - m == zero;
  const bool proper = !any(~finite);
  mask<F> ties{};
  vec_double<F> terms{}, moments{}, spreads{}, masses{};
  for (int j = 0; j < classes; j += 8) {
    const int to = j + 8 < classes ? j + 8 : classes;
    vec<F> term_sum{}, moment_sum{}, spread_sum{}, mass_sum{};
    terms_of<F>(z, j, to, from, e);
    for (int k = j; k < to; ++k) {
      const mask<F> tie = z[k] == m;
      if (!proper) e[k] = finite | (z[k] != z[k]) ? e[k] : zero;
      ties -= tie;
      const vec<F> other = tie ? zero : e[k], x = m - z[k];
      term_sum += other;
      if constexpr (with_moment) moment_sum += smaller(x, large) * other;
      if constexpr (with_weight) spread_sum += (u[k] != zero) & ~tie ? x * u[k] : zero;
      if constexpr (with_weight) mass_sum += u[k];
    }
    terms += to_double<F>(term_sum);
    if constexpr (with_moment) moments += to_double<F>(moment_sum);
    if constexpr (with_weight) spreads += to_double<F>(spread_sum);
    if constexpr (with_weight) masses += to_double<F>(mass_sum);
  }
  const double unit = std::ldexp(1.0, -Simd<F>::shift);
  const vec_double<F> others = to_double<F>(__builtin_convertvector(ties, vec<F>)) - 1.0;
  return {m, others + unit * terms, unit * moments, spreads, masses};
}

// The class of each row as the index of a column, -1 where it is none of them.
template <class F>
LASTLAYER_INLINE inline mask<F> class_of(const Rows& rows, int64_t first, int count, int64_t first_class) {
  const mask_double<F> none = mask_double<F>{} - int64_t{1};
  if (!rows.target) return to_narrow<F>(none);
  const mask_double<F> y = targets_of<F>(rows, first, count) - first_class;
  return to_narrow<F>(select((y >= int64_t{0}) & (y < rows.z.classes), y, none));
}

template <class T>
LASTLAYER_INLINE inline vec<Statistic<T>> chosen(const Group<T>& group, int classes, mask<Statistic<T>> y) {
  using F = Statistic<T>;
  vec<F> z = splat(static_cast<F>(nan));
  for (int j = 0; j < classes; ++j) z = y == static_cast<typename Simd<F>::bits>(j) ? group.z[j] : z;
  return z;
}

template <class T>
inline void softmax_columns(const Group<T>& group, const Rows& rows, const Output& out, bool log,
                            vec<Statistic<T>> log_sum, const Share<Statistic<T>>& share) {
  for (int64_t j = 0; j < rows.z.classes; ++j)
    if (log)
      group.z[j] = (group.z[j] - group.lanes.max) - log_sum;
    else
      group.z[j] = group.e[j] * share.unit + group.e[j] * share.unit_low;
  columns_to_rows<T>(group.z, out.tile, group.first, group.count);
}

template <class T>
inline void gradient_columns(const GradientCall& call, const Group<T>& group, const Share<Statistic<T>>& slope,
                             const Numbers<Statistic<T>>& numbers) {
  using F = Statistic<T>;
  using Index = typename Simd<F>::bits;
  const Rows& rows = call.rows;
  const Lanes<F>& s = group.lanes;
  const int64_t classes = rows.z.classes;
  const bool weighted = rows.weight.data, capped = call.inverse_softcap != 0;
  const vec<F> zero{}, one = splat(F(1));
  const vec<F> cap = splat(static_cast<F>(call.inverse_softcap));
  const mask<F> y = class_of<F>(rows, group.first, group.count, call.first_class);
  const vec_double<F> q = s.rest / (1.0 + s.rest);
  const vec<F> g = to_narrow<F>(numbers.gamma), d = to_narrow<F>(numbers.delta);
  const vec<F> nothing = to_narrow<F>(s.undefined() + (s.rest - s.rest));  // NaN: no distribution
  const auto term_of = [&](int64_t j) { return rows.folded ? term<F>(group.z[j], slope.from) : group.e[j]; };
  const auto write = [&](const vec_double<F>& top_slope, mask<F> loud, const auto& share) {
    // At a maximum with p > 1/2, p = 1 - q: (slope + base) - q slope keeps the digits that p slope + base would cancel.
    const mask<F> confident = to_narrow<F>(s.rest) < one;
    const auto at_top = [&](const vec_double<F>& base) { return to_narrow<F>((top_slope + base) - q * top_slope); };
    const vec<F> top_target = at_top(numbers.gamma);
    loud |= (g != zero) | (d != zero);
    for (int64_t j = 0; j < classes; ++j) {
      const vec<F> z = group.z[j];
      const mask<F> at_target = y == static_cast<Index>(j), top = (z == s.max) & confident;
      vec<F> dz = share(z, term_of(j)) + (at_target ? g : zero);
      if (weighted) {
        const vec_double<F> base = numbers.delta * to_double<F>(group.u[j]);
        dz += d * group.u[j];
        dz = top ? at_top(base + to_double<F>(at_target ? one : zero) * numbers.gamma) : dz;
      } else {
        dz = top & at_target ? top_target : dz;
      }
      const vec<F> t = z * cap;
      if (capped) dz *= one - t * t;
      group.z[j] = loud ? dz + nothing : zero;
    }
  };
  const vec<F> a = to_narrow<F>(numbers.alpha), b = to_narrow<F>(numbers.beta);
  if (any(b != zero)) {
    const Share<F> p(s, ones<F>());
    const vec_double<F> log_sum = s.log1p_rest();
    const vec<F> logs = to_narrow<F>(log_sum), floor = splat(Simd<F>::lowest);
    write(numbers.alpha - select(numbers.beta != 0.0, numbers.beta * log_sum, vec_double<F>{}), (a != zero) | (b != zero),
          [&](vec<F> z, vec<F> e) {
            const vec<F> x = z - s.max;
            return e * p.unit * (a + b * ((x < floor ? floor : x) - logs));
          });
    return columns_to_rows<T>(group.z, call.out.tile, group.first, group.count);
  }
  const vec_double<F> size = select(numbers.alpha < 0.0, 0.0 - numbers.alpha, numbers.alpha);
  const mask<F> tiny = to_narrow<F>(size < Simd<F>::least * (1.0 + s.rest));
  if (any(tiny & (a != zero))) {
    const Share<F> p(s, ones<F>());
    write(numbers.alpha, a != zero,
          [&](vec<F>, vec<F> e) { return tiny ? e * p.unit * a : e * slope.unit + e * slope.unit_low; });
  } else {
    write(numbers.alpha, a != zero, [&](vec<F>, vec<F> e) { return e * slope.unit + e * slope.unit_low; });
  }
  columns_to_rows<T>(group.z, call.out.tile, group.first, group.count);
}
