// What follows a convolution, on a tile of some pixels: steps on slots, see chain_steps.py.

#pragma once

#include <emmintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "onednn.h"

namespace native {

// chain_steps.py has the same order.
enum Op : int64_t {
  kMultiply, kAdd, kSubtract, kMax, kMin, kRound, kClamp, kFused, kFusedMinus, kMinusFused,
  kSums, kNormalizedSums, kAddMax, kFloat, kByte, kCodes, kCodesOfMax
};

struct Step {
  int64_t op, to, of[5];
  bool gives() const { return op >= kFloat; }  // a result of the link
};

// What a tile reads and writes.
struct Tile {
  const int32_t* sums;
  const float* floats;     // sums of float32, or none
  const int32_t* windows;  // of its pixels, or none
  int64_t pixels, channels;
  const Step* steps;
  int64_t count;
  float* const* slots;
  void* const* results;
};

// The functions below are inlined into one for each set of instructions.
#define NATIVE_INLINE __attribute__((always_inline)) inline

// NaN goes through both, whichever of the two it is.
NATIVE_INLINE float larger(float a, float b) { return a > b || a != a ? a : b; }
NATIVE_INLINE float smaller(float a, float b) { return a < b || a != a ? a : b; }
// As larger(a, limit), in one comparison, where the limit is not NaN.
NATIVE_INLINE float at_least(float limit, float a) { return limit >= a ? limit : a; }
NATIVE_INLINE uint8_t byte_of(float a) { return static_cast<uint8_t>(static_cast<int32_t>(a)); }

// A code of a: a limit of NaN has made the gain NaN.
struct Rounding {
  float gain, low, high;
  Rounding(float own, float low, float high, float limit)
      : gain(low != low || high != high ? low + high : limit != limit ? limit : own),
        low(low), high(high) {}
  NATIVE_INLINE uint8_t operator()(float a) const {
    a = __builtin_rintf(a * gain);
    a = low > a ? low : a;
    return byte_of(high < a ? high : a);
  }
};

// 2 sum + window, which int32 holds; 2 sum alone it may not.
NATIVE_INLINE float of_whole(int32_t sum, int32_t window) {
  return static_cast<float>(
      static_cast<int32_t>(2 * static_cast<uint32_t>(sum) + static_cast<uint32_t>(window)));
}

NATIVE_INLINE void run_tile(const Tile& t) {
  const int64_t n = t.pixels * t.channels;
  const auto each = [n](auto* __restrict to, auto of) __attribute__((always_inline)) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) to[i] = of(i);
  };
  // then(i, sum), of every sum as float32.
  const auto sums = [&](float* __restrict to, auto then) __attribute__((always_inline)) {
    if (t.floats) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) to[i] = then(i, t.floats[i]);
    } else if (t.windows && t.channels % 16 == 0) {
      for (int64_t i = 0, p = 0; p < t.pixels; ++p)
        for (int64_t end = i + t.channels; i < end; i += 16)
#pragma GCC ivdep
          for (int64_t k = i; k < i + 16; ++k)
            to[k] = then(k, of_whole(t.sums[k], t.windows[p]));
    } else if (t.windows) {
      for (int64_t p = 0; p < t.pixels; ++p)
        for (int64_t i = p * t.channels; i < (p + 1) * t.channels; ++i)
          to[i] = then(i, of_whole(t.sums[i], t.windows[p]));
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) to[i] = then(i, static_cast<float>(t.sums[i]));
    }
  };
  for (int64_t k = 0; k < t.count; ++k) {
    const Step& s = t.steps[k];
    const float *a = t.slots[s.of[0]], *b = t.slots[s.of[1]], *c = t.slots[s.of[2]];
    float* to = s.gives() ? nullptr : t.slots[s.to];
    auto* bytes = s.gives() ? static_cast<uint8_t*>(t.results[s.to]) : nullptr;
    using I = int64_t;
    switch (s.op) {
      case kMultiply: each(to, [=](I i) { return a[i] * b[i]; }); break;
      case kAdd: each(to, [=](I i) { return a[i] + b[i]; }); break;
      case kSubtract: each(to, [=](I i) { return a[i] - b[i]; }); break;
      case kMax: each(to, [=](I i) { return larger(a[i], b[i]); }); break;
      case kMin: each(to, [=](I i) { return smaller(a[i], b[i]); }); break;
      case kRound: each(to, [=](I i) { return __builtin_rintf(a[i]); }); break;
      case kClamp: each(to, [=](I i) { return smaller(larger(a[i], b[i]), c[i]); }); break;
      case kFused: each(to, [=](I i) { return __builtin_fmaf(a[i], b[i], c[i]); }); break;
      case kFusedMinus: each(to, [=](I i) { return __builtin_fmaf(a[i], b[i], -c[i]); }); break;
      case kMinusFused: each(to, [=](I i) { return __builtin_fmaf(-a[i], b[i], c[i]); }); break;
      case kSums: sums(to, [](I, float sum) { return sum; }); break;
      case kNormalizedSums:
        sums(to, [=](I i, float sum) { return __builtin_fmaf(sum * a[i], b[i], c[i]); });
        break;
      case kAddMax: {
        const float z = *c;
        if (z == z)
          each(to, [=](I i) { return at_least(z, a[i] + b[i]); });
        else
          std::fill_n(to, n, z);
        break;
      }
      case kFloat: std::memcpy(bytes, a, n * sizeof(float)); break;
      case kByte: each(bytes, [=](I i) { return byte_of(a[i]); }); break;
      case kCodes: {
        const Rounding code(*b, *c, *t.slots[s.of[3]], 0);
        each(bytes, [=](I i) { return code(a[i]); });
        break;
      }
      case kCodesOfMax: {
        const float z = *b;
        const Rounding code(*c, *t.slots[s.of[3]], *t.slots[s.of[4]], z);
        each(bytes, [=](I i) { return code(at_least(z, a[i])); });
        break;
      }
    }
  }
}

