// The inverse CDF in two steps: over the masses of blocks, then over the classes of one. Included by draws.cpp only,
// inside its own namespace.

struct Scratch {
  List<double> sums, scaled, cumulative, some, cached, sorted;
  List<char> filled;
  Shortlist list;
  Selection selection;
};

// The k-th largest.
inline double ranked(List<double>& v, int64_t k) {
  std::nth_element(v.begin(), v.begin() + k - 1, v.end(), [](double a, double b) { return a > b; });
  return v[k - 1];
}

// Masses of blocks, and their cumulative sums, relative to the largest logit.
inline double cumulate(const double* top, const double* mass, int64_t blocks, double highest, double scale, Scratch& s) {
  s.scaled.resize(blocks), s.cumulative.resize(blocks);
  exponentials_of(top, blocks, highest, scale, s.scaled.data());
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) s.cumulative[b] = total += s.scaled[b] *= mass[b];
  return total;
}

// How many are no larger, of numbers in ascending order.
inline int64_t not_above(const List<double>& ascending, double value) {
  int64_t low = 0, high = static_cast<int64_t>(ascending.size());
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    ascending[middle] <= value ? low = middle + 1 : high = middle;
  }
  return low;
}

// The first whose cumulative sum exceeds the threshold; where rounding hides it, the last that has a mass.
inline int64_t first_above(const List<double>& cumulative, const double* mass, double threshold) {
  int64_t at = not_above(cumulative, threshold);
  if (at == static_cast<int64_t>(cumulative.size()))
    while (at > 0 && !(mass[--at] > 0)) {
    }
  return at;
}

// Block masses in doubles, `parts` classes summed together, and which class has a share of the mass before it.
constexpr int64_t part = 32;

template <class F>
inline void masses_of(const F* z, int64_t n, double top, double scale, double* mass) {
  for (int64_t j = 0; j < n; ++j) mass[j] = z[j];
  exponentials_of(mass, n, top, scale, mass);
}

inline int64_t class_at(const double* mass, int64_t n, double fraction) {
  double sums[block / part];
  const int64_t parts = (n + part - 1) / part;
  double total = 0;
  for (int64_t k = 0; k < parts; ++k) {
    double sum[4] = {0, 0, 0, 0};
    const int64_t end = std::min(n, (k + 1) * part);
    int64_t j = k * part;
    for (; j + 4 <= end; j += 4)
      for (int lane = 0; lane < 4; ++lane) sum[lane] += mass[j + lane];
    for (; j < end; ++j) sum[0] += mass[j];
    total += sums[k] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  double left = fraction * total;
  for (int64_t k = 0; k < parts; ++k) {
    if (!(left < sums[k]) && k + 1 < parts) {
      left -= sums[k];
      continue;
    }
    for (int64_t j = k * part; j < std::min(n, (k + 1) * part); ++j) {
      if (left < mass[j]) return j;
      left -= mass[j];
    }
    // Rounding: the class that ends here, or before, is the one.
    for (int64_t j = std::min(n, (k + 1) * part) - 1; j >= 0; --j)
      if (mass[j] > 0) return j;
  }
  return 0;
}
