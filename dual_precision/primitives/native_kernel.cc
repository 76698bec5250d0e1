// plane_dot for x86 CPUs with AVX512-VNNI, called by XLA. See bitserial.plane_dot for the sum.
//
//   x      int8   [rows, 32 * words]
//   planes uint32 [bits, words, outputs], most significant first; the first n are read
//   y      int32  [rows, outputs]
//
// The n bits of a weight are expanded to a byte, and bytes multiplied four to a lane (vpdpbusd).
// Instructions per 64 weights and row: 2.4 in `masked`, for one plane; 4 to 5 in `transposed`; 1
// and 2n for all rows in `shifted`. AND and population count with eight bits of x take 3n. The
// planes are what is read from memory.
//
// Built by native.py, with the header that jaxlib ships.

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#define WITH_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,gfni")))
#define INLINE_VNNI WITH_VNNI __attribute__((always_inline)) inline

namespace {

constexpr int kLanes = 16;             // outputs in a register
constexpr int64_t kShare = 64 * 1024;  // words of planes that are worth another thread

struct Operands {
  const int8_t* x;         // [rows, 32 * words]
  const int8_t* x_by_bit;  // the same, each 32 inputs reordered from [4, 8] to [8, 4]
  const uint32_t* planes;
  int32_t* y;
  int64_t words, outputs;

  INLINE_VNNI __mmask16 mask(int64_t v) const {
    const int64_t left = outputs - v * kLanes;
    return left >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
  }
  INLINE_VNNI __m512i load(int64_t row, int64_t v) const {
    return _mm512_maskz_loadu_epi32(mask(v), y + row * outputs + v * kLanes);
  }
  INLINE_VNNI void store(int64_t row, int64_t v, __m512i sum) const {
    _mm512_mask_storeu_epi32(y + row * outputs + v * kLanes, mask(v), sum);
  }
  // The inputs whose weights are bit s of the four bytes of word w, in every lane.
  INLINE_VNNI __m512i four(int64_t row, int64_t w, int s) const {
    int32_t inputs;
    std::memcpy(&inputs, x_by_bit + (row * words + w) * 32 + 4 * s, sizeof inputs);
    return _mm512_set1_epi32(inputs);
  }
  INLINE_VNNI __m512i plane(int b, int64_t w, int64_t v) const {
    return _mm512_maskz_loadu_epi32(mask(v), planes + (b * words + w) * outputs + v * kLanes);
  }
};

// One plane, where it stands: bit s of every byte of a word is 2^s, which the sum of it is divided
// by after kBlock words.
template <int rows>
WITH_VNNI void masked(const Operands& o, int64_t row, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 8;
  for (int64_t first = 0; first < o.words; first += kBlock) {
    const int64_t last = first + kBlock < o.words ? first + kBlock : o.words;
    for (int64_t v = begin; v < end; ++v) {
      __m512i sum[rows][8];
      for (int r = 0; r < rows; ++r)
        for (int s = 0; s < 8; ++s) sum[r][s] = _mm512_setzero_si512();
      for (int64_t w = first; w < last; ++w) {
        const __m512i plane = o.plane(0, w, v);
#pragma GCC unroll 8
        for (int s = 0; s < 8; ++s) {
          const __m512i code = _mm512_and_si512(plane, _mm512_set1_epi32(0x01010101 << s));
          for (int r = 0; r < rows; ++r)
            sum[r][s] = _mm512_dpbusd_epi32(sum[r][s], code, o.four(row + r, w, s));
        }
      }
      for (int r = 0; r < rows; ++r) {
        __m512i total = first ? o.load(row + r, v) : _mm512_setzero_si512();
        for (int s = 0; s < 8; ++s)
          total = _mm512_add_epi32(total, _mm512_srai_epi32(sum[r][s], s));
        o.store(row + r, v, total);
      }
    }
  }
}

// Codes by shift and mask: bit s of each of a word's four bytes, all planes of it, is a byte.
template <int n, int rows>
WITH_VNNI void shifted(const Operands& o, int64_t row, int64_t begin, int64_t end) {
  for (int64_t w = 0; w < o.words; ++w) {
    for (int64_t v = begin; v < end; ++v) {
      __m512i plane[n], sum[rows];
      for (int b = 0; b < n; ++b) plane[b] = o.plane(b, w, v);
      for (int r = 0; r < rows; ++r) sum[r] = w ? o.load(row + r, v) : _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int s = 0; s < 8; ++s) {
        __m512i code = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int b = 0; b < n; ++b) {
          const int place = n - 1 - b;
          const __m512i at = s >= place ? _mm512_srli_epi32(plane[b], s - place)
                                        : _mm512_slli_epi32(plane[b], place - s);
          const __m512i bit = _mm512_set1_epi32(0x01010101 << place);
          code = _mm512_ternarylogic_epi32(code, at, bit, 0xF8);  // code | (at & bit)
        }
        for (int r = 0; r < rows; ++r)
          sum[r] = _mm512_dpbusd_epi32(sum[r], code, o.four(row + r, w, s));
      }
      for (int r = 0; r < rows; ++r) o.store(row + r, v, sum[r]);
    }
  }
}

