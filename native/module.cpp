// The Python module: picks the instruction set, divides rows among threads, calls the row kernels.
// Arguments are addresses and strides that lastlayer/_backends/cpu.py has checked; nothing is validated twice here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <system_error>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "rows.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace lastlayer;

namespace {

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> found;
#if defined(LASTLAYER_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    found.push_back(&rows_avx512);
#endif
#if defined(LASTLAYER_HAVE_AVX2)
  // Every processor with AVX2 and FMA has F16C.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&rows_avx2);
#endif
  found.push_back(&rows_baseline);
  return found;
}

const Kernels* active = nullptr;

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* k : supported()) names.emplace_back(k->name);
  return names;
}

void use(const std::string& name) {
  for (const Kernels* k : supported())
    if (name == k->name) {
      active = k;
      return;
    }
  throw std::invalid_argument("instruction set '" + name + "' is not supported by this processor or build");
}

// Threads live for one call: no pool that could spin against another library's, nothing to lose in a forked child.
// Below `grain` elements per thread starting one costs more than it saves.
template <class Function>
void parallel_rows(int64_t rows, int64_t classes, int threads, const Function& f) {
  constexpr int64_t grain = 1 << 17;
  const int64_t wanted = std::min<int64_t>({threads, rows, rows * classes / grain});
  if (wanted <= 1) return f(0, rows);
  std::vector<std::thread> others;
  int64_t begin = rows / wanted;
  for (int64_t t = 1; t < wanted; ++t) {
    const int64_t end = rows * (t + 1) / wanted;
    try {
      others.emplace_back(f, begin, end);
    } catch (const std::system_error&) {  // no more threads to be had: do it here
      f(begin, end);
    }
    begin = end;
  }
  f(0, rows / wanted);
  for (std::thread& other : others) other.join();
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

// `state` is one block of 5 x rows doubles: max, rest, moment, spread, mass.
void fold(int dtype, const TileArgs& z_args, const WeightArgs& weight, uintptr_t state, bool moment, int threads) {
  nb::gil_scoped_release release;
  const Tile z = tile(z_args);
  double* s = at<double>(state);
  const int64_t n = z.rows;
  const States out{s, s + n, moment ? s + 2 * n : nullptr, s + 3 * n, s + 4 * n};
  parallel_rows(n, z.classes, threads, [&](int64_t begin, int64_t end) {
    active->fold(static_cast<DType>(dtype), z, weights(weight), out, begin, end);
  });
}

// `state` is one block of 3 x rows doubles: max, rest, mass; `out` one of 4 x rows: logsumexp, logprob, entropy, cross.
void statistics(int dtype, const TileArgs& z_args, const WeightArgs& weight, uintptr_t target, uintptr_t state_at,
                uintptr_t out_at, bool entropy, int threads) {
  nb::gil_scoped_release release;
  const Tile z = tile(z_args);
  const int64_t n = z.rows;
  double *s = at<double>(state_at), *o = at<double>(out_at);
  const States state{s, s + n, nullptr, nullptr, s + 2 * n};
  const Statistics out{o, o + n, entropy ? o + 2 * n : nullptr, std::get<0>(weight) ? o + 3 * n : nullptr};
  parallel_rows(n, z.classes, threads, [&](int64_t begin, int64_t end) {
    active->statistics(static_cast<DType>(dtype), z, weights(weight), at<const int64_t>(target), state, out, begin, end);
  });
}

// `numbers` is one block of 4 x rows doubles: alpha, beta, gamma, delta.
void gradient(int dtype, const TileArgs& z, const TileArgs& out, uintptr_t max, uintptr_t rest, uintptr_t numbers,
              uintptr_t target, int64_t first_class, const WeightArgs& weight, double inverse_softcap, int threads) {
  nb::gil_scoped_release release;
  const double* c = at<const double>(numbers);
  const int64_t n = std::get<1>(z);
  const GradientCall call{tile(z), tile(out), at<const double>(max), at<const double>(rest), {c, c + n, c + 2 * n, c + 3 * n},
                          at<const int64_t>(target), first_class, weights(weight), inverse_softcap};
  parallel_rows(n, call.z.classes, threads, [&](int64_t begin, int64_t end) {
    active->gradient(static_cast<DType>(dtype), call, begin, end);
  });
}

void softmax(int dtype, const TileArgs& z_args, const TileArgs& out_args, bool log, int threads) {
  nb::gil_scoped_release release;
  const Tile z = tile(z_args), out = tile(out_args);
  parallel_rows(z.rows, z.classes, threads, [&](int64_t begin, int64_t end) {
    active->softmax(static_cast<DType>(dtype), z, out, log, begin, end);
  });
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Row kernels of the CPU backend; lastlayer/_backends/cpu.py is their only caller.";
  active = supported().front();
  m.def("instruction_sets", &instruction_sets, "Instruction sets this build and processor share, best first.");
  m.def("instruction_set", [] { return std::string(active->name); }, "The instruction set in use.");
  m.def("use_instruction_set", &use, "name"_a, "Use another of instruction_sets().");
  m.def("reserve", &reserve, "address"_a, "bytes"_a, "Ask for huge pages behind memory that is not yet touched.");
  m.def("fold", &fold, "dtype"_a, "z"_a, "weight"_a, "state"_a, "moment"_a, "threads"_a);
  m.def("statistics", &statistics, "dtype"_a, "z"_a, "weight"_a, "target"_a, "state"_a, "out"_a, "entropy"_a,
        "threads"_a);
  m.def("gradient", &gradient, "dtype"_a, "z"_a, "out"_a, "max"_a, "rest"_a, "numbers"_a, "target"_a, "first_class"_a,
        "weight"_a, "inverse_softcap"_a, "threads"_a);
  m.def("softmax", &softmax, "dtype"_a, "z"_a, "out"_a, "log"_a, "threads"_a);
}
