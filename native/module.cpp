// The Python module: picks the instruction set, divides rows among threads, calls the row kernels.
// Arguments are addresses and strides that lastlayer/_backends/cpu.py has checked; nothing is validated twice here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <system_error>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "draws.h"
#include "rows.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace lastlayer;

namespace {

struct Build {
  const Kernels* rows;
  const DrawKernels* draws;
};

std::vector<Build> supported() {
  std::vector<Build> found;
#if defined(LASTLAYER_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    found.push_back({&rows_avx512, &draws_avx512});
#endif
#if defined(LASTLAYER_HAVE_AVX2)
  // Every processor with AVX2 and FMA has F16C.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({&rows_avx2, &draws_avx2});
#endif
  found.push_back({&rows_baseline, &draws_baseline});
  return found;
}

const Kernels* active = nullptr;
const DrawKernels* drawing = nullptr;

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Build& build : supported()) names.emplace_back(build.rows->name);
  return names;
}

void use(const std::string& name) {
  for (const Build& build : supported())
    if (name == build.rows->name) {
      active = build.rows, drawing = build.draws;
      return;
    }
  throw std::invalid_argument("instruction set '" + name + "' is not supported by this processor or build");
}

// The OpenMP runtime that PyTorch has loaded. Its threads spin for a while after each of PyTorch's operations: beside
// threads of our own they would take the processors away; used together they are there at once.
using Team = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);  // GOMP_parallel
std::atomic<Team> team{nullptr};

// Finds the runtime among the loaded libraries below a directory; false: there is none, and threads are our own.
bool share_threads(const std::string& directory) {
#if defined(__linux__)
  struct Search {
    std::string directory, found;
  } search{directory, ""};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto& search = *static_cast<Search*>(data);
        const std::string path = info->dlpi_name;
        const bool inside = path.compare(0, search.directory.size(), search.directory) == 0;
        const std::string name = path.substr(path.rfind('/') + 1);
        const auto is = [&](const char* part) { return name.find(part) != std::string::npos; };
        if (!inside || !(is("gomp") || is("iomp") || is("libomp"))) return 0;
        search.found = path;
        return 1;
      },
      &search);
  void* library = search.found.empty() ? nullptr : dlopen(search.found.c_str(), RTLD_NOLOAD | RTLD_LAZY);
  if (!library) return false;
  team = reinterpret_cast<Team>(dlsym(library, "GOMP_parallel"));
  // Its threads do not survive a fork; the child makes its own.
  static const int registered = pthread_atfork(nullptr, nullptr, [] { team = nullptr; });
  (void)registered;
  return team != nullptr;
#else
  (void)directory;
  return false;
#endif
}

// Calls f(begin, end) for parts of [0, items) whose ends are multiples of `unit`. Threads of our own live for one call: no
// pool that could spin against another library's, nothing to lose in a forked child.
template <class Function>
void parallel(int64_t items, int64_t unit, int64_t elements_each, int threads, const Function& f) {
  const Team shared = team;
  const int64_t grain = shared ? 1 << 15 : 1 << 17;  // elements below which a thread costs more than it saves
  const int64_t units = (items + unit - 1) / unit;
  const int64_t wanted = std::min<int64_t>({threads, units, items * elements_each / grain});
  if (wanted <= 1) return f(0, items);
  const auto part = [&](int64_t k, int64_t parts) {
    f(units * k / parts * unit, std::min(units * (k + 1) / parts * unit, items));
  };
  if (shared) {
    struct Job {
      const decltype(part)& run;
      int64_t parts;
      std::atomic<int64_t> next;
    } job{part, std::min(units, 4 * wanted), {0}};  // more parts than threads: whoever is early takes another
    const auto work = [](void* data) {
      Job& job = *static_cast<Job*>(data);
      for (int64_t k = job.next++; k < job.parts; k = job.next++) job.run(k, job.parts);
    };
    return shared(work, &job, static_cast<unsigned>(wanted), 0);
  }
  std::vector<std::thread> others;
  for (int64_t t = 1; t < wanted; ++t) {
    try {
      others.emplace_back(part, t, wanted);
    } catch (const std::system_error&) {  // no more threads to be had: do it here
      part(t, wanted);
    }
  }
  part(0, wanted);
  for (std::thread& other : others) other.join();
}

int64_t largest_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return int64_t{32} << 20;
}

