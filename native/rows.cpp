// fold, statistics, loss, gradient, softmax and log_softmax of rows of logits: the specification of _algebra.py as SIMD
// loops.
//
// Compiled once per instruction set (LASTLAYER_ISA). Every operation goes over groups of rows, at most one row per lane:
// fold the group (few classes: narrow.h), finish all its rows at once in the lanes of a vector, write them while they
// are in a cache. A row's result depends on its own logits and on the number of classes alone.
#include "rows.h"

#include "isa.h"

namespace lastlayer {
namespace {

#include "vec.h"

#include "exp.h"

constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
constexpr int few = 64;  // classes up to which rows lie side by side in a vector

template <class T>
struct Row {
  const T* z;
  int64_t stride, classes;
};

template <class T>
inline Row<T> row_of(const Tile& tile, int64_t i) {
  return {static_cast<const T*>(tile.data) + i * tile.row_stride, tile.class_stride, tile.classes};
}

// e^(a - b) for a <= b, b finite, the rounding error of a - b put back.
inline double decay(double a, double b) {
  return term<double>(splat(a), splat(b))[0] * std::ldexp(1.0, -Simd<double>::shift);
}

struct RowState {
  double max = -infinity, rest = 0, moment = 0, spread = 0, mass = 0;

  void merge(const RowState& b) {
    const bool first = !(max < b.max);
    const RowState won = first ? *this : b, lost = first ? b : *this;
    const double gap = won.max == lost.max ? 0 : won.max - lost.max;
    const double factor = gap == 0 ? 1 : std::isfinite(won.max) ? decay(lost.max, won.max) : std::exp(-gap);
    const double total = factor * (1 + lost.rest);
    max = won.max;
    rest = won.rest + total;
    moment = won.moment + (factor * lost.moment + (factor > 0 ? gap : 0) * total);
    spread = (won.spread + lost.spread) + (lost.mass != 0 ? gap * lost.mass : 0);
    mass = won.mass + lost.mass;
  }
};

// ---- a long row ----------------------------------------------------------------------------------------------------

// A sum that keeps, for doubles, what rounding loses (TwoSum); for floats double itself is wide enough.
template <class F>
struct Sum {
  vec_double<F> total{}, lost{};

  LASTLAYER_INLINE void add(const vec_double<F>& v) {
    if constexpr (std::is_same_v<F, double>) {
      const vec_double<F> sum = total + v, back = sum - total;
      lost += (total - (sum - back)) + (v - back);
      total = sum;
    } else {
      total += v;
    }
  }

  void scale(double factor) {
    total *= factor;
    lost *= factor;
  }

  double value() const {
    const double sum = sum_lanes<F>(total);
    return std::isfinite(sum) ? sum + sum_lanes<F>(lost) : sum;
  }
};

// One pass over a row. Each lane keeps the largest logit it has seen and adds up the terms of all others: of the new
// logit and the lane's maximum, the smaller one is added, the larger one kept. Terms are measured from the row's maximum
// so far, `level`; when that grows, the sums are brought to the new one. Eight terms are added up in F, then in a Sum, so
// that the error does not grow with the number of classes.
template <class F, bool with_moment, bool with_weight>
class RowFold {
  static constexpr int w = Vec<F>::width;
  vec<F> top = splat(static_cast<F>(-infinity)), level = top, from{};  // from: level, or 0 while that is not finite
  Sum<F> terms, moments, spreads, masses;

  __attribute__((noinline)) void raise() {
    const vec<F> higher = splat(maximum<F>(top));
    const double gap = static_cast<double>(higher[0]) - static_cast<double>(level[0]);
    if constexpr (with_weight) spreads.add(select(masses.total != 0.0, masses.total * gap, vec_double<F>{}));
    if (gap < infinity) {  // else there are no terms yet
      const double factor = gap > 0 ? decay(level[0], higher[0]) : 0;  // a maximum of +inf: no distribution
      if constexpr (with_moment) {
        moments.add(gap * terms.total);
        moments.scale(factor);
      }
      terms.scale(factor);
    }
    set(higher);
  }

  void set(vec<F> m) {
    level = m;
    from = finite_or_0<F>(m);
  }

