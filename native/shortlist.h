// The classes of a row that truncation may keep, in the order of the classes, and the filters on them, in doubles.
// Included by draws.cpp only, inside its own namespace. _draws.py says what each filter keeps.

// A type of this namespace makes the vector's code this build's own: the linker would take any build's.
template <class T>
struct Own : std::allocator<T> {
  template <class U>
  struct rebind { using other = Own<U>; };
};

template <class T>
using List = std::vector<T, Own<T>>;

// The least and the largest of n numbers.
inline void range_of(const double* v, int64_t n, double& least, double& largest) {
  constexpr int w = Vec<double>::width;
  vec<double> low = splat(infinity), high = splat(-infinity);
  for (int64_t i = 0; i < n; i += w) {
    const bool some = n - i < w;
    low = smaller(some ? load_some(v + i, 1, n - i, infinity) : load(v + i), low);
    high = larger(some ? load_some(v + i, 1, n - i, -infinity) : load(v + i), high);
  }
  least = low[0], largest = high[0];
  for (int k = 1; k < w; ++k) least = low[k] < least ? low[k] : least, largest = high[k] > largest ? high[k] : largest;
}

inline double sum_of(const double* v, int64_t n) {
  constexpr int w = Vec<double>::width;
  vec<double> sum{};
  for (int64_t i = 0; i < n; i += w) sum += n - i < w ? load_some(v + i, 1, n - i, 0.0) : load(v + i);
  double total = 0;
  for (int k = 0; k < w; ++k) total += sum[k];
  return total;
}

// A deviation as a finite number: 0 times it is 0, where squares of doubles have overflown too.
inline double no_overflow(double deviation) {
  constexpr double most = std::numeric_limits<double>::max();
  return deviation < most ? deviation : most;
}

// Finds the end of the shortest beginning, by ascending key and then position, whose weight reaches the target. A
// histogram of the weights by key finds the bin where that happens, then one of the bin's entries, and so on: n steps
// or a little more, nothing is sorted but the last few.
class Selection {
  static constexpr int bins = 1024, small = 128, levels = 8;
  List<int64_t> subset;
  List<double> some_keys, weights;

 public:
  List<double> keys;       // of the entries, set by the caller
  double key = infinity;   // of the last entry that is inside, and its position
  int64_t position = std::numeric_limits<int64_t>::max();
  double before = 0, reached = 0;  // the weight of all entries ahead of it, and with it

  bool holds(int64_t at) const { return keys[at] < key || (keys[at] == key && at <= position); }

  // Weights are >= 0; null: each is 1. At least one entry is inside; all are if the target is not reached.
  void find(double target, const double* weight) {
    key = infinity, position = std::numeric_limits<int64_t>::max(), before = reached = 0;
    const auto weight_of = [&](int64_t i) { return weight ? weight[i] : 1.0; };
    const double* from = keys.data();
    int64_t n = static_cast<int64_t>(keys.size());
    bool whole = true;  // the subset is all entries
    const auto entry = [&](int64_t k) { return whole ? k : subset[k]; };
    for (int level = 0; n > small && level < levels; ++level) {
      double low, high;
      range_of(from, n, low, high);
      const double scale = (bins - 1) / (high - low);
      if (!(scale > 0 && scale < infinity)) break;
      const auto bin_of = [&](int64_t k) { return static_cast<int>((from[k] - low) * scale); };
      weights.assign(bins, 0);
      for (int64_t k = 0; k < n; ++k) weights[bin_of(k)] += weight_of(entry(k));
      int found = 0;
      double sum = before;
      while (found < bins && !(weights[found] > 0 && sum + weights[found] >= target)) sum += weights[found++];
      if (found == bins) return;  // not reached
      before = sum;
      if (whole) subset.resize(n);
      int64_t count = 0;
      for (int64_t k = 0; k < n; ++k)
        if (bin_of(k) == found) subset[count++] = entry(k);
      n = count, whole = false;
      subset.resize(n), some_keys.resize(n);
      for (int64_t k = 0; k < n; ++k) some_keys[k] = keys[subset[k]];
      from = some_keys.data();
    }
    if (whole) {
      subset.resize(n);
      for (int64_t k = 0; k < n; ++k) subset[k] = k;
    }
    std::sort(subset.begin(), subset.end(),
              [&](int64_t a, int64_t b) { return keys[a] < keys[b] || (keys[a] == keys[b] && a < b); });
    for (const int64_t i : subset) {
      key = keys[i], position = i, reached = before + weight_of(i);
      if (reached >= target) return;
      before = reached;
    }
    key = infinity, position = std::numeric_limits<int64_t>::max();
  }
};

// e^((z - m) scale) for each of n logits, and their sum.
inline double exponentials_of(const double* z, int64_t n, double m, double scale, double* mass) {
  constexpr int w = Vec<double>::width;
  const double unit = std::ldexp(1.0, -Simd<double>::shift);
  const vec<double> none{};
  vec<double> sum{};
  for (int64_t i = 0; i < n; i += w) {
    const int64_t some = n - i < w ? n - i : w;
    const vec<double> at = some == w ? load(z + i) : load_some(z + i, 1, some, -infinity);
    const vec<double> x = (at - m) * scale;  // what is lost here is lost of the logits' last digit
    const vec<double> e = term<double>(x, none) * unit;
    sum += e;
    if (some == w)
      store(mass + i, e);
    else
      store_some(mass + i, 1, some, e);
  }
  double total = 0;
  for (int k = 0; k < w; ++k) total += sum[k];
  return total;
}