// The codes of 16 outputs and 32 inputs, as bytes: code[2 i + h] has in its 128-bit part l the
// inputs 16 h to 16 h + 15 of output 4 l + i. Bytes of the planes are interleaved to 8 x 8 bit
// matrices, one row a plane, which GFNI transposes. A code stands in the top n bits of its byte.
template <int n>
INLINE_VNNI void transpose(const __m512i* plane, __m512i* code) {
  const __m512i none = _mm512_setzero_si512();
  const __m512i columns = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201ULL));
  __m512i pair[4][2], four[2][4];
  for (int i = 0; i < 4; ++i) {
    const __m512i first = 2 * i < n ? plane[2 * i] : none;
    const __m512i second = 2 * i + 1 < n ? plane[2 * i + 1] : none;
    pair[i][0] = 2 * i < n ? _mm512_unpacklo_epi8(first, second) : none;
    pair[i][1] = 2 * i < n ? _mm512_unpackhi_epi8(first, second) : none;
  }
  for (int i = 0; i < 2; ++i) {
    for (int h = 0; h < 2; ++h) {
      const __m512i first = pair[2 * i][h], second = pair[2 * i + 1][h];
      four[i][2 * h] = 4 * i < n ? _mm512_unpacklo_epi16(first, second) : none;
      four[i][2 * h + 1] = 4 * i < n ? _mm512_unpackhi_epi16(first, second) : none;
    }
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i low = _mm512_unpacklo_epi32(four[0][i], four[1][i]);
    const __m512i high = _mm512_unpackhi_epi32(four[0][i], four[1][i]);
    code[2 * i] = _mm512_gf2p8affine_epi64_epi8(columns, low, 0);
    code[2 * i + 1] = _mm512_gf2p8affine_epi64_epi8(columns, high, 0);
  }
}

template <int n, int rows>
WITH_VNNI void transposed(const Operands& o, int64_t row, int64_t begin, int64_t end) {
  const int64_t size = (end - begin) * 4 * rows * sizeof(__m512i);
  __m512i* sums = static_cast<__m512i*>(std::aligned_alloc(sizeof(__m512i), size));
  std::memset(sums, 0, size);
  for (int64_t w = 0; w < o.words; ++w) {
    for (int64_t v = begin; v < end; ++v) {
      __m512i plane[n], code[8];
      for (int b = 0; b < n; ++b) plane[b] = o.plane(b, w, v);
      transpose<n>(plane, code);
      for (int r = 0; r < rows; ++r) {
        const __m128i* x = reinterpret_cast<const __m128i*>(o.x + ((row + r) * o.words + w) * 32);
        const __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128(x));
        const __m512i second = _mm512_broadcast_i32x4(_mm_loadu_si128(x + 1));
        __m512i* sum = sums + ((v - begin) * rows + r) * 4;
        for (int i = 0; i < 4; ++i) {
          const __m512i half = _mm512_dpbusd_epi32(sum[i], code[2 * i], first);
          sum[i] = _mm512_dpbusd_epi32(half, code[2 * i + 1], second);
        }
      }
    }
  }
  const int32_t* part = reinterpret_cast<const int32_t*>(sums);
  for (int64_t v = begin; v < end; ++v) {
    for (int r = 0; r < rows; ++r, part += 4 * kLanes) {
      for (int l = 0; l < kLanes && v * kLanes + l < o.outputs; ++l) {
        const int32_t* p = part + (l % 4) * kLanes + (l / 4) * 4;
        o.y[(row + r) * o.outputs + v * kLanes + l] = (p[0] + p[1] + p[2] + p[3]) >> (8 - n);
      }
    }
  }
  std::free(sums);
}

