// The row kernels' interface: what module.cpp asks of each build of rows.cpp.
// The specification is src/lastlayer/_algebra.py; names and formulas are the same.
#pragma once
#include <cstdint>

namespace lastlayer {

enum class DType : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

// A tile of logits: element (i, j) lies at data + i * row_stride + j * class_stride, counted in elements.
struct Tile {
  void* data;
  int64_t rows, classes, row_stride, class_stride;
};

// Class weights u, float for 16- and 32-bit logits and double for float64; row_stride 0 is one vector for all rows.
struct Weights {
  const void* data;  // null: none
  int64_t row_stride;
};

// One double per row and field; null where nobody asks for it.
struct States {
  double *max, *rest, *moment, *spread, *mass;
};

// What `finish` makes of a state: one double per row and field; null where nobody asks.
struct Statistics {
  double *logsumexp, *logprob, *entropy, *cross;
};

// A number per row: scale times the row's entry of `rows`, or scale alone where there are none.
struct Factor {
  double scale;
  const double* rows;

  bool none() const { return scale == 0; }
};

struct Coefficients {
  const double *alpha, *beta, *gamma, *delta;
};

// What every kernel reads. Where the states are `folded` they are read, else made, and kept where `state` has room.
struct Rows {
  DType type;
  Tile z;
  Weights weight;
  const int64_t* target;  // null: none
  int64_t ignored;        // a target whose row counts as absent
  States state;
  bool folded;
};

// Where rows are written: the classes [from, to) of them. The same memory as the logits, or disjoint.
struct Output {
  Tile tile;  // data null: nothing is written
  int64_t from, to;
  bool past_cache;  // too large to be read again from a cache: stores go around it
};

struct GradientCall {
  Rows rows;  // folded
  Output out;
  Coefficients numbers;
  int64_t first_class;
  double inverse_softcap;  // 0: none
};

// loss = nll (-log p_y) + cross sum_j u_j (-log p_j) + square lse^2 of each row; with `out`, its gradient by the logits,
// times `scale`. The tile holds all classes.
struct LossCall {
  Rows rows;
  Output out;
  Factor nll, cross, square;
  double scale, inverse_softcap;
  double* losses;    // null, or one per row
  double* subtotals;  // null, or one per `batch` rows: the sum of their losses
  int64_t batch;
};

// Each works on the rows [begin, end), so that threads take disjoint ranges and a row never depends on its neighbours.
struct Kernels {
  const char* name;
  void (*fold)(const Rows&, int64_t begin, int64_t end);
  // Joins `parts` states, of consecutive classes, that lie side by side: what `fold` itself does with a long row.
  void (*merge)(const States& parts, int64_t count, const States& out, int64_t row);
  void (*statistics)(const Rows&, const Statistics&, int64_t begin, int64_t end);
  void (*gradient)(const GradientCall&, int64_t begin, int64_t end);
  void (*loss)(const LossCall&, int64_t begin, int64_t end);
  void (*softmax)(const Rows&, const Output&, bool log, int64_t begin, int64_t end);
};

// Rows of up to so many classes are finished together, up to 16 of them: a cache holds them until they are written.
constexpr int64_t grouped = 2048;

// A long row is folded in segments of so many classes, which may be shared out among threads; the last takes the rest.
constexpr int64_t segment = int64_t{1} << 16;

inline int64_t segments(int64_t classes) { return classes < 2 * segment ? 1 : classes / segment; }

extern const Kernels rows_baseline, rows_avx2, rows_avx512;

}  // namespace lastlayer