// Asks for huge pages behind memory that is about to be written for the first time: touching 4 KB pages one by one costs
// more than the arithmetic. Small or foreign memory, or a system without them: nothing happens.
void reserve(uintptr_t address, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t huge = uintptr_t{1} << 21;
  const uintptr_t begin = (address + huge - 1) & ~(huge - 1), end = (address + bytes) & ~(huge - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

using TileArgs = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t>;  // address, rows, classes, strides

Tile tile(const TileArgs& a) {
  return {reinterpret_cast<void*>(std::get<0>(a)), std::get<1>(a), std::get<2>(a), std::get<3>(a), std::get<4>(a)};
}

template <class T>
T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

using WeightArgs = std::tuple<uintptr_t, int64_t>;  // address (0: none), row stride

Weights weights(const WeightArgs& a) { return {at<const void>(std::get<0>(a)), std::get<1>(a)}; }

int64_t size_of(DType type) {
  return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
}

// `out` with address 0: nothing is written.
Output output(DType type, const Tile& z, const TileArgs& args) {
  static const int64_t cache = largest_cache();
  const Tile out = tile(args);
  const bool past_cache = out.data && out.data != z.data && out.rows * out.classes * size_of(type) >= cache;
  return {out, 0, out.classes, past_cache};
}

// Room for the states of some rows; moment and the weights' sums only where they are asked for.
struct Room {
  std::vector<double> values;
  States states;

  Room(int64_t rows, bool moment, bool weighted) : values((2 + moment + 2 * weighted) * rows) {
    double* field = values.data();
    const auto next = [&](bool wanted) { return wanted ? std::exchange(field, field + rows) : nullptr; };
    states = {next(true), next(true), next(moment), next(weighted), next(weighted)};
  }
};

// Long rows, fewer than would keep all threads busy: their segments are folded side by side, and joined as `fold` itself
// joins them. Else nothing is done, and the kernels fold rows while they are at it.
class LongRows {
  const Rows& rows;
  int threads;

  States skip(const States& s, int64_t n) const {
    const auto after = [n](double* field) { return field ? field + n : nullptr; };
    return {s.max + n, s.rest + n, after(s.moment), after(s.spread), after(s.mass)};
  }

 public:
  const int64_t parts;
  const bool split;

  LongRows(const Rows& rows, int threads)
      : rows(rows), threads(threads), parts(segments(rows.z.classes)), split(parts > 1 && threads > 1 && rows.z.rows < 4 * threads) {}

  // f(row, first class, one past the last class) for each segment.
  template <class Function>
  void each(const Function& f) const {
    const int64_t classes = rows.z.classes;
    parallel(rows.z.rows * parts, 1, segment, threads, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t part = item % parts;
        f(item / parts, part * segment, part + 1 < parts ? (part + 1) * segment : classes);
      }
    });
  }

  void fold(const States& out) const {
    const Room room(rows.z.rows * parts, out.moment, rows.weight.data);
    const int64_t size = size_of(rows.type), weight_size = rows.type == DType::float64 ? 8 : 4;
    each([&](int64_t row, int64_t from, int64_t to) {
      Rows part = rows;
      part.z.data = static_cast<char*>(rows.z.data) + (row * rows.z.row_stride + from * rows.z.class_stride) * size;
      part.z.rows = 1;
      part.z.classes = to - from;
      if (part.weight.data)
        part.weight.data = static_cast<const char*>(rows.weight.data) + (row * rows.weight.row_stride + from) * weight_size;
      part.state = skip(room.states, row * parts + from / segment);
      active->fold(part, 0, 1);
    });
    for (int64_t row = 0; row < rows.z.rows; ++row) active->merge(room.states, parts, out, row);
  }
};

// Folds first where long rows must be shared out: f(rows, whether they were) does the rest.
template <class Function>
void with_states(Rows rows, bool moment, int threads, const Function& f) {
  const LongRows split(rows, threads);
  if (!split.split) return f(rows, split);
  Room room(rows.z.rows, moment, rows.weight.data);
  States& s = rows.state;
  const States own = room.states;
  s = {s.max ? s.max : own.max, s.rest ? s.rest : own.rest, s.moment ? s.moment : own.moment,
       s.spread ? s.spread : own.spread, s.mass ? s.mass : own.mass};
  split.fold(s);
  rows.folded = true;
  f(rows, split);
}

Rows rows_of(int dtype, const TileArgs& z, const WeightArgs& weight, uintptr_t target, int64_t ignored = -1) {
  return {static_cast<DType>(dtype), tile(z), weights(weight), at<const int64_t>(target), ignored, {}, false};
}