using Kernel = void (*)(const Operands&, int64_t row, int64_t begin, int64_t end);

// More rows than two leave `masked` and `transposed` no registers.
template <int n>
Kernel choose(int rows) {
  switch (rows) {
    case 1: return n == 1 ? masked<1> : transposed<n, 1>;
    case 2: return n == 1 ? masked<2> : transposed<n, 2>;
    case 4: return shifted<n, 4>;
    default: return shifted<n, 8>;
  }
}

Kernel choose(int n, int rows) {
  static constexpr Kernel (*kChoose[])(int) = {choose<1>, choose<2>, choose<3>, choose<4>,
                                               choose<5>, choose<6>, choose<7>, choose<8>};
  return kChoose[n - 1](rows);
}

void multiply(const Operands& o, int n, int64_t rows, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < rows;) {
    int step = 8;
    while (step > rows - row) step /= 2;
    choose(n, step)(o, row, begin, end);
    row += step;
  }
}

// sum x (2c + 1) = 2 sum x u - (2^n - 1) sum x, in numbers modulo 2^32 until the end.
void centre(const Operands& o, int n, int64_t rows, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < rows; ++row) {
    uint32_t total = 0;
    for (int64_t k = 0; k < 32 * o.words; ++k) total += o.x[row * 32 * o.words + k];
    total *= (1u << n) - 1;
    int32_t* y = o.y + row * o.outputs;
    for (int64_t i = begin * kLanes; i < end * kLanes && i < o.outputs; ++i)
      y[i] = static_cast<int32_t>(2u * static_cast<uint32_t>(y[i]) - total);
  }
}

// Parts are taken from a counter by whoever is free, the caller too: it never waits for a part
// that nobody has begun, so that a pool whose threads are all busy cannot lock up.
void in_parts(ffi::ThreadPool& pool, int64_t parts, const std::function<void(int64_t)>& work) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  // A late thread finds no part left and touches nothing but `progress`, which it owns a share of.
  auto run = [progress, parts, &work] {
    for (int64_t part; (part = progress->next.fetch_add(1)) < parts;) {
      work(part);
      progress->done.fetch_add(1);
    }
  };
  for (int64_t i = 1; i < parts && i < pool.num_threads(); ++i)
    pool.Schedule(std::function<void()>(run));
  run();
  while (progress->done.load() < parts) _mm_pause();
}

ffi::Error plane_dot_impl(ffi::ThreadPool pool, ffi::Buffer<ffi::S8> x,
                          ffi::Buffer<ffi::U32> planes, ffi::ResultBuffer<ffi::S32> y,
                          int64_t n) {
  const auto xs = x.dimensions(), ps = planes.dimensions();
  if (xs.size() != 2 || ps.size() != 3 || n < 1 || n > ps[0] || n > 8 || xs[1] != 32 * ps[1])
    return ffi::Error::InvalidArgument("plane_dot: shapes that do not fit");
  const int64_t rows = xs[0], words = ps[1], outputs = ps[2];
  const int8_t* source = x.typed_data();
  std::unique_ptr<int8_t[]> by_bit(new int8_t[rows * words * 32]);
  for (int64_t i = 0; i < rows * words; ++i)
    for (int s = 0; s < 8; ++s)
      for (int byte = 0; byte < 4; ++byte)
        by_bit[i * 32 + 4 * s + byte] = source[i * 32 + 8 * byte + s];
  const Operands o{source, by_bit.get(), planes.typed_data(), y->typed_data(), words, outputs};
  const int64_t vectors = (outputs + kLanes - 1) / kLanes;
  int64_t parts = words * outputs * n * rows / kShare;
  if (parts > 2 * pool.num_threads()) parts = 2 * pool.num_threads();  // evens out busy cores
  if (parts > vectors) parts = vectors;
  if (parts < 1) parts = 1;
  in_parts(pool, parts, [&](int64_t part) {
    const int64_t begin = vectors * part / parts, end = vectors * (part + 1) / parts;
    multiply(o, static_cast<int>(n), rows, begin, end);
    centre(o, static_cast<int>(n), rows, begin, end);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dual_precision_plane_dot, plane_dot_impl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Attr<int64_t>("planes"));

extern "C" int dual_precision_supported() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni");
}
