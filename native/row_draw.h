// The draws of one row of logits, from the sums of its blocks on: all classes, or what truncation leaves of them.
// Included by draws.cpp only, inside its own namespace.

// Of float32 sums of masses over a row, relative: the roundings of z - max, of its product with 1 / T, and of 1 / T, each
// half a unit in the last place of exponents whose mean is at most log V.
constexpr double mass_error = 0x1p-18;

constexpr double neutral[steps] = {1, infinity, infinity, 1, 0, 1, 0, 0};

inline double scale_of(double temperature) { return std::min(1 / temperature, std::numeric_limits<double>::max()); }

// What a row asks for.
struct Request {
  double temperature = 1, scale = 1;
  bool greedy = false, cut = false, tempered = false;
  int first = steps;         // the place in the order of the first filter
  double first_scale = 1;    // 1 / T there

  Request(const DrawCall& call, int64_t i) {
    if (call.rule[0]) temperature = call.rule[0][i];
    greedy = temperature == 0;
    scale = greedy ? 1 : scale_of(temperature);
    for (int at = 0; at < steps && !greedy; ++at) {
      if (call.order[at] == lastlayer::temperature) {
        if (!cut) first_scale = scale;
      } else if (!cut && active(call, i, call.order[at])) {
        first = at, cut = true;
      }
    }
    const int step = cut ? call.order[first] : steps;
    tempered = (!cut && !greedy && call.replacement) || step == top_p || step == epsilon_cutoff;
  }

  double mass_scale() const { return cut ? first_scale : scale; }

  static bool active(const DrawCall& call, int64_t i, int step) {
    return call.rule[step] && call.rule[step][i] != neutral[step] && !(step == top_k && call.rule[step][i] >= call.z.classes);
  }
};

// exp((z - m) scale) summed over all classes but the first that has the maximum, which lies in block `where`; the sums
// of the other blocks are there already.
template <class T>
double rest_of(const Source<T>& row, bool raw, int64_t where, double m, double scale, const List<double>& scaled) {
  using F = Statistic<T>;
  alignas(64) F buffer[block];
  double mass[block], rest = 0;
  const F* z = raw ? row.raw(where, buffer) : row(where, buffer);
  masses_of(z, row.size(where), m, scale, mass);
  bool seen = false;
  for (int64_t j = 0; j < row.size(where); ++j) {
    if (!seen && z[j] == m)
      seen = true;
    else
      rest += mass[j];
  }
  for (size_t b = 0; b < scaled.size(); ++b)
    if (static_cast<int64_t>(b) != where) rest += scaled[b];
  return rest;
}

template <class T>
class RowDraw {
  using F = Statistic<T>;
  const DrawCall& call;
  const int64_t i, blocks;
  const Source<T> row;
  const Sums sums;
  const Request asked;
  Scratch& s;
  double top = -infinity, raw_top = -infinity, log_rest = 0;  // of the row with edits; as passed; log1p(rest) as passed
  int64_t highest = 0, raw_highest = 0;                       // the blocks where they are

 public:
  RowDraw(const DrawCall& call, int64_t i, double* at, Scratch& s)
      : call(call), i(i), blocks(blocks_of(call.z.classes)), row(call.z, i, &call), sums(at, blocks), asked(call, i), s(s) {}

  void sum(int64_t from, int64_t to) {
    sum_blocks(row, from, to, asked.mass_scale(), asked.tempered, asked.cut, sums);
  }

  void finish() {
    if (const int64_t found = status(); found != fine) return refuse(found);
    call.status[i] = fine;
    if (call.scaled) return spread(call.scaled + i * row.classes);
    model();
    if (asked.greedy) return greedy();
    if (!asked.cut && call.replacement) return inverse();
    shorten();
    if (!call.replacement && s.list.size() < call.samples) return refuse(too_few);
    call.kept[i] = s.list.size();
    call.kept_mass[i] = share_of_list();
    if (call.replacement)
      from_list();
    else
      one_by_one();
  }

 private:
  // There is no draw; what is written instead nobody reads.
  void refuse(int64_t why) {
    call.status[i] = why;
    if (call.scaled) {
      for (int64_t j = 0; j < row.classes; ++j) call.scaled[i * row.classes + j] = nan;
      return;
    }
    call.kept[i] = 0, call.kept_mass[i] = call.logsumexp[i] = 0;
    for (int64_t at = i * call.samples; at < (i + 1) * call.samples; ++at)
      call.index[at] = call.rank[at] = 0, call.logprob[at] = call.sampled_logprob[at] = 0;
  }