// `state` is one block of 5 x rows doubles: max, rest, moment, spread, mass.
void fold(int dtype, const TileArgs& z, const WeightArgs& weight, uintptr_t state, bool moment, int threads) {
  nb::gil_scoped_release release;
  Rows rows = rows_of(dtype, z, weight, 0);
  const int64_t n = rows.z.rows;
  double* s = at<double>(state);
  const bool weighted = rows.weight.data;
  rows.state = {s, s + n, moment ? s + 2 * n : nullptr, weighted ? s + 3 * n : nullptr, weighted ? s + 4 * n : nullptr};
  const LongRows split(rows, threads);
  if (split.split) return split.fold(rows.state);
  parallel(n, 1, rows.z.classes, threads, [&](int64_t begin, int64_t end) { active->fold(rows, begin, end); });
}

// `state` is one block of 3 x rows doubles: max, rest, mass (0: not wanted); `out` one of 4 x rows: logsumexp, logprob,
// entropy, cross.
void statistics(int dtype, const TileArgs& z, const WeightArgs& weight, uintptr_t target, uintptr_t state_at,
                uintptr_t out_at, bool entropy, int threads) {
  nb::gil_scoped_release release;
  Rows rows = rows_of(dtype, z, weight, target);
  const int64_t n = rows.z.rows;
  double *s = at<double>(state_at), *o = at<double>(out_at);
  if (s) rows.state = {s, s + n, nullptr, nullptr, rows.weight.data ? s + 2 * n : nullptr};
  const Statistics out{o, target ? o + n : nullptr, entropy ? o + 2 * n : nullptr, rows.weight.data ? o + 3 * n : nullptr};
  with_states(rows, entropy, threads, [&](const Rows& rows, const LongRows&) {
    parallel(n, 1, rows.folded ? 1 : rows.z.classes, threads,
             [&](int64_t begin, int64_t end) { active->statistics(rows, out, begin, end); });
  });
}

// `numbers` is one block of 4 x rows doubles: alpha, beta, gamma, delta.
void gradient(int dtype, const TileArgs& z, const TileArgs& out, uintptr_t max, uintptr_t rest, uintptr_t numbers,
              uintptr_t target, int64_t first_class, const WeightArgs& weight, double inverse_softcap, int threads) {
  nb::gil_scoped_release release;
  Rows rows = rows_of(dtype, z, weight, target);
  rows.state = {at<double>(max), at<double>(rest), nullptr, nullptr, nullptr};
  rows.folded = true;
  const double* c = at<const double>(numbers);
  const int64_t n = rows.z.rows;
  const GradientCall call{rows, output(rows.type, rows.z, out), {c, c + n, c + 2 * n, c + 3 * n}, first_class, inverse_softcap};
  const LongRows split(rows, threads);
  if (!split.split)
    return parallel(n, 1, rows.z.classes, threads, [&](int64_t begin, int64_t end) { active->gradient(call, begin, end); });
  split.each([&](int64_t row, int64_t from, int64_t to) {
    GradientCall part = call;
    part.out.from = from, part.out.to = to;
    active->gradient(part, row, row + 1);
  });
}

using FactorArgs = std::tuple<double, uintptr_t>;  // scale, address of a number per row (0: none)

Factor factor(const FactorArgs& a) { return {std::get<0>(a), at<const double>(std::get<1>(a))}; }

// Returns the sum of the rows' losses, added up in an order that the number of threads does not change; `losses` (0:
// none) receives them one by one, `out` (address 0: none) the gradient.
double loss(int dtype, const TileArgs& z, const TileArgs& out, const WeightArgs& weight, uintptr_t target, int64_t ignored,
            const FactorArgs& nll, const FactorArgs& cross, const FactorArgs& square, double scale, double inverse_softcap,
            uintptr_t losses, int threads) {
  nb::gil_scoped_release release;
  const Rows given = rows_of(dtype, z, weight, target, ignored);
  const int64_t n = given.z.rows;
  const int64_t batch = given.z.classes > grouped ? 1 : std::max<int64_t>(64, (int64_t{1} << 16) / given.z.classes / 64 * 64);
  std::vector<double> subtotals((n + batch - 1) / batch);
  with_states(given, false, threads, [&](const Rows& rows, const LongRows& split) {
    LossCall call{rows, output(rows.type, rows.z, out), factor(nll), factor(cross), factor(square), scale,
                  inverse_softcap, at<double>(losses), subtotals.data(), batch};
    const Output written = call.out;
    if (split.split) call.out.tile.data = nullptr;
    parallel(n, batch, rows.z.classes, threads, [&](int64_t begin, int64_t end) { active->loss(call, begin, end); });
    if (!split.split || !written.tile.data) return;
    call.losses = call.subtotals = nullptr;
    split.each([&](int64_t row, int64_t from, int64_t to) {
      LossCall part = call;
      part.out = written;
      part.out.from = from, part.out.to = to;
      active->loss(part, row, row + 1);
    });
  });
  double total = 0;
  for (const double subtotal : subtotals) total += subtotal;
  return total;
}

