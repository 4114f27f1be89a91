// What every kernel source needs: it is compiled once per instruction set, LASTLAYER_ISA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define LASTLAYER_JOIN_(a, b) a##b
#define LASTLAYER_JOIN(a, b) LASTLAYER_JOIN_(a, b)
#define LASTLAYER_TEXT_(a) #a
#define LASTLAYER_TEXT(a) LASTLAYER_TEXT_(a)

// Vectors that a call would pass through memory.
#define LASTLAYER_INLINE __attribute__((always_inline))