// Sums of bytes, in two parts.
inline __m128i byte_sums(const uint8_t* x, int64_t sixteens) {
  __m128i total = _mm_setzero_si128();
  for (int64_t k = 0; k < sixteens; ++k) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x) + k);
    total = _mm_add_epi64(total, _mm_sad_epu8(bytes, _mm_setzero_si128()));
  }
  return total;
}

// The channels of each pixel of a row added up.
inline void sum_channels(const uint8_t* x, int64_t pixels, int64_t channels, int32_t* to) {
  const int64_t sixteens = channels / 16;
  int64_t p = 0;
  if (channels % 16 == 0)
    for (; p + 4 <= pixels; p += 4, x += 4 * channels) {
      const auto two = [&](int64_t first) {  // low and high part of one pixel, then of the next
        return _mm_shuffle_ps(_mm_castsi128_ps(byte_sums(x + first * channels, sixteens)),
                              _mm_castsi128_ps(byte_sums(x + (first + 1) * channels, sixteens)),
                              _MM_SHUFFLE(2, 0, 2, 0));
      };
      const __m128 near = two(0), far = two(2);
      const __m128i low = _mm_castps_si128(_mm_shuffle_ps(near, far, _MM_SHUFFLE(2, 0, 2, 0)));
      const __m128i high = _mm_castps_si128(_mm_shuffle_ps(near, far, _MM_SHUFFLE(3, 1, 3, 1)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + p), _mm_add_epi32(low, high));
    }
  for (; p < pixels; ++p, x += channels) {
    const __m128i two = byte_sums(x, sixteens);
    to[p] = _mm_cvtsi128_si32(two) + _mm_cvtsi128_si32(_mm_srli_si128(two, 8));
    for (int64_t c = 16 * sixteens; c < channels; ++c) to[p] += x[c];
  }
}

// Sums of x over the window of every output: what an odd weight 2 c + 1 adds to 2 sum(x c).
// `grid` has room for a number of every pixel and of the zeros around, and for one row more.
NATIVE_INLINE void sum_windows(const uint8_t* x, const Shape& s, int32_t* grid, int32_t* to) {
  const int64_t pad = s.pad(), across = s.width + 2 * pad, wide = s.out(s.width);
  int32_t* const columns = grid + across * (s.height + 2 * pad);
  std::fill(grid, columns, 0);
  for (int64_t i = 0; i < s.height; ++i)
    sum_channels(x + i * s.width * s.inputs, s.width, s.inputs, grid + (i + pad) * across + pad);
  for (int64_t i = 0; i < s.out(s.height); ++i, to += wide) {
    const int32_t* rows = grid + i * s.stride * across;
    std::copy_n(rows, across, columns);
    for (int64_t r = 1; r < s.kernel; ++r)
      for (int64_t j = 0; j < across; ++j) columns[j] += rows[r * across + j];
    std::fill_n(to, wide, 0);
    for (int64_t q = 0; q < s.kernel; ++q)
      if (s.stride == 1)
        for (int64_t j = 0; j < wide; ++j) to[j] += columns[q + j];
      else
        for (int64_t j = 0; j < wide; ++j) to[j] += columns[q + j * s.stride];
  }
}

#undef NATIVE_INLINE
#define NATIVE_512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define NATIVE_256 __attribute__((target("avx2,fma")))

NATIVE_512 inline void tile_512(const Tile& t) { run_tile(t); }
NATIVE_256 inline void tile_256(const Tile& t) { run_tile(t); }
NATIVE_512 inline void windows_512(const uint8_t* x, const Shape& s, int32_t* grid, int32_t* to) {
  sum_windows(x, s, grid, to);
}
NATIVE_256 inline void windows_256(const uint8_t* x, const Shape& s, int32_t* grid, int32_t* to) {
  sum_windows(x, s, grid, to);
}

inline bool has_512() {
  static const bool found = __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq");
  return found;
}

}  // namespace native