void softmax(int dtype, const TileArgs& z, const TileArgs& out_args, bool log, int threads) {
  nb::gil_scoped_release release;
  with_states(rows_of(dtype, z, {0, 0}, 0), false, threads, [&](const Rows& rows, const LongRows& split) {
    const Output out = output(rows.type, rows.z, out_args);
    if (!split.split)
      return parallel(rows.z.rows, 1, rows.z.classes, threads,
                      [&](int64_t begin, int64_t end) { active->softmax(rows, out, log, begin, end); });
    split.each([&](int64_t row, int64_t from, int64_t to) {
      Output part = out;
      part.from = from, part.to = to;
      active->softmax(rows, part, log, row, row + 1);
    });
  });
}

// The first row whose target is neither a class nor ignored (-1: none), and how many are ignored.
std::tuple<int64_t, int64_t> check_targets(uintptr_t target, int64_t rows, int64_t classes, int64_t ignored, int threads) {
  nb::gil_scoped_release release;
  const int64_t* y = at<const int64_t>(target);
  std::atomic<int64_t> all_bad{0}, all_skipped{0};
  parallel(rows, 1, 1, threads, [&](int64_t begin, int64_t end) {
    int64_t skipped = 0, bad = 0;
    for (int64_t i = begin; i < end; ++i) {
      const bool skip = y[i] == ignored;
      skipped += skip;
      bad += !skip & (static_cast<uint64_t>(y[i]) >= static_cast<uint64_t>(classes));
    }
    all_skipped += skipped;
    all_bad += bad;
  });
  if (!all_bad) return {-1, all_skipped};
  int64_t first = 0;
  while (y[first] == ignored || static_cast<uint64_t>(y[first]) < static_cast<uint64_t>(classes)) ++first;
  return {first, all_skipped};
}

uintptr_t address(nb::handle array) {
  Py_buffer view;
  if (PyObject_GetBuffer(array.ptr(), &view, PyBUF_STRIDES)) throw nb::python_error();
  const auto begin = reinterpret_cast<uintptr_t>(view.buf);
  PyBuffer_Release(&view);
  return begin;
}

// ---- draws ---------------------------------------------------------------------------------------------------------

// Philox 4x32-10 (Salmon et al., SC 2011) as src/lastlayer/_philox.py lays it out: the uniforms of N rows, S each.
// Seed and step are one for all where `one`; offset 0: a row's own number.
void uniforms(uintptr_t seed, uintptr_t offset, uintptr_t step, bool one, int64_t rows, int64_t samples, bool second,
              uintptr_t out) {
  nb::gil_scoped_release release;
  const auto *seeds = at<const uint64_t>(seed), *offsets = at<const uint64_t>(offset), *numbers = at<const uint64_t>(step);
  double* u = at<double>(out);
  for (int64_t i = 0; i < rows; ++i) {
    const uint64_t at = offset ? offsets[i] : static_cast<uint64_t>(i), row = one ? 0 : static_cast<uint64_t>(i);
    for (int64_t sample = 0; sample < samples; ++sample) {
      const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
      const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
      uint32_t a = low(at), b = high(at), c = low(numbers[row]), d = low(static_cast<uint64_t>(sample));
      uint32_t k = low(seeds[row]), m = high(seeds[row]);
      for (int round = 0; round < 10; ++round) {
        const uint64_t left = uint64_t{0xD2511F53} * a, right = uint64_t{0xCD9E8D57} * c;
        a = high(right) ^ b ^ k, b = low(right), c = high(left) ^ d ^ m, d = low(left);
        k += 0x9E3779B9, m += 0xBB67AE85;
      }
      const uint64_t word = second ? uint64_t{d} << 32 | c : uint64_t{b} << 32 | a;
      *u++ = static_cast<double>(word >> 11) * 0x1p-53;
    }
  }
}

using Addresses = std::vector<uintptr_t>;