  // Starts from the maximum of the first classes, so that it seldom has to be raised.
  template <class T>
  void begin(const T* z, int64_t n) {
    constexpr int64_t block = 1024;
    vec<F> a = level, b = level;
    const int64_t whole = (n < block ? n : block) / (2 * w) * (2 * w);
    for (int64_t i = 0; i < whole; i += 2 * w) {
      a = larger(load(z + i), a);
      b = larger(load(z + i + w), b);
    }
    set(splat(maximum<F>(larger(a, b))));
  }

  // y * e where e may be 0 and y infinite.
  static vec<F> product(vec<F> y, vec<F> e) { return smaller(y, splat(std::numeric_limits<F>::max())) * e; }

  template <int n, class T>
  LASTLAYER_INLINE void add(const T* z, const F* u) {
    vec<F> e[n], sum[n], highest = top;
#pragma GCC unroll 8
    for (int k = 0; k < n; ++k) {
      const vec<F> zk = load(z + k * w);
      e[k] = smaller(highest, zk);
      highest = larger(zk, highest);
    }
    top = highest;
    if (__builtin_expect(any(top > level), 0)) raise();
    if constexpr (with_moment)
#pragma GCC unroll 8
      for (int k = 0; k < n; ++k) sum[k] = level - e[k];
    constexpr int once = n < 4 ? n : 4;
    for (int k = 0; k < n; k += once) to_terms<once, F>(e + k, from);
    if constexpr (with_moment) {
#pragma GCC unroll 8
      for (int k = 0; k < n; ++k) sum[k] = product(sum[k], e[k]);
      moments.add(to_double<F>(total_of<n, F>(sum)));
    }
    terms.add(to_double<F>(total_of<n, F>(e)));
    if constexpr (with_weight) {
      vec<F> weight[n];
#pragma GCC unroll 8
      for (int k = 0; k < n; ++k) {
        const vec<F> zk = load(z + k * w), zero{};
        weight[k] = load(u + k * w);
        sum[k] = (weight[k] != zero) & (zk != level) ? (level - zk) * weight[k] : zero;
      }
      spreads.add(to_double<F>(total_of<n, F>(sum)));
      masses.add(to_double<F>(total_of<n, F>(weight)));
    }
  }

 public:
  // Adds n classes that lie side by side; u are their weights.
  template <class T>
  void feed(const T* z, int64_t n, const F* u) {
    constexpr int ahead = 8192;  // bytes: far enough for memory to answer in time (docs/decisions)
    int64_t i = 0;
    if (!(level[0] > static_cast<F>(-infinity))) begin(z, n);
    for (; i + 8 * w <= n; i += 8 * w) {
      for (unsigned k = 0; k < 8 * w * sizeof(T); k += 64) prefetch(reinterpret_cast<const char*>(z + i) + ahead + k);
      add<8>(z + i, with_weight ? u + i : u);
    }
    const auto rest = [&](auto size) {
      if (n - i < size * w) return;
      add<size>(z + i, with_weight ? u + i : u);
      i += size * w;
    };
    rest(std::integral_constant<int, 4>{});
    rest(std::integral_constant<int, 2>{});
    rest(std::integral_constant<int, 1>{});
    if (i == n) return;
    F last[w], weight[w];
    store(last, load_some(z + i, 1, n - i, static_cast<F>(-infinity)));
    if constexpr (with_weight) store(weight, load_some(u + i, 1, n - i, F(0)));
    add<1>(last, weight);
  }

