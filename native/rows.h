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

// One double per row and field; moment, spread and mass are null where nobody asks for them.
struct States {
  double *max, *rest, *moment, *spread, *mass;
};

// What `finish` makes of a state: one double per row and field; null where nobody asks.
struct Statistics {
  double *logsumexp, *logprob, *entropy, *cross;
};

struct Coefficients {
  const double *alpha, *beta, *gamma, *delta;
};

struct GradientCall {
  Tile z, out;  // the same memory, or disjoint
  const double *max, *rest;
  Coefficients numbers;
  const int64_t* target;  // null: no gamma
  int64_t first_class;
  Weights weight;
  double inverse_softcap;  // 0: none
};

// Each works on the rows [begin, end), so that threads take disjoint ranges and a row never depends on its neighbours.
struct Kernels {
  const char* name;
  void (*fold)(DType, const Tile& z, const Weights&, const States&, int64_t begin, int64_t end);
  // fold, then finish; target null: no logprob.
  void (*statistics)(DType, const Tile& z, const Weights&, const int64_t* target, const States&, const Statistics&,
                     int64_t begin, int64_t end);
  void (*gradient)(DType, const GradientCall&, int64_t begin, int64_t end);
  void (*softmax)(DType, const Tile& z, const Tile& out, bool log, int64_t begin, int64_t end);
};

extern const Kernels rows_baseline, rows_avx2, rows_avx512;

}  // namespace lastlayer
