// draw, multinomial and the steps of draws over tiles: the specification of _draws.py as one pass over each row.
//
// Compiled once per instruction set (LASTLAYER_ISA). A row is read once for the sums of its blocks (blocks.h). Without
// truncation the draw is the inverse CDF over these sums, then over the classes of the one block chosen; with it, over
// the few classes that the sums leave in question (shortlist.h). What decides is computed in doubles, but for the sums of
// float blocks, whose error is some units in the last place; where that could decide what top_p keeps, the whole row is
// summed again in doubles. A row's draws depend on its own logits, numbers and uniforms alone.
#include "draws.h"

#include <algorithm>
#include <vector>

#include "isa.h"

namespace lastlayer {
namespace {

#include "vec.h"

#include "exp.h"

constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();

#include "blocks.h"

#include "shortlist.h"

#include "inverse.h"

#include "row_draw.h"

#include "weights.h"

template <class T>
void draw_rows(const DrawCall& call, int64_t begin, int64_t end) {
  Scratch s;
  s.sums.resize(sums_of(call.z.classes));
  for (int64_t i = begin; i < end; ++i) {
    s.sorted.clear();
    RowDraw<T> one(call, i, s.sums.data(), s);
    one.sum(0, blocks_of(call.z.classes));
    one.finish();
  }
}

// ---- one function per storage type ---------------------------------------------------------------------------------

void draw(const DrawCall& call, int64_t begin, int64_t end) {
  by_type(call.type, [&](auto t) { draw_rows<decltype(t)>(call, begin, end); });
}

void sum(const DrawCall& call, int64_t row, int64_t from, int64_t to, double* sums) {
  by_type(call.type, [&](auto t) {
    Scratch s;
    RowDraw<decltype(t)>(call, row, sums, s).sum(from, to);
  });
}

void finish(const DrawCall& call, int64_t row, double* sums) {
  by_type(call.type, [&](auto t) {
    Scratch s;
    RowDraw<decltype(t)>(call, row, sums, s).finish();
  });
}

void multinomial(const WeightsCall& call, int64_t begin, int64_t end) {
  Scratch s;
  by_type(call.type, [&](auto t) {
    for (int64_t i = begin; i < end; ++i) draw_weights<decltype(t)>(call, i, s);
  });
}

void masses(DType type, const Tile& z, const double* temperature, const Masses& out, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_of(z.classes);
  List<double> room(sums_of(z.classes));
  const Sums sums(room.data(), blocks);
  by_type(type, [&](auto t) {
    for (int64_t i = begin; i < end; ++i) {
      const double scale = scale_of(temperature[i]);
      sum_blocks(Source<decltype(t)>(z, i), 0, blocks, scale, true, false, sums);
      std::memcpy(out.top + i * blocks, sums.top, blocks * sizeof(double));
      std::memcpy(out.mass + i * blocks, sums.mass, blocks * sizeof(double));
    }
  });
}

void choose(const Masses& given, int64_t blocks, const double* temperature, const double* uniforms, int64_t samples,
            int64_t* chosen, double* fraction, int64_t begin, int64_t end) {
  Scratch s;
  for (int64_t i = begin; i < end; ++i) {
    const double *top = given.top + i * blocks, *mass = given.mass + i * blocks;
    const double scale = scale_of(temperature[i]);
    double lowest, highest;
    range_of(top, blocks, lowest, highest);
    const double total = cumulate(top, mass, blocks, highest, scale, s);
    for (int64_t at = i * samples; at < (i + 1) * samples; ++at) {
      const double threshold = uniforms[at] * total;
      const int64_t b = chosen[at] = first_above(s.cumulative, s.scaled.data(), threshold);
      fraction[at] = (threshold - (b ? s.cumulative[b - 1] : 0)) / s.scaled[b];
    }
  }
}

void inside(DType type, const Tile& z, const double* temperature, const double* fraction, int64_t* index, int64_t begin,
            int64_t end) {
  by_type(type, [&](auto t) {
    using F = Statistic<decltype(t)>;
    alignas(64) F buffer[block];
    double mass[block];
    for (int64_t i = begin; i < end; ++i) {
      const Source<decltype(t)> row(z, i);
      const F* at = row.raw(0, buffer);
      const double scale = scale_of(temperature[i]);
      F top = at[0];
      for (int64_t j = 1; j < row.classes; ++j) top = at[j] > top ? at[j] : top;
      masses_of(at, row.classes, top, scale, mass);
      index[i] = class_at(mass, row.classes, fraction[i]);
    }
  });
}

void topk(DType type, const Tile& z, int64_t k, double* value, int64_t* index, int64_t begin, int64_t end) {
  by_type(type, [&](auto t) {
    using F = Statistic<decltype(t)>;
    constexpr int w = Vec<F>::width;
    const int64_t blocks = blocks_of(z.classes);
    alignas(64) F buffer[block], lanes[w];
    List<double> tops(blocks), all, some;
    List<int64_t> order;
    Shortlist list;
    Selection selection;
    for (int64_t i = begin; i < end; ++i) {
      const Source<decltype(t)> row(z, i);
      all.clear();
      for (int64_t b = 0; b < blocks; ++b) {
        vec<F> lowest;
        const vec<F> maxima = lane_maxima(row.raw(b, buffer), row.size(b), lowest);
        tops[b] = maximum<F>(maxima);
        store(lanes, maxima);
        all.insert(all.end(), lanes, lanes + w);
      }
      double bound = -infinity;
      some = 2 * k <= blocks ? tops : all;
      if (k < static_cast<int64_t>(some.size())) bound = ranked(some, k);
      int64_t count = 0;
      for (int64_t b = 0; b < blocks; ++b) {
        if (!(tops[b] >= bound)) continue;
        const F* at = row.raw(b, buffer);
        list.resize(count + row.size(b));
        for (int64_t j = 0; j < row.size(b); ++j)
          if (at[j] >= bound) list.index[count] = b * block + j, list.z[count++] = at[j];
      }
      list.resize(count), list.mass.resize(count);
      list.select(static_cast<double>(k), nullptr, selection);
      list.keep_if([&](int64_t at) { return selection.holds(at); });
      order.resize(list.size());
      for (int64_t at = 0; at < list.size(); ++at) order[at] = at;
      std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return list.z[a] > list.z[b] || (list.z[a] == list.z[b] && a < b);
      });
      for (int64_t at = 0; at < k; ++at) {
        const bool there = at < list.size();  // else there was a NaN
        value[i * k + at] = there ? list.z[order[at]] : nan;
        index[i * k + at] = there ? list.index[order[at]] : 0;
      }
    }
  });
}

}  // namespace

extern const DrawKernels LASTLAYER_JOIN(draws_, LASTLAYER_ISA);
const DrawKernels LASTLAYER_JOIN(draws_, LASTLAYER_ISA) = {draw, sum, finish, multinomial, masses, choose, inside, topk};

}  // namespace lastlayer