  // The row's state; where its maximum is not finite there is no distribution, and the rest says nothing.
  RowState finish() {
    const double unit = std::ldexp(1.0, -Simd<F>::shift);
    const mask<F> tie = top == level;
    const vec<F> zero{}, e = tie ? zero : term<F>(top, from);
    RowState s;
    s.max = level[0];
    terms.add(to_double<F>(e));
    s.rest = unit * terms.value() + (__builtin_popcount(lanes_of(tie)) - 1);
    if constexpr (with_moment) moments.add(to_double<F>(product(level - top, e)));
    if constexpr (with_moment) s.moment = unit * moments.value();
    if constexpr (with_weight) s.spread = spreads.value();
    if constexpr (with_weight) s.mass = masses.value();
    return s;
  }
};

// The state of a row whose maximum is not finite: x = z - max is 0 at the maximum, ties count.
template <class T>
RowState without_distribution(const Row<T>& row, const Statistic<T>* u, double max) {
  RowState s;
  s.max = max;
  s.rest = -1;
  for (int64_t j = 0; j < row.classes; ++j) {
    const double z = widen(row.z[j * row.stride]), weight = u ? u[j] : 0;
    s.rest += z == max ? 1 : z == z ? 0 : nan;
    s.spread += weight != 0 && z != max ? weight * (max - z) : 0;
    s.mass += weight;
  }
  return s;
}

template <class T, bool with_moment, bool with_weight>
RowState fold_segment(const Row<T>& row, const Statistic<T>* u) {
  using F = Statistic<T>;
  RowFold<F, with_moment, with_weight> fold;
  if (row.stride == 1) {
    fold.feed(row.z, row.classes, u);
  } else {
    constexpr int64_t block = 1024;
    F buffer[block];
    for (int64_t from = 0; from < row.classes; from += block) {
      const int64_t n = row.classes - from < block ? row.classes - from : block;
      for (int64_t j = 0; j < n; ++j) buffer[j] = widen(row.z[(from + j) * row.stride]);
      fold.feed(buffer, n, with_weight ? u + from : u);
    }
  }
  const RowState s = fold.finish();
  return std::isfinite(s.max) ? s : without_distribution<T>(row, with_weight ? u : nullptr, s.max);
}

template <class T, bool with_moment, bool with_weight>
RowState fold_row(const Row<T>& row, const Statistic<T>* u) {
  RowState s;
  const int64_t parts = segments(row.classes);
  for (int64_t k = 0; k < parts; ++k) {
    const int64_t from = k * segment, to = k + 1 < parts ? from + segment : row.classes;
    const Row<T> part{row.z + from * row.stride, row.stride, to - from};
    const RowState one = fold_segment<T, with_moment, with_weight>(part, with_weight ? u + from : u);
    if (k == 0)
      s = one;
    else
      s.merge(one);
  }
  return s;
}

// ---- groups of rows ------------------------------------------------------------------------------------------------

// The states of the rows of a group, one per lane.
template <class F>
struct Lanes {
  vec<F> max;
  vec_double<F> rest, moment, spread, mass;

  LASTLAYER_INLINE vec_double<F> top() const { return to_double<F>(max); }
  LASTLAYER_INLINE vec_double<F> undefined() const { return to_double<F>(max - max); }  // NaN for a row without a distribution, else 0
  LASTLAYER_INLINE vec_double<F> log1p_rest() const { return each_part([](vec<double> x) { return log1p(x); }, rest); }
  LASTLAYER_INLINE vec_double<F> log_sum() const { return log1p_rest() + undefined(); }
};

template <class T>
struct Group {
  using F = Statistic<T>;
  int64_t first;
  int count;
  Lanes<F> lanes;
  vec<F>*z, *e, *u;  // few classes: logits, terms and weights, a vector per class; else null
};

// p_j = term(z_j, from) (unit + unit_low), times a factor per row; NaN in rows without a distribution. Below ``least``
// times the sum, a factor is a ``tiny`` one: the unit would no longer be a normal number.
template <class F>
struct Share {
  vec<F> from, unit, unit_low;

