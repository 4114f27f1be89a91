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

// Finds the end of the shortest beginning, by ascending key and then position, whose weight reaches the target. A
// histogram of the weights by key finds the bin where that happens, then one of the bin's entries, and so on: n steps
// or a little more, nothing is sorted but the last few.
class Selection {
  static constexpr int bins = 1024, small = 128, levels = 8;
  List<int64_t> subset, next;
  List<double> weights;

 public:
  double key = infinity;  // of the last entry that is inside, and its position
  int64_t position = std::numeric_limits<int64_t>::max();
  double before = 0, reached = 0;  // the weight of all entries ahead of it, and with it

  bool holds(double k, int64_t at) const { return k < key || (k == key && at <= position); }

  // key_of(i) and weight_of(i) >= 0 for i in [0, n). At least one entry is inside; all are if the target is not reached.
  template <class Key, class Weight>
  void find(int64_t n, double target, const Key& key_of, const Weight& weight_of) {
    key = infinity, position = std::numeric_limits<int64_t>::max(), before = reached = 0;
    subset.resize(n);
    for (int64_t i = 0; i < n; ++i) subset[i] = i;
    for (int level = 0; static_cast<int64_t>(subset.size()) > small && level < levels; ++level) {
      double low = infinity, high = -infinity;
      for (const int64_t i : subset) low = std::min(low, key_of(i)), high = std::max(high, key_of(i));
      const double scale = (bins - 1) / (high - low);
      if (!(scale > 0 && scale < infinity)) break;
      const auto bin_of = [&](int64_t i) { return static_cast<int>((key_of(i) - low) * scale); };
      weights.assign(bins, 0);
      for (const int64_t i : subset) weights[bin_of(i)] += weight_of(i);
      int found = 0;
      double sum = before;
      while (found < bins && !(weights[found] > 0 && sum + weights[found] >= target)) sum += weights[found++];
      if (found == bins) return;  // all inside, or rounding: the last bins decide nothing
      before = sum;
      next.clear();
      for (const int64_t i : subset)
        if (bin_of(i) == found) next.push_back(i);
      subset.swap(next);
    }
    std::sort(subset.begin(), subset.end(), [&](int64_t a, int64_t b) {
      return key_of(a) < key_of(b) || (key_of(a) == key_of(b) && a < b);
    });
    for (const int64_t i : subset) {
      key = key_of(i), position = i, reached = before + weight_of(i);
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
  double top = -infinity, total = 0;

  int64_t size() const { return static_cast<int64_t>(index.size()); }

  void clear() {
    index.clear();
    z.clear();
  }

  void add(int64_t j, double logit) {
    index.push_back(j);
    z.push_back(logit);
  }

  // Sets the masses, relative to the largest.
  void weigh(double scale) {
    top = -infinity;
    for (const double each : z) top = std::max(top, each);
    mass.resize(z.size());
    total = exponentials_of(z.data(), size(), top, scale, mass.data());
  }

  template <class Keep>
  void keep_if(const Keep& keep) {
    int64_t n = 0;
    for (int64_t i = 0; i < size(); ++i)
      if (keep(i)) index[n] = index[i], z[n] = z[i], mass[n] = mass[i], ++n;
    index.resize(n), z.resize(n), mass.resize(n);
  }

  double deviation() const {
    double mean = 0, square = 0;
    for (const double each : z) mean += each - top;
    mean /= size();
    for (const double each : z) square += (each - top - mean) * (each - top - mean);
    return std::sqrt(square / size());
  }

  // Applies one filter. `whole` is the mass, relative to the largest, of all that earlier filters kept.
  void filter(int step, double value, double scale, double whole, Selection& selection) {
    const auto negative = [&](int64_t i) { return -z[i]; };
    const auto inside = [&](const auto& key_of) {
      keep_if([&](int64_t i) { return selection.holds(key_of(i), i); });
    };
    if (step == top_k) {
      if (value >= size()) return;
      selection.find(size(), value, negative, [](int64_t) { return 1.0; });
      return inside(negative);
    }
    if (step == top_p) {
      selection.find(size(), value * whole, negative, [&](int64_t i) { return mass[i]; });
      return inside(negative);
    }
    if (step == min_p) return keep_if([&](int64_t i) { return mass[i] >= value; });
    if (step == top_n_sigma) {
      const double least = -(value * (deviation() * scale));
      return keep_if([&](int64_t i) { return (z[i] - top) * scale >= least; });
    }
    double product = 0;
    if (step != epsilon_cutoff)
      for (int64_t i = 0; i < size(); ++i) product += mass[i] > 0 ? mass[i] * ((z[i] - top) * scale) : 0;
    const double log_whole = std::log(whole), entropy = log_whole - product / whole;
    if (step == typical_p) {
      const auto distance = [&](int64_t i) { return std::fabs((log_whole - (z[i] - top) * scale) - entropy); };
      selection.find(size(), value * whole, distance, [&](int64_t i) { return mass[i]; });
      keep_if([&](int64_t i) { return selection.holds(distance(i), i) && mass[i] > 0; });
      return;
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
      node = i < end ? i : last;
    }
    return node;
  }
};