// `rules`: an address per step (0: no row has it), `order` the steps; `edits`: addresses of start, index and value, or
// none; `out`: those of index, rank, logprob, sampled_logprob, kept, status, kept_mass, logsumexp.
void draw(int dtype, const TileArgs& z, uintptr_t uniforms, int64_t samples, const Addresses& rules,
          const std::vector<int>& order, const Addresses& edits, bool replacement, const Addresses& out, int threads) {
  nb::gil_scoped_release release;
  DrawCall call{};
  call.type = static_cast<DType>(dtype), call.z = tile(z), call.uniforms = at<const double>(uniforms), call.samples = samples;
  for (int step = 0; step < steps; ++step) call.rule[step] = at<const double>(rules[step]), call.order[step] = order[step];
  if (!edits.empty()) {
    call.edit_start = at<const int64_t>(edits[0]), call.edit_index = at<const int64_t>(edits[1]);
    call.edit_value = at<const double>(edits[2]);
  }
  call.replacement = replacement;
  call.index = at<int64_t>(out[0]), call.rank = at<int64_t>(out[1]);
  call.logprob = at<double>(out[2]), call.sampled_logprob = at<double>(out[3]);
  call.kept = at<int64_t>(out[4]), call.status = at<int64_t>(out[5]);
  call.kept_mass = at<double>(out[6]), call.logsumexp = at<double>(out[7]);
  const int64_t rows = call.z.rows, classes = call.z.classes, blocks = blocks_of(classes);
  // Fewer rows than would keep all threads busy: they share the blocks, whose sums do not depend on who makes them. Of one
  // row of a usual vocabulary that gains 5 us where another thread is awake, and costs 100 where it has to be woken.
  if (threads > 1 && rows < 2 * threads && rows * classes > int64_t{1} << 18) {
    const int64_t each = sums_of(classes);
    std::vector<double> sums(rows * each);
    parallel(rows * blocks, 1, block, threads, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t row = begin / blocks, from = begin % blocks, to = std::min(blocks, from + (end - begin));
        drawing->sum(call, row, from, to, sums.data() + row * each);
        begin += to - from;
      }
    });
    return parallel(rows, 1, classes, threads, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) drawing->finish(call, row, sums.data() + row * each);
    });
  }
  parallel(rows, 1, classes + 64 * samples, threads, [&](int64_t begin, int64_t end) { drawing->draw(call, begin, end); });
}

// (z - max) / T of what the rules keep, -inf elsewhere, into `scaled` (N, V) of doubles.
void tempered(int dtype, const TileArgs& z, const Addresses& rules, const std::vector<int>& order, uintptr_t scaled,
              int threads) {
  nb::gil_scoped_release release;
  DrawCall call{};
  call.type = static_cast<DType>(dtype), call.z = tile(z), call.replacement = true, call.scaled = at<double>(scaled);
  for (int step = 0; step < steps; ++step) call.rule[step] = at<const double>(rules[step]), call.order[step] = order[step];
  std::vector<int64_t> status(call.z.rows);
  call.status = status.data();
  parallel(call.z.rows, 1, call.z.classes, threads, [&](int64_t begin, int64_t end) { drawing->draw(call, begin, end); });
}

void multinomial(int dtype, const TileArgs& p, uintptr_t uniforms, int64_t samples, bool replacement, uintptr_t index,
                 uintptr_t status, int threads) {
  nb::gil_scoped_release release;
  const WeightsCall call{static_cast<DType>(dtype), tile(p), at<const double>(uniforms), samples, replacement,
                         at<int64_t>(index), at<int64_t>(status)};
  parallel(call.p.rows, 1, call.p.classes + 64 * samples, threads,
           [&](int64_t begin, int64_t end) { drawing->multinomial(call, begin, end); });
}

void masses(int dtype, const TileArgs& z, uintptr_t temperature, uintptr_t top, uintptr_t mass, int threads) {
  nb::gil_scoped_release release;
  const Tile rows = tile(z);
  parallel(rows.rows, 1, rows.classes, threads, [&](int64_t begin, int64_t end) {
    drawing->masses(static_cast<DType>(dtype), rows, at<const double>(temperature), {at<double>(top), at<double>(mass)},
                    begin, end);
  });
}

void choose(uintptr_t top, uintptr_t mass, int64_t rows, int64_t blocks, uintptr_t temperature, uintptr_t uniforms,
            int64_t samples, uintptr_t chosen, uintptr_t fraction, int threads) {
  nb::gil_scoped_release release;
  parallel(rows, 1, 16 * blocks, threads, [&](int64_t begin, int64_t end) {
    drawing->choose({at<double>(top), at<double>(mass)}, blocks, at<const double>(temperature),
                    at<const double>(uniforms), samples, at<int64_t>(chosen), at<double>(fraction), begin, end);
  });
}

