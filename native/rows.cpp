// fold, gradient, softmax and log_softmax of rows of logits: the specification of _algebra.py as SIMD loops.
//
// Compiled once per instruction set (LASTLAYER_ISA). A row is walked in blocks that stay in L1: first the block's
// maximum, then its terms, relative to the row's maximum so far. Invariant after each block: the running state is the
// state of all classes seen. Terms carry a factor 2^shift, so that none of them is subnormal (see exp_scaled).
#include "rows.h"

#define LASTLAYER_JOIN_(a, b) a##b
#define LASTLAYER_JOIN(a, b) LASTLAYER_JOIN_(a, b)
#define LASTLAYER_TEXT_(a) #a
#define LASTLAYER_TEXT(a) LASTLAYER_TEXT_(a)

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace lastlayer {
namespace {

#include "vec.h"

#include "exp.h"

constexpr int block = 1024;  // elements; a multiple of every vector width

template <class T>
using Statistic = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
struct Row {
  const T* z;
  int64_t stride, classes;
};

// A block of logits as whole vectors of F: read in place where that is possible, else converted into `buffer`.
// The last vector is filled up with -inf, which adds nothing to a sum and never is a maximum of its own.
template <class T>
inline const Statistic<T>* view(const Row<T>& row, int64_t from, int n, Statistic<T>* buffer) {
  using F = Statistic<T>;
  if constexpr (std::is_same_v<T, F>)
    if (row.stride == 1 && n % Vec<F>::width == 0) return row.z + from;
  widen_block(row.z + from * row.stride, row.stride, n, buffer);
  for (int i = n; i % Vec<F>::width; ++i) buffer[i] = -std::numeric_limits<F>::infinity();
  return buffer;
}

// Class weights likewise, filled up with 0.
template <class F>
inline const F* view_weights(const F* weight, int64_t from, int n, F* buffer) {
  if (n % Vec<F>::width == 0) return weight + from;
  for (int i = 0; i < n; ++i) buffer[i] = weight[from + i];
  for (int i = n; i % Vec<F>::width; ++i) buffer[i] = 0;
  return buffer;
}

template <class F>
inline F block_maximum(const F* z, int n) {
  constexpr int w = Vec<F>::width;
  vec<F> a = load(z), b = a, c = a, d = a;
  int i = w;
  for (; i + 4 * w <= n; i += 4 * w) {
    const vec<F> za = load(z + i), zb = load(z + i + w), zc = load(z + i + 2 * w), zd = load(z + i + 3 * w);
    a = za > a ? za : a;
    b = zb > b ? zb : b;
    c = zc > c ? zc : c;
    d = zd > d ? zd : d;
  }
  for (; i < n; i += w) {
    const vec<F> za = load(z + i);
    a = za > a ? za : a;
  }
  a = b > a ? b : a;
  c = d > c ? d : c;
  return maximum<F>(c > a ? c : a);
}

struct RowState {
  double max = -std::numeric_limits<double>::infinity(), rest = 0, moment = 0, spread = 0, mass = 0;
  bool empty = true;

  // Refers all sums to a new, larger maximum: `merge` with a state that has no terms yet.
  void raise(double m) {
    if (empty) {
      max = m;
      return;
    }
    const double gap = m - max, decay = std::exp(-gap), total = decay * (1 + rest);
    moment = decay > 0 ? decay * moment + gap * total : 0;
    if (mass != 0) spread += mass * gap;
    rest = total;
    max = m;
  }
};

// The sums of a fold, lane by lane: chains of at most 8 additions in F, then double, so that the error does not grow
// with the number of classes. Ties with the maximum are counted, not added, so that they count exactly.
template <class F, bool with_moment, bool with_weight>
struct Sums {
  vec<F> terms{}, moments{}, spreads{}, masses{};
  vec_double<F> term_total{}, moment_total{}, spread_total{}, mass_total{};
  mask<F> ties{};

  inline void add(vec<F> z, vec<F> m, vec<F> u, bool infinite) {
    const vec<F> zero{};
    const mask<F> tie = z == m;
    vec<F> x, low;
    difference<F>(z, m, x, low);
    if (infinite) x = tie ? zero : x;
    const vec<F> e = tie ? zero : exp_scaled<F>(x, low);
    ties -= tie;
    terms += e;
    if constexpr (with_moment) moments += (e > zero ? -x : zero) * e;
    if constexpr (with_weight) masses += u;
    if constexpr (with_weight) spreads += u != zero ? -x * u : zero;
  }

  inline void widen_sums() {
    term_total += to_double<F>(terms);
    if constexpr (with_moment) moment_total += to_double<F>(moments);
    if constexpr (with_weight) spread_total += to_double<F>(spreads);
    if constexpr (with_weight) mass_total += to_double<F>(masses);
    terms = moments = spreads = masses = vec<F>{};
  }
};

// Adds one block to a row's state.
template <class F, bool with_moment, bool with_weight>
inline void add_block(const F* z, int n, const F* weight, RowState& s) {
  constexpr int w = Vec<F>::width;
  const F top = block_maximum(z, n);
  const bool raised = s.empty || top > s.max;
  if (raised) s.raise(top);
  const F max = static_cast<F>(s.max);
  const vec<F> m = splat(max);
  const bool infinite = !(max - max == 0);  // -inf so far, +inf or NaN: x is 0 at the maximum
  Sums<F, with_moment, with_weight> sums;
  const auto step = [&](int i) { sums.add(load(z + i), m, with_weight ? load(weight + i) : vec<F>{}, infinite); };
  for (int i = 0; i < n; i += 8 * w) {
    if (i + 8 * w <= n)
      for (int k = 0; k < 8; ++k) step(i + k * w);
    else
      for (int k = i; k < n; k += w) step(k);
    sums.widen_sums();
  }
  double count = 0;
  for (int lane = 0; lane < w; ++lane) count += static_cast<double>(sums.ties[lane]);
  const double unit = std::ldexp(1.0, -Simd<F>::shift);
  if (raised && count > 0) count -= 1;  // the class kept apart; before the small terms, or they would round away
  s.rest += unit * sum_lanes<F>(sums.term_total) + count;
  if constexpr (with_moment) s.moment += unit * sum_lanes<F>(sums.moment_total);
  if constexpr (with_weight) s.spread += sum_lanes<F>(sums.spread_total);
  if constexpr (with_weight) s.mass += sum_lanes<F>(sums.mass_total);
  s.empty = false;
}

template <class T, bool with_moment, bool with_weight>
inline RowState fold_row(const Row<T>& row, const Statistic<T>* weight) {
  using F = Statistic<T>;
  alignas(64) F buffer[block], weights[block];
  RowState s;
  for (int64_t from = 0; from < row.classes; from += block) {
    const int n = static_cast<int>(row.classes - from < block ? row.classes - from : block);
    const int padded = (n + Vec<F>::width - 1) / Vec<F>::width * Vec<F>::width;
    const F* u = with_weight ? view_weights(weight, from, n, weights) : nullptr;
    add_block<F, with_moment, with_weight>(view(row, from, n, buffer), padded, u, s);
  }
  return s;
}

template <class T>
inline Row<T> row_of(const Tile& tile, int64_t i) {
  return {static_cast<const T*>(tile.data) + i * tile.row_stride, tile.class_stride, tile.classes};
}

#include "narrow.h"

// Calls f(i, row, state) for each row; few classes are folded across rows.
template <class T, bool with_moment, bool with_weight, class Function>
inline void each_state_as(const Tile& z, const Weights& weight, int64_t begin, int64_t end, const Function& f) {
  using F = Statistic<T>;
  if (z.classes <= few) {
    constexpr int w = Vec<F>::width;
    vec<F> columns[few], weights[with_weight ? few : 1];
    for (int64_t i = begin; i < end; i += w) {
      const int count = static_cast<int>(end - i < w ? end - i : w);
      rows_to_columns<T>(z, i, count, columns);
      if constexpr (with_weight) weights_to_columns<F>(weight, z.classes, i, count, weights);
      const Lanes<F> lanes = fold_lanes<F, with_moment, with_weight>(columns, static_cast<int>(z.classes), weights);
      for (int k = 0; k < count; ++k) f(i + k, row_of<T>(z, i + k), lanes.row(k));
    }
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    const F* u = with_weight ? static_cast<const F*>(weight.data) + i * weight.row_stride : nullptr;
    f(i, row_of<T>(z, i), fold_row<T, with_moment, with_weight>(row_of<T>(z, i), u));
  }
}

template <class T, class Function>
inline void each_state(const Tile& z, const Weights& u, bool moment, int64_t begin, int64_t end, const Function& f) {
  if (moment && u.data) return each_state_as<T, true, true>(z, u, begin, end, f);
  if (moment) return each_state_as<T, true, false>(z, u, begin, end, f);
  if (u.data) return each_state_as<T, false, true>(z, u, begin, end, f);
  return each_state_as<T, false, false>(z, u, begin, end, f);
}

template <class T>
void fold_rows(const Tile& z, const Weights& weight, const States& out, int64_t begin, int64_t end) {
  each_state<T>(z, weight, out.moment, begin, end, [&](int64_t i, const Row<T>&, const RowState& s) {
    out.max[i] = s.max;
    out.rest[i] = s.rest;
    if (out.moment) out.moment[i] = s.moment;
    if (out.spread) out.spread[i] = s.spread;
    if (out.mass) out.mass[i] = s.mass;
  });
}

template <class T>
void statistics_rows(const Tile& z, const Weights& weight, const int64_t* target, const States& state,
                     const Statistics& out, int64_t begin, int64_t end) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  each_state<T>(z, weight, out.entropy, begin, end, [&](int64_t i, const Row<T>& row, const RowState& s) {
    const double l = std::log1p(s.rest), log_sum = std::isfinite(s.max) ? l : nan;
    out.logsumexp[i] = s.max + l;
    if (target) {  // one that is no class gives NaN: whoever skips validation must not read foreign memory
      const int64_t y = target[i];
      const double z_y = y >= 0 && y < row.classes ? static_cast<double>(widen(row.z[y * row.stride])) : nan;
      out.logprob[i] = -((s.max - z_y) + log_sum);
    }
    if (out.entropy) out.entropy[i] = log_sum + s.moment / (1 + s.rest);
    if (out.cross) out.cross[i] = s.spread + s.mass * log_sum;
    state.max[i] = s.max;
    state.rest[i] = s.rest;
    state.mass[i] = s.mass;
  });
}

// ---- rows written back ---------------------------------------------------------------------------------------------

template <class T>
void fill_row(const Tile& out, int64_t i, Statistic<T> value) {
  T* row = static_cast<T*>(out.data) + i * out.row_stride;
  for (int64_t j = 0; j < out.classes; ++j) row[j * out.class_stride] = narrow<T>(value);
}

// Maps a row block by block: f(index of the vector in the row, its logits) -> the vector to write.
template <class T, class Function>
inline void map_row(const Row<T>& row, const Tile& out, int64_t i, const Function& f) {
  using F = Statistic<T>;
  constexpr int w = Vec<F>::width;
  alignas(64) F buffer[block], results[block];
  T* to = static_cast<T*>(out.data) + i * out.row_stride;
  for (int64_t from = 0; from < row.classes; from += block) {
    const int n = static_cast<int>(row.classes - from < block ? row.classes - from : block);
    const F* z = view(row, from, n, buffer);
    F* results_at = results;
    bool direct = false;
    if constexpr (std::is_same_v<T, F>) {
      direct = out.class_stride == 1 && n % w == 0;
      if (direct) results_at = to + from;
    }
    for (int k = 0; k < n; k += w) store<F>(results_at + k, f(from + k, load(z + k)));
    if (!direct) narrow_block(results_at, n, to + from * out.class_stride, out.class_stride);
  }
}

template <class T>
void softmax_rows(const Tile& z, const Tile& out, bool log, int64_t begin, int64_t end) {
  using F = Statistic<T>;
  if (z.classes <= few) return softmax_lanes<T>(z, out, log, begin, end);
  for (int64_t i = begin; i < end; ++i) {
    const Row<T> row = row_of<T>(z, i);
    const RowState s = fold_row<T, false, false>(row, nullptr);
    if (!std::isfinite(s.max) || !(s.rest == s.rest)) {
      fill_row<T>(out, i, std::numeric_limits<F>::quiet_NaN());
      continue;
    }
    const vec<F> m = splat(static_cast<F>(s.max));
    if (log) {
      const vec<F> log_sum = splat(static_cast<F>(std::log1p(s.rest)));
      map_row(row, out, i, [&](int64_t, vec<F> zi) { return (zi - m) - log_sum; });
    } else {
      const double share = std::ldexp(1 / (1 + s.rest), -Simd<F>::shift);
      const vec<F> unit = splat(static_cast<F>(share)), unit_low = splat(static_cast<F>(share - static_cast<F>(share)));
      map_row(row, out, i, [&](int64_t, vec<F> zi) {
        vec<F> x, low;
        difference<F>(zi, m, x, low);
        const vec<F> e = exp_scaled<F>(x, low);
        return e * unit + e * unit_low;
      });
    }
  }
}

template <class T>
void gradient_rows(const GradientCall& call, int64_t begin, int64_t end) {
  using F = Statistic<T>;
  if (call.z.classes <= few) return gradient_lanes<T>(call, begin, end);
  for (int64_t i = begin; i < end; ++i) {
    const double alpha = call.numbers.alpha[i], beta = call.numbers.beta[i];
    const double delta = call.weight.data ? call.numbers.delta[i] : 0, gamma = call.target ? call.numbers.gamma[i] : 0;
    if (alpha == 0 && beta == 0 && gamma == 0 && delta == 0) {
      fill_row<T>(call.out, i, 0);
      continue;
    }
    const double max = call.max[i], rest = call.rest[i];
    if (!std::isfinite(max) || !std::isfinite(rest)) {
      fill_row<T>(call.out, i, std::numeric_limits<F>::quiet_NaN());
      continue;
    }
    const Row<T> row = row_of<T>(call.z, i);
    const double log_sum = std::log1p(rest), q = rest / (1 + rest), top_slope = alpha - beta * log_sum;
    const vec<F> m = splat(static_cast<F>(max)), unit = splat(static_cast<F>(std::ldexp(1 / (1 + rest), -Simd<F>::shift)));
    const vec<F> a = splat(static_cast<F>(alpha)), b = splat(static_cast<F>(beta)), d = splat(static_cast<F>(delta));
    const vec<F> logs = splat(static_cast<F>(log_sum)), one = splat(F(1)), floor = splat(Simd<F>::lowest);
    const vec<F> softcap = splat(static_cast<F>(call.inverse_softcap));
    const F* u = call.weight.data ? static_cast<const F*>(call.weight.data) + i * call.weight.row_stride : nullptr;
    const int64_t y = call.target ? call.target[i] - call.first_class : -1;
    const bool here = y >= 0 && y < row.classes;
    const F z_y = here ? widen(row.z[y * row.stride]) : F(0);  // read before the row is overwritten

    // At the maximum p = 1 - q: (slope + base) - q slope keeps the digits that p slope + base would cancel.
    const auto at_top = [&](double base) { return static_cast<F>((top_slope + base) - q * top_slope); };
    const auto weights_at = [&](int64_t j) {
      vec<F> v{};
      const int n = row.classes - j < Vec<F>::width ? static_cast<int>(row.classes - j) : Vec<F>::width;
      if (n == Vec<F>::width) return load(u + j);
      for (int k = 0; k < n; ++k) v[k] = u[j + k];
      return v;
    };
    map_row(row, call.out, i, [&](int64_t j, vec<F> zi) {
      vec<F> x, low;
      difference<F>(zi, m, x, low);
      const vec<F> p = exp_scaled<F>(x, low) * unit;
      x = x < floor ? floor : x;
      vec<F> dz = p * (a + b * (x - logs));
      if (u) dz += d * weights_at(j);
      const mask<F> top = zi == m;
      if (any<F>(top))
        for (int k = 0; k < Vec<F>::width; ++k)
          if (top[k]) dz[k] = at_top(u && j + k < row.classes ? delta * static_cast<double>(u[j + k]) : 0.0);
      const vec<F> t = zi * softcap;
      return call.inverse_softcap != 0 ? dz * (one - t * t) : dz;
    });
    if (here) {
      const double base = gamma + (u ? delta * static_cast<double>(u[y]) : 0.0);
      const double x = static_cast<double>(z_y) - max;
      const double t = call.inverse_softcap != 0 ? static_cast<double>(z_y) * call.inverse_softcap : 0;
      const double p = std::exp(x) / (1 + rest), slope = p > 0 ? alpha + beta * (x - log_sum) : 0;
      const double dz = z_y == static_cast<F>(max) ? (top_slope + base) - q * top_slope : p * slope + base;
      T* out = static_cast<T*>(call.out.data) + i * call.out.row_stride + y * call.out.class_stride;
      *out = narrow<T>(static_cast<F>(dz * (1 - t * t)));
    }
  }
}

// ---- one function per storage type ---------------------------------------------------------------------------------

template <class Call>
void by_type(DType type, const Call& call) {
  switch (type) {
    case DType::float32: return call(float{});
    case DType::float64: return call(double{});
    case DType::float16: return call(half{});
    case DType::bfloat16: return call(bfloat{});
  }
}

void fold(DType type, const Tile& z, const Weights& weight, const States& out, int64_t begin, int64_t end) {
  by_type(type, [&](auto t) { fold_rows<decltype(t)>(z, weight, out, begin, end); });
}

void statistics(DType type, const Tile& z, const Weights& weight, const int64_t* target, const States& state,
                const Statistics& out, int64_t begin, int64_t end) {
  by_type(type, [&](auto t) { statistics_rows<decltype(t)>(z, weight, target, state, out, begin, end); });
}

void gradient(DType type, const GradientCall& call, int64_t begin, int64_t end) {
  by_type(type, [&](auto t) { gradient_rows<decltype(t)>(call, begin, end); });
}

void softmax(DType type, const Tile& z, const Tile& out, bool log, int64_t begin, int64_t end) {
  by_type(type, [&](auto t) { softmax_rows<decltype(t)>(z, out, log, begin, end); });
}

}  // namespace

extern const Kernels LASTLAYER_JOIN(rows_, LASTLAYER_ISA);
const Kernels LASTLAYER_JOIN(rows_, LASTLAYER_ISA) = {LASTLAYER_TEXT(LASTLAYER_ISA), fold, statistics, gradient,
                                                        softmax};

}  // namespace lastlayer