  int64_t status() {
    bool odd = false;
    for (int64_t b = 0; b < blocks; ++b) {
      if (sums.top[b] > top) top = sums.top[b], highest = b;
      if (sums.raw_top[b] > raw_top) raw_top = sums.raw_top[b], raw_highest = b;
      odd = odd || !(sums.raw_mass[b] < infinity) || !(sums.mass[b] < infinity);
    }
    if (!odd && top < infinity && raw_top < infinity) return top == -infinity ? has_nothing : fine;
    alignas(64) F buffer[block];
    for (int64_t b = 0; b < blocks; ++b)
      for (const bool raw : {true, false}) {
        const F* z = raw ? row.raw(b, buffer) : row(b, buffer);
        for (int64_t j = 0; j < row.size(b); ++j)
          if (z[j] != z[j]) return has_nan;
      }
    return has_infinity;
  }

  // What the model says of the row as it was passed.
  void model() {
    if (raw_top == -infinity) {  // all that can be drawn is in the edits
      call.logsumexp[i] = -infinity, log_rest = nan;
      return;
    }
    const double total = cumulate(sums.raw_top, sums.raw_mass, blocks, raw_top, 1, s);
    log_rest = log1p_rest(total, true, raw_highest, raw_top, 1);
    call.logsumexp[i] = raw_top + log_rest;
  }

  // log(total), of the masses in s.scaled; where little is left beside the largest, its digits are those of the rest.
  double log1p_rest(double total, bool raw, int64_t where, double m, double scale) const {
    return std::log1p(total - 1 < 0.5 ? rest_of(row, raw, where, m, scale, s.scaled) : total - 1);
  }

  double logprob(double z) const { return -((raw_top - z) + log_rest) + 0.0; }

  // Writes a draw and what the model says of it.
  void write(int64_t sample, int64_t index, double sampled) {
    const int64_t at = i * call.samples + sample;
    const double z = row.raw_at(index);
    call.index[at] = index;
    call.logprob[at] = logprob(z);
    call.sampled_logprob[at] = sampled + 0.0;
    call.rank[at] = 1 + larger_than(z);
  }

