// The draws of one row of weights. Included by draws.cpp only, inside its own namespace.

// Draws from one row of weights: blocks are summed in doubles, relative to a power of two near the row's largest.
template <class T>
void draw_weights(const WeightsCall& call, int64_t i, Scratch& s) {
  using F = Statistic<T>;
  const Source<T> row(call.p, i);
  const int64_t blocks = blocks_of(row.classes);
  alignas(64) F buffer[block];
  double largest = 0;
  bool odd = false;
  int64_t count = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const F* p = row.raw(b, buffer);
    for (int64_t j = 0; j < row.size(b); ++j) {
      odd |= !(p[j] >= 0) | !(p[j] < static_cast<F>(infinity));
      largest = p[j] > largest ? static_cast<double>(p[j]) : largest;
      count += p[j] > 0;
    }
  }
  call.status[i] = odd ? has_nan : count == 0 ? has_nothing : !call.replacement && count < call.samples ? too_few : fine;
  if (call.status[i] != fine) return;
  int64_t* out = call.index + i * call.samples;
  const double* uniforms = call.uniforms + i * call.samples;
  if (!call.replacement) {
    Shortlist& list = s.list;
    list.resize(count);
    int64_t at = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const F* p = row.raw(b, buffer);
      for (int64_t j = 0; j < row.size(b); ++j)
        if (p[j] > 0) list.index[at] = b * block + j, list.z[at++] = p[j];
    }
    const auto weigh = [&] {
      int exponent;
      double least, most;
      range_of(list.z.data(), list.size(), least, most);
      std::frexp(most, &exponent);
      list.mass.resize(list.z.size());
      for (size_t k = 0; k < list.z.size(); ++k) list.mass[k] = std::ldexp(list.z[k], -exponent);
    };
    weigh();
    return take_out(list, uniforms, call.samples, weigh, [&](int64_t sample, int64_t k, double) { out[sample] = list.index[k]; });
  }
  int exponent;
  std::frexp(largest, &exponent);
  const double unit = std::ldexp(1.0, std::min(-exponent, 1000));
  s.scaled.assign(blocks, 0), s.cumulative.resize(blocks);
  double total = 0, mass[block];
  const auto masses = [&](int64_t b) {
    const F* p = row.raw(b, buffer);
    for (int64_t j = 0; j < row.size(b); ++j) mass[j] = static_cast<double>(p[j]) * unit;
  };
  for (int64_t b = 0; b < blocks; ++b) {
    masses(b);
    double part[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int64_t j = 0; j < row.size(b); ++j) part[j % 8] += mass[j];
    for (const double each : part) s.scaled[b] += each;
    s.cumulative[b] = total += s.scaled[b];
  }
  for (int64_t sample = 0; sample < call.samples; ++sample) {
    const double threshold = uniforms[sample] * total;
    const int64_t b = first_above(s.cumulative, s.scaled.data(), threshold);
    masses(b);
    out[sample] = b * block + class_at(mass, row.size(b), (threshold - (b ? s.cumulative[b - 1] : 0)) / s.scaled[b]);
  }
}