  explicit Share(const Lanes<F>& s, const vec_double<F>& factor) : from(finite_or_0<F>(s.max)) {
    const vec_double<F> exact = std::ldexp(1.0, -Simd<F>::shift) * factor / (1.0 + s.rest) + s.undefined();
    unit = to_narrow<F>(exact);
    unit_low = to_narrow<F>(exact - to_double<F>(unit));
  }
};

template <class F>
inline vec_double<F> ones() { return vec_double<F>{} + 1.0; }

// The four numbers of the rows of a group.
template <class F>
struct Numbers {
  vec_double<F> alpha{}, beta{}, gamma{}, delta{};
};

// The class of each row, 0 in lanes without one.
template <class F>
LASTLAYER_INLINE inline mask_double<F> targets_of(const Rows& rows, int64_t first, int count) {
  mask_double<F> y{};
  std::memcpy(&y, rows.target + first, static_cast<size_t>(count) * sizeof(int64_t));
  return y;
}

#include "narrow.h"

// Which lanes hold a row.
template <class F>
LASTLAYER_INLINE inline mask_double<F> present(int count) {
  alignas(64) int64_t lanes[Vec<F>::width];
  for (int k = 0; k < Vec<F>::width; ++k) lanes[k] = -(k < count);
  mask_double<F> v;
  std::memcpy(&v, lanes, sizeof v);
  return v;
}

template <class F>
inline const F* weights_of(const Weights& weight, int64_t i) {
  return weight.data ? static_cast<const F*>(weight.data) + i * weight.row_stride : nullptr;
}

template <class F>
inline Lanes<F> given_states(const States& state, int64_t first, int count) {
  const auto field = [&](const double* values) {
    return values ? by_lane<F>(count, [&](int k) { return values[first + k]; }) : vec_double<F>{};
  };
  return {to_narrow<F>(field(state.max)), field(state.rest), field(state.moment), field(state.spread), field(state.mass)};
}

template <class F>
inline void keep_states(const States& state, int64_t first, int count, const Lanes<F>& lanes) {
  if (state.max) to_memory<F>(state.max + first, count, lanes.top());
  if (state.rest) to_memory<F>(state.rest + first, count, lanes.rest);
  if (state.moment) to_memory<F>(state.moment + first, count, lanes.moment);
  if (state.spread) to_memory<F>(state.spread + first, count, lanes.spread);
  if (state.mass) to_memory<F>(state.mass + first, count, lanes.mass);
}

// Calls f(group) for groups of rows with their states.
template <class T, bool with_moment, bool with_weight, class Function>
inline void each_group_as(const Rows& rows, int64_t begin, int64_t end, const Function& f) {
  using F = Statistic<T>;
  constexpr int w = Vec<F>::width;
  const bool side_by_side = rows.z.classes <= few;
  const int together = rows.z.classes <= grouped ? w : 1;
  vec<F> z[few], e[few], u[few];
  for (int64_t i = begin; i < end; i += together) {
    const int count = static_cast<int>(end - i < together ? end - i : together);
    Group<T> group;
    group.first = i, group.count = count;
    group.z = group.e = group.u = nullptr;
    if (side_by_side) {
      group.z = z, group.e = e, group.u = u;
      rows_to_columns<T>(rows.z, i, count, z);
      if constexpr (with_weight) weights_to_columns<F>(rows.weight, rows.z.classes, i, count, u);
    }
    if (rows.folded)
      group.lanes = given_states<F>(rows.state, i, count);
    else if (side_by_side)
      group.lanes = fold_lanes<F, with_moment, with_weight>(z, static_cast<int>(rows.z.classes), u, e);
    else {
      RowState s[w];
      for (int k = 0; k < count; ++k)
        s[k] = fold_row<T, with_moment, with_weight>(row_of<T>(rows.z, i + k), weights_of<F>(rows.weight, i + k));
      const auto field = [&](double RowState::*name) { return by_lane<F>(count, [&](int k) { return s[k].*name; }); };
      group.lanes.max = to_narrow<F>(field(&RowState::max));
      group.lanes.rest = field(&RowState::rest);
      if constexpr (with_moment) group.lanes.moment = field(&RowState::moment);
      if constexpr (with_weight) group.lanes.spread = field(&RowState::spread);
      if constexpr (with_weight) group.lanes.mass = field(&RowState::mass);
    }
    if (!rows.folded) keep_states<F>(rows.state, i, count, group.lanes);
    f(group);
  }
}

template <class T, class Function>
inline void each_group(const Rows& rows, bool moment, int64_t begin, int64_t end, const Function& f) {
  if (moment && rows.weight.data) return each_group_as<T, true, true>(rows, begin, end, f);
  if (moment) return each_group_as<T, true, false>(rows, begin, end, f);
  if (rows.weight.data) return each_group_as<T, false, true>(rows, begin, end, f);
  return each_group_as<T, false, false>(rows, begin, end, f);
}

template <class T>
void fold_rows(const Rows& rows, int64_t begin, int64_t end) {
  each_group<T>(rows, rows.state.moment, begin, end, [](const Group<T>&) {});
}

// The target's logit, in double: NaN for one that is no class (whoever skips validation must not read foreign memory).
template <class T>
LASTLAYER_INLINE inline vec_double<Statistic<T>> target_logits(const Rows& rows, const Group<T>& group) {
  using F = Statistic<T>;
  if (group.z) return to_double<F>(chosen<T>(group, static_cast<int>(rows.z.classes), class_of<F>(rows, group.first, group.count, 0)));
  return by_lane<F>(group.count, [&](int k) {
    const Row<T> row = row_of<T>(rows.z, group.first + k);
    const int64_t y = rows.target[group.first + k];
    return y >= 0 && y < row.classes ? static_cast<double>(widen(row.z[y * row.stride])) : nan;
  });
}

template <class T>
void statistics_rows(const Rows& rows, const Statistics& out, int64_t begin, int64_t end) {
  using F = Statistic<T>;
  each_group<T>(rows, out.entropy, begin, end, [&](const Group<T>& group) LASTLAYER_INLINE {
    const Lanes<F>& s = group.lanes;
    const auto write = [&](double* to, vec_double<F> value) { to_memory<F>(to + group.first, group.count, value); };
    const vec_double<F> l = s.log1p_rest(), log_sum = l + s.undefined();
    if (out.logsumexp) write(out.logsumexp, s.top() + l);
    if (out.logprob) write(out.logprob, 0.0 - ((s.top() - target_logits<T>(rows, group)) + log_sum));
    if (out.entropy) write(out.entropy, log_sum + s.moment / (1.0 + s.rest));
    if (out.cross) write(out.cross, s.spread + s.mass * log_sum);
  });
}

// ---- rows written back ---------------------------------------------------------------------------------------------

template <class T>
void fill_row(const Output& out, int64_t i, Statistic<T> value) {
  T* row = static_cast<T*>(out.tile.data) + i * out.tile.row_stride;
  for (int64_t j = out.from; j < out.to; ++j) row[j * out.tile.class_stride] = narrow<T>(value);
}

// Maps a row: f(index of a vector's first class, its logits) -> the vector to write.
template <class T, class Function>
inline void map_row(const Row<T>& row, const Output& out, int64_t i, const Function& f) {
  constexpr int w = Vec<Statistic<T>>::width;
  T* to = static_cast<T*>(out.tile.data) + i * out.tile.row_stride;
  const int64_t stride = out.tile.class_stride;
  int64_t j = out.from;
  const auto some = [&](int64_t n) {
    store_some(to + j * stride, stride, n, f(j, load_some(row.z + j * row.stride, row.stride, n, Statistic<T>(0))));
    j += n;
  };
  if (row.stride == 1 && stride == 1) {
    if (out.past_cache) {
      const int64_t off = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to + j) % 64 / sizeof(T)) % w;
      if (off && j + w - off < out.to) some(w - off);
      for (; j + w <= out.to; j += w) store_past_cache(to + j, f(j, load(row.z + j)));
    } else {
      for (; j + w <= out.to; j += w) store(to + j, f(j, load(row.z + j)));
    }
  }
  while (j < out.to) some(out.to - j < w ? out.to - j : w);
}