void inside(int dtype, const TileArgs& z, uintptr_t temperature, uintptr_t fraction, uintptr_t index, int threads) {
  nb::gil_scoped_release release;
  const Tile rows = tile(z);
  parallel(rows.rows, 1, rows.classes, threads, [&](int64_t begin, int64_t end) {
    drawing->inside(static_cast<DType>(dtype), rows, at<const double>(temperature), at<const double>(fraction),
                    at<int64_t>(index), begin, end);
  });
}

void topk(int dtype, const TileArgs& z, int64_t k, uintptr_t value, uintptr_t index, int threads) {
  nb::gil_scoped_release release;
  const Tile rows = tile(z);
  parallel(rows.rows, 1, rows.classes, threads, [&](int64_t begin, int64_t end) {
    drawing->topk(static_cast<DType>(dtype), rows, k, at<double>(value), at<int64_t>(index), begin, end);
  });
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Row kernels of the CPU backend; lastlayer/_backends/cpu.py is their only caller.";
  active = supported().front().rows, drawing = supported().front().draws;
  m.def("instruction_sets", &instruction_sets, "Instruction sets this build and processor share, best first.");
  m.def("instruction_set", [] { return std::string(active->name); }, "The instruction set in use.");
  m.def("use_instruction_set", &use, "name"_a, "Use another of instruction_sets().");
  m.def("environment", [](const char* name) -> const char* { return std::getenv(name); }, "name"_a,
        "An environment variable now, or None: a tenth of what os.environ takes.");
  m.def("share_threads", &share_threads, "directory"_a, "Use the threads of the OpenMP runtime loaded from there.");
  m.def("address", &address, "array"_a, "Where an array of numbers begins: a tenth of what its interface takes to say so.");
  m.def("reserve", &reserve, "address"_a, "bytes"_a, "Ask for huge pages behind memory that is not yet touched.");
  m.def("check_targets", &check_targets, "target"_a, "rows"_a, "classes"_a, "ignored"_a, "threads"_a);
  m.def("fold", &fold, "dtype"_a, "z"_a, "weight"_a, "state"_a, "moment"_a, "threads"_a);
  m.def("statistics", &statistics, "dtype"_a, "z"_a, "weight"_a, "target"_a, "state"_a, "out"_a, "entropy"_a,
        "threads"_a);
  m.def("gradient", &gradient, "dtype"_a, "z"_a, "out"_a, "max"_a, "rest"_a, "numbers"_a, "target"_a, "first_class"_a,
        "weight"_a, "inverse_softcap"_a, "threads"_a);
  m.def("loss", &loss, "dtype"_a, "z"_a, "out"_a, "weight"_a, "target"_a, "ignored"_a, "nll"_a, "cross"_a, "square"_a,
        "scale"_a, "inverse_softcap"_a, "losses"_a, "threads"_a);
  m.def("softmax", &softmax, "dtype"_a, "z"_a, "out"_a, "log"_a, "threads"_a);
  m.def("uniforms", &uniforms, "seed"_a, "offset"_a, "step"_a, "one"_a, "rows"_a, "samples"_a, "second"_a, "out"_a);
  m.def("draw", &draw, "dtype"_a, "z"_a, "uniforms"_a, "samples"_a, "rules"_a, "order"_a, "edits"_a, "replacement"_a,
        "out"_a, "threads"_a);
  m.def("tempered", &tempered, "dtype"_a, "z"_a, "rules"_a, "order"_a, "scaled"_a, "threads"_a);
  m.def("multinomial", &multinomial, "dtype"_a, "p"_a, "uniforms"_a, "samples"_a, "replacement"_a, "index"_a, "status"_a,
        "threads"_a);
  m.def("masses", &masses, "dtype"_a, "z"_a, "temperature"_a, "top"_a, "mass"_a, "threads"_a);
  m.def("choose", &choose, "top"_a, "mass"_a, "rows"_a, "blocks"_a, "temperature"_a, "uniforms"_a, "samples"_a,
        "chosen"_a, "fraction"_a, "threads"_a);
  m.def("inside", &inside, "dtype"_a, "z"_a, "temperature"_a, "fraction"_a, "index"_a, "threads"_a);
  m.def("topk", &topk, "dtype"_a, "z"_a, "k"_a, "value"_a, "index"_a, "threads"_a);
}