class Shortlist {
 public:
  List<int64_t> index;
  List<double> z, mass;
  double top = -infinity;

  int64_t size() const { return static_cast<int64_t>(index.size()); }
  double total() const { return sum_of(mass.data(), size()); }

  void resize(int64_t n) { index.resize(n), z.resize(n); }

  // Sets the masses, relative to the largest.
  void weigh(double scale) {
    double least;
    range_of(z.data(), size(), least, top);
    mass.resize(z.size());
    exponentials_of(z.data(), size(), top, scale, mass.data());
  }

  template <class Keep>
  void keep_if(const Keep& keep) {
    int64_t n = 0;
    for (int64_t i = 0; i < size(); ++i)
      if (keep(i)) index[n] = index[i], z[n] = z[i], mass[n] = mass[i], ++n;
    resize(n), mass.resize(n);
  }

  double deviation() const {
    double mean = 0, square = 0;
    for (const double each : z) mean += each - top;
    mean /= size();
    for (const double each : z) square += (each - top - mean) * (each - top - mean);
    return no_overflow(std::sqrt(square / size()));
  }

  // Finds what has together the weight, the largest logits first.
  void select(double target, const double* weight, Selection& selection) const {
    selection.keys.resize(z.size());
    for (size_t i = 0; i < z.size(); ++i) selection.keys[i] = -z[i];
    selection.find(target, weight);
  }

  // Applies one filter. `whole` is the mass, relative to the largest, of all that earlier filters kept.
  void filter(int step, double value, double scale, double whole, Selection& selection) {
    const auto inside = [&] { keep_if([&](int64_t i) { return selection.holds(i); }); };
    if (step == top_k) {
      if (value >= size()) return;
      select(value, nullptr, selection);
      return inside();
    }
    if (step == top_p) {
      select(value * whole, mass.data(), selection);
      return inside();
    }
    if (step == min_p) return keep_if([&](int64_t i) { return mass[i] >= value; });
    if (step == top_n_sigma) {
      const double least = -(value * deviation());  // whatever the temperature
      return keep_if([&](int64_t i) { return z[i] - top >= least; });
    }
    double product = 0;
    if (step != epsilon_cutoff)
      for (int64_t i = 0; i < size(); ++i) product += mass[i] > 0 ? mass[i] * ((z[i] - top) * scale) : 0;
    const double log_whole = std::log(whole), entropy = log_whole - product / whole;
    if (step == typical_p) {
      selection.keys.resize(z.size());
      for (int64_t i = 0; i < size(); ++i)
        selection.keys[i] = std::fabs((log_whole - (z[i] - top) * scale) - entropy);
      selection.find(value * whole, mass.data());
      return keep_if([&](int64_t i) { return selection.holds(i) && mass[i] > 0; });
    }
    const double least = step == epsilon_cutoff ? value : std::min(value, std::sqrt(value) * std::exp(-entropy));
    const double threshold = std::min(least * whole, 1.0);
    keep_if([&](int64_t i) { return mass[i] >= threshold; });
  }
};

// Sums of masses in a tree, 32 to a node: a draw and a change cost a few dozen additions, and no sum is a difference.
class Tree {
  static constexpr int64_t fan = 32;
  List<List<double>> levels;

  double sum(const List<double>& of, int64_t node) const {
    double total = 0;
    const int64_t end = std::min<int64_t>((node + 1) * fan, of.size());
    for (int64_t i = node * fan; i < end; ++i) total += of[i];
    return total;
  }

 public:
  explicit Tree(const List<double>& masses) : levels{masses} {
    while (levels.back().size() > 1) {
      const List<double>& below = levels.back();
      List<double> above((below.size() + fan - 1) / fan);
      for (size_t node = 0; node < above.size(); ++node) above[node] = sum(below, node);
      levels.push_back(std::move(above));
    }
  }

  double total() const { return levels.back()[0]; }

  void set(int64_t i, double mass) {
    levels[0][i] = mass;
    for (size_t level = 1; level < levels.size(); ++level) {
      i /= fan;
      levels[level][i] = sum(levels[level - 1], i);
    }
  }

  // The first entry whose cumulative mass exceeds u times the total; where rounding hides it, the last that has a mass.
  int64_t find(double u) const {
    double left = u * total();
    int64_t node = 0;
    for (size_t level = levels.size() - 1; level-- > 0;) {
      const List<double>& of = levels[level];
      int64_t i = node * fan, last = -1;
      const int64_t end = std::min<int64_t>(i + fan, of.size());
      for (; i < end; ++i) {
        if (of[i] > 0) last = i;
        if (left < of[i]) break;
        left -= of[i];
      }
      if (i == end) left = infinity;
      node = i < end ? i : last;
    }
    return node;
  }
};

// Draws without replacement from what is listed and weighed: each takes its entry out. Where what is left is next to
// nothing, it is weighed anew. found(sample, entry, mass of the others that are left).
template <class Weigh, class Found>
void take_out(Shortlist& list, const double* uniforms, int64_t samples, const Weigh& weigh, const Found& found) {
  constexpr double little = 1e-200;
  Tree tree(list.mass);
  for (int64_t sample = 0; sample < samples; ++sample) {
    if (!(tree.total() > little)) {
      list.keep_if([&](int64_t k) { return list.index[k] >= 0; });
      weigh();
      tree = Tree(list.mass);
    }
    const int64_t k = tree.find(uniforms[sample]);
    tree.set(k, 0);
    found(sample, k, tree.total());
    list.index[k] = -1;
  }
}