template <class T>
void softmax_rows(const Rows& rows, const Output& out, bool log, int64_t begin, int64_t end) {
  using F = Statistic<T>;
  each_group<T>(rows, false, begin, end, [&](const Group<T>& group) LASTLAYER_INLINE {
    const Lanes<F>& s = group.lanes;
    const vec<F> log_sum = log ? to_narrow<F>(s.log_sum()) : vec<F>{};
    const Share<F> share(s, ones<F>());
    if (group.z) return softmax_columns<T>(group, rows, out, log, log_sum, share);
    for (int k = 0; k < group.count; ++k) {
      const Row<T> row = row_of<T>(rows.z, group.first + k);
      if (log) {
        const vec<F> m = splat(s.max[k]), l = splat(log_sum[k]);
        map_row(row, out, group.first + k, [&](int64_t, vec<F> z) { return (z - m) - l; });
      } else {
        const vec<F> from = splat(share.from[k]), unit = splat(share.unit[k]), unit_low = splat(share.unit_low[k]);
        map_row(row, out, group.first + k, [&](int64_t, vec<F> z) {
          const vec<F> e = term<F>(z, from);
          return e * unit + e * unit_low;
        });
      }
    }
  });
  if (out.past_cache) finish_stores();
}

// Writes one row's gradient, p slope + base; base is 0 but at the target and where there are weights. At a maximum with
// p > 1/2, p = 1 - q: (slope + base) - q slope keeps the digits that p slope + base would cancel.
template <class T>
void gradient_row(const GradientCall& call, int64_t i, int k, const Lanes<Statistic<T>>& s, const Share<Statistic<T>>& slope,
                  const Numbers<Statistic<T>>& numbers) {
  using F = Statistic<T>;
  const double alpha = numbers.alpha[k], beta = numbers.beta[k], gamma = numbers.gamma[k], delta = numbers.delta[k];
  if (alpha == 0 && beta == 0 && gamma == 0 && delta == 0) return fill_row<T>(call.out, i, 0);
  const double max = s.max[k], rest = s.rest[k];
  if (!std::isfinite(max) || !std::isfinite(rest)) return fill_row<T>(call.out, i, static_cast<F>(nan));
  const Row<T> row = row_of<T>(call.rows.z, i);
  const double log_sum = std::log1p(rest), q = rest / (1 + rest), top_slope = alpha - beta * log_sum;
  const vec<F> from = splat(slope.from[k]);
  const F* u = weights_of<F>(call.rows.weight, i);
  const int64_t y = call.rows.target ? call.rows.target[i] - call.first_class : -1;
  const bool here = y >= call.out.from && y < call.out.to && y < row.classes;
  const F z_y = here ? widen(row.z[y * row.stride]) : F(0);  // read before the row is overwritten

  const bool tiny = std::fabs(alpha) < Simd<F>::least * (1 + rest);
  if (beta == 0 && !u && call.inverse_softcap == 0 && !tiny) {
    const vec<F> factor = splat(slope.unit[k]), factor_low = splat(slope.unit_low[k]);
    map_row(row, call.out, i, [&](int64_t, vec<F> z) {
      const vec<F> e = term<F>(z, from);
      return e * factor + e * factor_low;
    });
  } else {
    const vec<F> unit = splat(static_cast<F>(std::ldexp(1 / (1 + rest), -Simd<F>::shift))), one = splat(F(1));
    const vec<F> a = splat(static_cast<F>(alpha)), b = splat(static_cast<F>(beta)), d = splat(static_cast<F>(delta));
    const vec<F> logs = splat(static_cast<F>(log_sum)), floor = splat(Simd<F>::lowest);
    const vec<F> softcap = splat(static_cast<F>(call.inverse_softcap));
    map_row(row, call.out, i, [&](int64_t j, vec<F> z) {
      vec<F> x = z - from;
      x = x < floor ? floor : x;
      vec<F> dz = term<F>(z, from) * unit * (a + b * (x - logs));
      if (u) {
        const vec<F> weight = row.classes - j < Vec<F>::width ? load_some(u + j, 1, row.classes - j, F(0)) : load(u + j);
        const mask<F> top = z == from;
        dz += d * weight;
        if (rest < 1 && any(top)) {
          const vec_double<F> base = delta * to_double<F>(weight);
          dz = top ? to_narrow<F>((top_slope + base) - q * top_slope) : dz;
        }
      }
      const vec<F> t = z * softcap;
      return call.inverse_softcap != 0 ? dz * (one - t * t) : dz;
    });
  }
  if (here) {
    const double base = gamma + (u ? delta * static_cast<double>(u[y]) : 0.0);
    const double x = static_cast<double>(z_y) - max, t = static_cast<double>(z_y) * call.inverse_softcap;
    const double p = std::exp(x) / (1 + rest), slope = p > 0 ? alpha + beta * (x - log_sum) : 0;
    const double dz = x == 0 && rest < 1 ? (top_slope + base) - q * top_slope : p * slope + base;
    T* out = static_cast<T*>(call.out.tile.data) + i * call.out.tile.row_stride + y * call.out.tile.class_stride;
    *out = narrow<T>(static_cast<F>(dz * (call.inverse_softcap != 0 ? 1 - t * t : 1)));
  }
}

