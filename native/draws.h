// The draw kernels' interface: what module.cpp asks of each build of draws.cpp.
// The specification is src/lastlayer/_draws.py; names and rules are the same.
#pragma once
#include "rows.h"

namespace lastlayer {

// Classes whose mass is summed together; blocks begin at multiples of it.
constexpr int64_t block = 1024;

inline int64_t blocks_of(int64_t classes) { return (classes + block - 1) / block; }

// The steps of a draw, numbered as in _draws.STEPS.
enum Step : int { temperature, top_n_sigma, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, steps };

enum Status : int64_t { fine = 0, has_nan, has_infinity, has_nothing, too_few };

struct DrawCall {
  DType type;
  Tile z;
  const double* uniforms;  // (N, S)
  int64_t samples;
  const double* rule[steps];  // a number per row; null: no row has this step
  int order[steps];
  // Row i reads edit_value[k] instead of the logit of class edit_index[k], for k in [edit_start[i], edit_start[i + 1]).
  const int64_t *edit_start, *edit_index;  // null: none
  const double* edit_value;
  bool replacement;
  int64_t *index, *rank;  // (N, S), like the next two
  double *logprob, *sampled_logprob;
  int64_t *kept, *status;  // (N), like the next two
  double *kept_mass, *logsumexp;
  double* scaled;  // null; or (N, V): instead of draws, (z - max) / T of the classes kept, -inf of the others
};

struct WeightsCall {
  DType type;
  Tile p;
  const double* uniforms;
  int64_t samples;
  bool replacement;
  int64_t *index, *status;
};

// Per row and block: the maximum, and the sum of exp((z - maximum) / T).
struct Masses {
  double *top, *mass;
};

struct DrawKernels {
  // Rows [begin, end), whole.
  void (*draw)(const DrawCall&, int64_t begin, int64_t end);
  // The same of one row in two steps, for threads to share the first: what was summed of the blocks [from, to) lies in
  // `sums`, of sums_of(classes) doubles.
  void (*sum)(const DrawCall&, int64_t row, int64_t from, int64_t to, double* sums);
  void (*finish)(const DrawCall&, int64_t row, double* sums);
  void (*multinomial)(const WeightsCall&, int64_t begin, int64_t end);
  void (*masses)(DType, const Tile& z, const double* temperature, const Masses&, int64_t begin, int64_t end);
  void (*choose)(const Masses&, int64_t blocks, const double* temperature, const double* uniforms, int64_t samples,
                 int64_t* chosen, double* fraction, int64_t begin, int64_t end);
  void (*inside)(DType, const Tile& z, const double* temperature, const double* fraction, int64_t* index, int64_t begin,
                 int64_t end);
  void (*topk)(DType, const Tile& z, int64_t k, double* value, int64_t* index, int64_t begin, int64_t end);
};

// Doubles that `sum` fills of a row: five per block, and the maxima of 16 lanes.
inline int64_t sums_of(int64_t classes) { return (5 + 16) * blocks_of(classes); }

extern const DrawKernels draws_baseline, draws_avx2, draws_avx512;

}  // namespace lastlayer