  // How many logits, as passed, are larger: counted in the blocks whose maximum is, or looked up where that was too often.
  int64_t larger_than(double z) {
    constexpr int w = Vec<F>::width;
    constexpr int64_t often = 256;
    if (call.samples > often) {
      if (s.sorted.empty()) {
        for (int64_t j = 0; j < row.classes; ++j) s.sorted.push_back(row.raw_at(j));
        std::sort(s.sorted.begin(), s.sorted.end());
      }
      return static_cast<int64_t>(s.sorted.size()) - not_above(s.sorted, z);
    }
    alignas(64) F buffer[block];
    const F value = static_cast<F>(z);
    int64_t count = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      if (!(sums.raw_top[b] > z)) continue;
      const F* at = row.raw(b, buffer);
      const int64_t n = row.size(b);
      int64_t j = 0;
      for (; j + w <= n; j += w) count += __builtin_popcount(lanes_of(mask<F>(load(at + j) > splat(value))));
      for (; j < n; ++j) count += at[j] > value;
    }
    return count;
  }

  int64_t first_largest() {
    alignas(64) F buffer[block];
    const F* z = row(highest, buffer);
    int64_t j = 0;
    while (z[j] != static_cast<F>(top)) ++j;
    return highest * block + j;
  }

  // T = 0: the first largest logit.
  void greedy() {
    const int64_t j = first_largest();
    call.kept[i] = 1;
    call.kept_mass[i] = std::exp(logprob(row.raw_at(j)));
    for (int64_t sample = 0; sample < call.samples; ++sample) {
      if (sample > 0 && !call.replacement) return refuse(too_few);
      write(sample, j, 0);
    }
  }

  // All classes, with replacement: the inverse CDF over blocks, then within one.
  void inverse() {
    const double total = cumulate(sums.top, sums.mass, blocks, top, asked.scale, s);
    const bool same = !row.edited() && asked.scale == 1;
    const double log_sampled = same ? log_rest : log1p_rest(total, false, highest, top, asked.scale);
    double holes = 0;
    for (int64_t b = 0; b < blocks; ++b) holes += sums.holes[b];
    call.kept[i] = row.classes - static_cast<int64_t>(holes);
    call.kept_mass[i] = row.edited() ? share_left() : 1;
    const bool cache = call.samples > 8;
    if (cache) s.filled.assign(blocks, 0), s.cached.resize(blocks * block);
    alignas(64) F buffer[block];
    double own[block];
    for (int64_t sample = 0; sample < call.samples; ++sample) {
      const double threshold = call.uniforms[i * call.samples + sample] * total;
      const int64_t b = first_above(s.cumulative, s.scaled.data(), threshold);
      const double fraction = (threshold - (b ? s.cumulative[b - 1] : 0)) / s.scaled[b];
      double* mass = cache ? s.cached.data() + b * block : own;
      const F* z = row(b, buffer);
      if (!cache || !s.filled[b]) masses_of(z, row.size(b), sums.top[b], asked.scale, own);
      if (cache && !s.filled[b]) {
        std::memcpy(mass, own, row.size(b) * sizeof(double));
        s.filled[b] = 1;
      }
      const int64_t j = class_at(mass, row.size(b), fraction);
      write(sample, b * block + j, -((top - static_cast<double>(z[j])) * asked.scale + log_sampled));
    }
  }

  // Lists what can be drawn, with its masses.
  void shorten() {
    if (asked.cut)
      truncate();
    else
      gather(-infinity);
    s.list.weigh(asked.scale);
  }

  void spread(double* out) {
    for (int64_t j = 0; j < row.classes; ++j) out[j] = -infinity;
    if (asked.greedy) {
      out[first_largest()] = 0;
      return;
    }
    shorten();
    for (int64_t k = 0; k < s.list.size(); ++k) out[s.list.index[k]] = (s.list.z[k] - s.list.top) / asked.temperature;
  }

  // The probability that the model gives to classes that are not banned.
  double share_left() {
    double banned = 0;
    for (int64_t at = call.edit_start[i]; at < call.edit_start[i + 1]; ++at)
      if (call.edit_value[at] == -infinity) banned += std::exp(logprob(row.raw_at(call.edit_index[at])));
    if (!(banned > 0.5)) return banned > 0 ? 1 - banned : 1;
    gather(-infinity);
    return share_of_list();
  }

  double share_of_list() {
    Shortlist& list = s.list;
    s.some.resize(list.size());
    for (int64_t k = 0; k < list.size(); ++k) s.some[k] = row.raw_at(list.index[k]);
    const double sum = exponentials_of(s.some.data(), list.size(), raw_top, 1, s.some.data());
    return std::min(sum / std::exp(log_rest), 1.0);
  }

  // Lists the classes with logits, after edits, from a bound up.
  void gather(double bound) {
    constexpr int w = Vec<F>::width;
    alignas(64) F buffer[block];
    F low = static_cast<F>(bound);
    if (static_cast<double>(low) > bound) low = std::nextafter(low, static_cast<F>(-infinity));
    low = std::max(low, std::numeric_limits<F>::lowest());
    int64_t count = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      if (!(sums.top[b] >= low)) continue;
      const F* z = row(b, buffer);
      const int64_t n = row.size(b);
      s.list.resize(count + n);
      for (int64_t j = 0; j < n; j += w) {
        const vec<F> each = n - j < w ? load_some(z + j, 1, n - j, static_cast<F>(-infinity)) : load(z + j);
        for (unsigned lanes = lanes_of(mask<F>(each >= splat(low))); lanes; lanes &= lanes - 1) {
          const int64_t k = j + __builtin_ctz(lanes);
          s.list.index[count] = b * block + k;
          s.list.z[count++] = z[k];
        }
      }
    }
    s.list.resize(count);
  }

  // A logit that at least k others reach: the k-th largest of the blocks' maxima, or of their lanes'.
  double reached_by(double k) {
    const bool few = 2 * k <= blocks;
    const double* from = few ? sums.top : sums.lanes;
    const int64_t n = few ? blocks : 16 * blocks;
    if (!(k < n)) return -infinity;
    s.some.assign(from, from + n);
    return ranked(s.some, static_cast<int64_t>(k));
  }

  // The standard deviation of the whole row, -inf left aside.
  double deviation() {
    alignas(64) F buffer[block];
    double sum = 0, square = 0, count = 0;
    for (const bool second : {false, true}) {
      const double mean = second ? sum / count : 0;
      for (int64_t b = 0; b < blocks; ++b) {
        const F* z = row(b, buffer);
        double part[4] = {0, 0, 0, 0};
        for (int64_t j = 0; j < row.size(b); ++j) {
          const double x = static_cast<double>(z[j]) - top;
          if (!(x > -infinity)) continue;
          part[j % 4] += second ? (x - mean) * (x - mean) : x;
          count += !second;
        }
        (second ? square : sum) += (part[0] + part[1]) + (part[2] + part[3]);
      }
    }
    return no_overflow(std::sqrt(square / count));
  }

  // The mass of the whole row in doubles, relative to its maximum.
  double exact_mass(double scale) {
    alignas(64) F buffer[block];
    double mass[block], total = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const F* z = row(b, buffer);
      const int64_t n = row.size(b);
      for (int64_t j = 0; j < n; ++j) mass[j] = z[j];
      total += exponentials_of(mass, n, top, scale, mass);
    }
    return total;
  }

  // Leaves on the list what the filters keep.
  void truncate() {
    const double scale = asked.first_scale;
    const int step = call.order[asked.first];
    const double value = call.rule[step][i];
    double mass = 0, spread = 0, bound = top;
    if (step == top_p || step == epsilon_cutoff) {
      mass = cumulate(sums.top, sums.mass, blocks, top, scale, s);
      // What lies below has together less than 1 - p of the mass; or each less than epsilon of it, and than the largest.
      const double least = step == top_p ? (1 - value) * mass / row.classes : std::min(value * mass, 1.0);
      bound = std::min(top, top + std::log(least * (1 - 4 * mass_error)) / scale);
    } else if (step == top_n_sigma) {
      spread = deviation();
      bound = top - value * spread;
    } else if (step == typical_p || step == eta_cutoff) {
      bound = -infinity;
    } else {
      bound = bound_of_ranks();
    }
    gather(bound - 1e-9 * std::fabs(bound));
    const bool flat = 2 * s.list.size() > row.classes;
    if (flat) gather(-infinity);
    s.list.weigh(scale);
    if (flat) mass = s.list.total();  // of the whole row, in doubles
    double now = scale;
    for (int at = asked.first; at < steps; ++at) {
      const int each = call.order[at];
      if (each == lastlayer::temperature) {
        now = asked.scale;
        s.list.weigh(now);
      } else if (Request::active(call, i, each)) {
        if (at > asked.first || step == typical_p || step == eta_cutoff || step == top_k || step == min_p)
          s.list.filter(each, call.rule[each][i], now, s.list.total(), s.selection);
        else
          first_filter(step, value, scale, mass, flat ? 0 : mass_error, spread);
        if (each == typical_p) s.list.weigh(now);  // the largest may be gone
      }
    }
  }

  // Where top_k and min_p come first, in either order: what neither of them keeps.
  double bound_of_ranks() {
    double bound = -infinity, now = asked.first_scale;
    for (int at = asked.first; at < steps; ++at) {
      const int step = call.order[at];
      if (step == lastlayer::temperature) now = asked.scale;
      if (step == lastlayer::temperature || !Request::active(call, i, step)) continue;
      const double value = call.rule[step][i];
      if (step == top_k)
        bound = std::max(bound, reached_by(value));
      else if (step == min_p)
        bound = std::max(bound, top + std::log(value * (1 - 4 * mass_error)) / now);  // roundings may keep what is near
      else
        break;
    }
    return std::min(bound, top);
  }

  // The first filter, which looks at the whole row, of which the list is a part.
  void first_filter(int step, double value, double scale, double mass, double error, double spread) {
    Shortlist& list = s.list;
    if (step == top_n_sigma) {
      const double least = -(value * spread);
      return list.keep_if([&](int64_t k) { return list.z[k] - list.top >= least; });
    }
    // Whether the roundings of the sums could decide otherwise.
    const double low = value * mass * (1 - error), high = value * mass * (1 + error);
    bool close = false;
    if (step == top_p) {
      Selection& selection = s.selection;
      list.select(value * mass, list.mass.data(), selection);
      close = error > 0 && ((selection.before > 0 && selection.before >= low) || selection.reached < high);
      if (!close) return list.keep_if([&](int64_t at) { return selection.holds(at); });
    } else {
      for (const double each : list.mass) close = close || (each >= std::min(low, 1.0) && each < std::min(high, 1.0));
    }
    list.filter(step, value, scale, close ? exact_mass(scale) : mass, s.selection);
  }

  // log of the list's mass but that of the first largest, which is 1: all its digits.
  double log_rest_of_list() const {
    double rest = 0;
    bool seen = false;
    for (int64_t k = 0; k < s.list.size(); ++k) {
      if (!seen && s.list.z[k] == s.list.top)
        seen = true;
      else
        rest += s.list.mass[k];
    }
    return std::log1p(rest);
  }

  void from_list() {
    const Shortlist& list = s.list;
    const double log_sampled = log_rest_of_list();
    s.cumulative.resize(list.size());
    double total = 0;
    for (int64_t k = 0; k < list.size(); ++k) s.cumulative[k] = total += list.mass[k];
    for (int64_t sample = 0; sample < call.samples; ++sample) {
      const int64_t k = first_above(s.cumulative, list.mass.data(), call.uniforms[i * call.samples + sample] * total);
      write(sample, list.index[k], -((list.top - list.z[k]) * asked.scale + log_sampled));
    }
  }

  // Without replacement: the log-probability of a draw is that among what is left.
  void one_by_one() {
    Shortlist& list = s.list;
    take_out(list, call.uniforms + i * call.samples, call.samples, [&] { list.weigh(asked.scale); },
             [&](int64_t sample, int64_t k, double others) {
               const double likely = -std::log1p(others / list.mass[k]);
               const double unlikely = (list.z[k] - list.top) * asked.scale - std::log(others + list.mass[k]);
               write(sample, list.index[k], list.mass[k] > others ? likely : unlikely);
             });
  }
};