template <class T>
inline void gradient_group(const GradientCall& call, const Group<T>& group, const Numbers<Statistic<T>>& numbers) {
  const Share<Statistic<T>> slope(group.lanes, numbers.alpha);  // alpha p: all there is but for the target, in most losses
  if (group.z) return gradient_columns<T>(call, group, slope, numbers);
  for (int k = 0; k < group.count; ++k) gradient_row<T>(call, group.first + k, k, group.lanes, slope, numbers);
}

template <class T>
void gradient_rows(const GradientCall& call, int64_t begin, int64_t end) {
  each_group<T>(call.rows, false, begin, end, [&](const Group<T>& group) LASTLAYER_INLINE {
    const auto given = [&](const double* values, bool used) {
      return used ? by_lane<Statistic<T>>(group.count, [&](int k) { return values[group.first + k]; })
                  : vec_double<Statistic<T>>{};
    };
    const Coefficients& numbers = call.numbers;
    gradient_group<T>(call, group, {given(numbers.alpha, true), given(numbers.beta, true),
                                    given(numbers.gamma, call.rows.target), given(numbers.delta, call.rows.weight.data)});
  });
  if (call.out.past_cache) finish_stores();
}

template <class T>
void loss_rows(const LossCall& call, int64_t begin, int64_t end) {
  using F = Statistic<T>;
  const Rows& rows = call.rows;
  const GradientCall back{rows, call.out, {nullptr, nullptr, nullptr, nullptr}, 0, call.inverse_softcap};
  vec_double<F> subtotal{};
  each_group<T>(rows, false, begin, end, [&](const Group<T>& group) LASTLAYER_INLINE {
    const Lanes<F>& s = group.lanes;
    const vec_double<F> log_sum = s.log_sum(), zero{};
    mask_double<F> live = present<F>(group.count);
    if (rows.target) live = live & (targets_of<F>(rows, group.first, group.count) != rows.ignored);
    const auto factor = [&](const Factor& given) {
      if (given.none()) return zero;
      if (!given.rows) return select(live, given.scale - zero, zero);
      return select(live, given.scale * by_lane<F>(group.count, [&](int k) { return given.rows[group.first + k]; }), zero);
    };
    const vec_double<F> nll = factor(call.nll), cross = factor(call.cross), square = factor(call.square);
    vec_double<F> loss = zero;
    // A factor of 0 silences its term, infinite or not.
    if (!call.nll.none()) loss += select(nll != 0.0, nll * ((s.top() - target_logits<T>(rows, group)) + log_sum), zero);
    if (!call.cross.none()) loss += select(cross != 0.0, cross * (s.spread + s.mass * log_sum), zero);
    const vec_double<F> lse = s.top() + s.log1p_rest();
    if (!call.square.none()) loss += select(square != 0.0, square * lse * lse, zero);
    if (call.losses) to_memory<F>(call.losses + group.first, group.count, loss);
    if (call.subtotals) {
      subtotal += loss;
      const int64_t next = group.first + group.count;
      if (next % call.batch == 0 || next == rows.z.rows) {
        call.subtotals[(next - 1) / call.batch] = sum_lanes<F>(subtotal);
        subtotal = zero;
      }
    }
    if (!call.out.tile.data) return;
    vec_double<F> alpha = nll;
    if (!call.cross.none()) alpha += cross * s.mass;
    if (!call.square.none()) alpha += select(square != 0.0, 2.0 * square * lse, zero);
    gradient_group<T>(back, group, {call.scale * alpha, zero, -call.scale * nll, -call.scale * cross});
  });
  if (call.out.past_cache) finish_stores();
}

// ---- one function per storage type ---------------------------------------------------------------------------------

void fold(const Rows& rows, int64_t begin, int64_t end) {
  by_type(rows.type, [&](auto t) { fold_rows<decltype(t)>(rows, begin, end); });
}

void merge(const States& parts, int64_t count, const States& out, int64_t row) {
  RowState s;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t at = row * count + k;
    const RowState part{parts.max[at], parts.rest[at], parts.moment ? parts.moment[at] : 0,
                        parts.spread ? parts.spread[at] : 0, parts.mass ? parts.mass[at] : 0};
    if (k == 0)
      s = part;
    else
      s.merge(part);
  }
  out.max[row] = s.max;
  out.rest[row] = s.rest;
  if (out.moment) out.moment[row] = s.moment;
  if (out.spread) out.spread[row] = s.spread;
  if (out.mass) out.mass[row] = s.mass;
}

void statistics(const Rows& rows, const Statistics& out, int64_t begin, int64_t end) {
  by_type(rows.type, [&](auto t) { statistics_rows<decltype(t)>(rows, out, begin, end); });
}

void gradient(const GradientCall& call, int64_t begin, int64_t end) {
  by_type(call.rows.type, [&](auto t) { gradient_rows<decltype(t)>(call, begin, end); });
}

void loss(const LossCall& call, int64_t begin, int64_t end) {
  by_type(call.rows.type, [&](auto t) { loss_rows<decltype(t)>(call, begin, end); });
}

void softmax(const Rows& rows, const Output& out, bool log, int64_t begin, int64_t end) {
  by_type(rows.type, [&](auto t) { softmax_rows<decltype(t)>(rows, out, log, begin, end); });
}

}  // namespace

extern const Kernels LASTLAYER_JOIN(rows_, LASTLAYER_ISA);
const Kernels LASTLAYER_JOIN(rows_, LASTLAYER_ISA) = {LASTLAYER_TEXT(LASTLAYER_ISA), fold, merge, statistics, gradient,
                                                        loss, softmax};

}  // namespace lastlayer
