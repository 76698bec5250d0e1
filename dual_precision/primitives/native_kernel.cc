// plane_product for x86 CPUs with AVX512-VNNI, called by XLA: see bitserial.plane_product.
//
//   x      float  [batch, inputs]
//   planes uint32 [bits, words, outputs], most significant first; the first n are read
//   scales float  [bits, outputs]
//   y      float  [batch, outputs]
//
// One call, from floats to floats, because XLA takes longer to start the ten small programs of the
// same arithmetic than a plane of a 4096 x 4096 matrix takes. Inside, x is rows of int8 digits.
//
// The n bits of a weight are expanded to a byte, and bytes multiplied four to a lane (vpdpbusd).
// Instructions per 64 weights and row: 2.4 in `masked`, for one plane; 3 to 5 in `Transposed`; 1
// and 2n for all rows in `shifted`. AND and population count with eight bits of x take 3n. The
// planes are what is read from memory.
//
// Built by native.py, with the header that jaxlib ships.

#include <immintrin.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#define WITH_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,gfni")))
#define INLINE_VNNI WITH_VNNI __attribute__((always_inline)) inline

namespace {

constexpr int kLanes = 16;             // outputs in a register
constexpr int64_t kShare = 32 * 1024;  // words of planes that are worth another thread

struct Operands {
  const uint32_t* planes;
  int64_t words, outputs;

  INLINE_VNNI __mmask16 mask(int64_t v) const {
    const int64_t left = outputs - v * kLanes;
    return left >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
  }
  INLINE_VNNI __m512i plane(int b, int64_t w, int64_t v) const {
    return _mm512_maskz_loadu_epi32(mask(v), planes + (b * words + w) * outputs + v * kLanes);
  }
};

// A kernel adds up a tile: some rows, the outputs of registers begin to end. Its inputs are x as
// [words, rows, 32], its sums [end - begin, rows, parts, kLanes]: rows side by side, because rows
// that lie 4096 bytes apart would share one set of the first cache.
using Kernel = void (*)(const Operands&, const int8_t* x, __m512i* sums, int64_t begin,
                        int64_t end);

// The four inputs at x, in every lane.
INLINE_VNNI __m512i four(const int8_t* x) {
  int32_t inputs;
  std::memcpy(&inputs, x, sizeof inputs);
  return _mm512_set1_epi32(inputs);
}

// One plane, where it stands: bit s of every byte of a word is 2^s, which the sum of it is divided
// by after kBlock words. Takes the inputs by bit, see `pack`.
template <int rows>
WITH_VNNI void masked(const Operands& o, const int8_t* x, __m512i* sums, int64_t begin,
                      int64_t end) {
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
            sum[r][s] = _mm512_dpbusd_epi32(sum[r][s], code, four(x + (w * rows + r) * 32 + 4 * s));
        }
      }
      for (int r = 0; r < rows; ++r) {
        __m512i& total = sums[(v - begin) * rows + r];
        for (int s = 0; s < 8; ++s)
          total = _mm512_add_epi32(total, _mm512_srai_epi32(sum[r][s], s));
      }
    }
  }
}

// Codes by shift and mask: bit s of each of a word's four bytes, all planes of it, is a byte.
// Takes the inputs by bit, see `pack`.
template <int n, int rows>
WITH_VNNI void shifted(const Operands& o, const int8_t* x, __m512i* sums, int64_t begin,
                       int64_t end) {
  for (int64_t w = 0; w < o.words; ++w) {
    for (int64_t v = begin; v < end; ++v) {
      __m512i plane[n], sum[rows];
      for (int b = 0; b < n; ++b) plane[b] = o.plane(b, w, v);
      for (int r = 0; r < rows; ++r) sum[r] = sums[(v - begin) * rows + r];
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
          sum[r] = _mm512_dpbusd_epi32(sum[r], code, four(x + (w * rows + r) * 32 + 4 * s));
      }
      for (int r = 0; r < rows; ++r) sums[(v - begin) * rows + r] = sum[r];
    }
  }
}

// Codes by transposing 8 x 8 bits, which GFNI does: the rows of a matrix are bytes of planes, the
// columns its inputs. A code has `kField` bits, the first n of them used; a matrix of 8 rows holds
// 8 / kField bytes of inputs, so that a transposed byte is as many codes, from the top down.
//
// Planes are interleaved byte by byte until `kField` of an output are neighbours: with registers
// of four 128-bit parts l, matrix m has
//   kField 2: both halves of part l are outputs 4 l + 2 m and + 1, all four bytes of inputs;
//   kField 4: part l is output 4 l + m, bytes 0, 1 in its first half and 2, 3 in the second;
//   kField 8: part l is output 4 l + m / 2, bytes 2 (m % 2) and + 1 in its halves.
template <int n>
struct Transposed {
  static constexpr int kField = n <= 2 ? 2 : n <= 4 ? 4 : 8;
  static constexpr int kFields = 8 / kField;
  static constexpr int kSums = kField == 2 ? 2 : 4;  // registers of sums for 16 outputs
  static constexpr int kInputs = kField == 2 ? 4 : 2;

  // Inputs of a word as the halves of the parts have them, for every field, or for both m % 2.
  INLINE_VNNI static void inputs(const int8_t* x, __m512i* out) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 16));
    if (kField == 8) {
      out[0] = _mm512_broadcast_i32x4(low);
      out[1] = _mm512_broadcast_i32x4(high);
    } else if (kField == 4) {
      out[0] = _mm512_broadcast_i32x4(_mm_unpacklo_epi64(low, high));
      out[1] = _mm512_broadcast_i32x4(_mm_unpackhi_epi64(low, high));
    } else {
      out[0] = _mm512_broadcastq_epi64(low);
      out[1] = _mm512_broadcastq_epi64(_mm_unpackhi_epi64(low, low));
      out[2] = _mm512_broadcastq_epi64(high);
      out[3] = _mm512_broadcastq_epi64(_mm_unpackhi_epi64(high, high));
    }
  }

  INLINE_VNNI static void matrices(const __m512i* plane, __m512i* out) {
    const __m512i none = _mm512_setzero_si512();
    __m512i pair[4][2], quad[2][4];
    for (int i = 0; 2 * i < kField; ++i) {
      const __m512i first = 2 * i < n ? plane[2 * i] : none;
      const __m512i second = 2 * i + 1 < n ? plane[2 * i + 1] : none;
      pair[i][0] = _mm512_unpacklo_epi8(first, second);
      pair[i][1] = _mm512_unpackhi_epi8(first, second);
    }
    for (int i = 0; 4 * i < kField && kField > 2; ++i) {
      for (int h = 0; h < 2; ++h) {
        quad[i][2 * h] = _mm512_unpacklo_epi16(pair[2 * i][h], pair[2 * i + 1][h]);
        quad[i][2 * h + 1] = _mm512_unpackhi_epi16(pair[2 * i][h], pair[2 * i + 1][h]);
      }
    }
    for (int m = 0; m < kField; ++m) {
      if (kField == 2) out[m] = pair[0][m];
      if (kField == 4) out[m] = quad[0][m];
      if (kField == 8)
        out[m] = m % 2 ? _mm512_unpackhi_epi32(quad[0][m / 2], quad[1][m / 2])
                       : _mm512_unpacklo_epi32(quad[0][m / 2], quad[1][m / 2]);
    }
  }

  // Takes the inputs in order. Leaves sums in parts, 2^(8-n) times too large.
  template <int rows>
  WITH_VNNI static void add(const Operands& o, const int8_t* x, __m512i* sums, int64_t begin,
                            int64_t end) {
    const __m512i columns = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201ULL));
    const __m512i top = _mm512_set1_epi8(static_cast<char>(0xFF << (8 - kField)));
    for (int64_t w = 0; w < o.words; ++w) {
      __m512i given[rows][kInputs];
      for (int r = 0; r < rows; ++r) inputs(x + (w * rows + r) * 32, given[r]);
      for (int64_t v = begin; v < end; ++v) {
        __m512i plane[n], matrix[kField];
        for (int b = 0; b < n; ++b) plane[b] = o.plane(b, w, v);
        matrices(plane, matrix);
        __m512i* sum = sums + (v - begin) * rows * kSums;
#pragma GCC unroll 8
        for (int m = 0; m < kField; ++m) {
          const __m512i codes = _mm512_gf2p8affine_epi64_epi8(columns, matrix[m], 0);
#pragma GCC unroll 4
          for (int f = 0; f < kFields; ++f) {
            const __m512i code =
                kFields == 1 ? codes
                             : _mm512_and_si512(_mm512_slli_epi16(codes, f * kField), top);
            for (int r = 0; r < rows; ++r) {
              __m512i& own = sum[r * kSums + (kField == 8 ? m / 2 : m)];
              own = _mm512_dpbusd_epi32(own, code, given[r][kField == 8 ? m % 2 : f]);
            }
          }
        }
      }
    }
  }
};

// What a kernel wants and leaves.
struct Way {
  Kernel kernel;
  bool by_bit;  // inputs
  int parts;    // of a sum
};

// More rows than two leave `masked` and `Transposed` no registers.
template <int n>
Way choose(int rows) {
  using By = Transposed<n>;
  switch (rows) {
    case 1: return n == 1 ? Way{masked<1>, true, 1} : Way{By::template add<1>, false, By::kSums};
    case 2: return n == 1 ? Way{masked<2>, true, 1} : Way{By::template add<2>, false, By::kSums};
    case 4: return {shifted<n, 4>, true, 1};
    default: return {shifted<n, 8>, true, 1};
  }
}

Way choose(int n, int rows) {
  static constexpr Way (*kChoose[])(int) = {choose<1>, choose<2>, choose<3>, choose<4>,
                                            choose<5>, choose<6>, choose<7>, choose<8>};
  return kChoose[n - 1](rows);
}

int tile_rows(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// 32 inputs by bit: those of a word's [4 bytes, 8 bits] as [8, 4], so that the four of one bit are
// neighbours.
void by_bit(const int8_t* from, int8_t* to) {
  const auto byte = [from](int i) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * i));
  };
  const __m128i low = _mm_unpacklo_epi8(byte(0), byte(1)), high = _mm_unpacklo_epi8(byte(2), byte(3));
  __m128i* four = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(four, _mm_unpacklo_epi16(low, high));
  _mm_storeu_si128(four + 1, _mm_unpackhi_epi16(low, high));
}

// Tile after tile, x as [words, rows of the tile, 32], and sum x of every row.
void pack(const int8_t* x, int n, int64_t rows, int64_t words, int8_t* packed, uint32_t* totals) {
  for (int64_t row = 0; row < rows;) {
    const int tile = tile_rows(rows - row);
    const Way way = choose(n, tile);
    int8_t* to = packed + row * words * 32;
    for (int r = 0; r < tile; ++r) {
      const int8_t* own = x + (row + r) * words * 32;
      int32_t total = 0;
      for (int64_t k = 0; k < words * 32; ++k) total += own[k];
      totals[row + r] = static_cast<uint32_t>(total);
      for (int64_t w = 0; w < words; ++w) {
        int8_t* place = to + (w * tile + r) * 32;
        if (way.by_bit)
          by_bit(own + w * 32, place);
        else
          std::memcpy(place, own + w * 32, 32);
      }
    }
    row += tile;
  }
}

// sum x (2c + 1) = 2 sum x u - (2^n - 1) sum x, in numbers modulo 2^32 until the end.
void finish(const int32_t* sums, int parts, int n, uint32_t total, int64_t stride, int64_t count,
            int32_t* y) {
  total *= (1u << n) - 1;
  for (int64_t v = 0; v < count; ++v, sums += stride) {
    for (int l = 0; l < kLanes; ++l) {
      int32_t sum = sums[l];
      if (parts == 4) {
        const int32_t* p = sums + (l % 4) * kLanes + (l / 4) * 4;
        sum = (p[0] + p[1] + p[2] + p[3]) >> (8 - n);
      } else if (parts == 2) {
        const int32_t* p = sums + (l % 4 / 2) * kLanes + (l / 4) * 4 + (l % 2) * 2;
        sum = (p[0] + p[1]) >> (8 - n);
      }
      y[v * kLanes + l] = static_cast<int32_t>(2u * static_cast<uint32_t>(sum) - total);
    }
  }
}

// y [rows, (end - begin) * kLanes] for the outputs of registers begin to end.
void multiply(const Operands& o, int n, int64_t rows, const int8_t* packed, const uint32_t* totals,
              int64_t begin, int64_t end, int32_t* y) {
  for (int64_t row = 0; row < rows;) {
    const int tile = tile_rows(rows - row);
    const Way way = choose(n, tile);
    const int64_t stride = tile * way.parts;  // registers of sums for one of outputs
    const size_t size = (end - begin) * stride * sizeof(__m512i);
    __m512i* sums = static_cast<__m512i*>(std::aligned_alloc(sizeof(__m512i), size));
    std::memset(sums, 0, size);
    way.kernel(o, packed + row * o.words * 32, sums, begin, end);
    for (int r = 0; r < tile; ++r) {
      const int32_t* own = reinterpret_cast<const int32_t*>(sums + r * way.parts);
      finish(own, way.parts, n, totals[row + r], stride * kLanes, end - begin,
             y + (row + r) * (end - begin) * kLanes);
    }
    std::free(sums);
    row += tile;
  }
}

// fixed_point of one row: digit d of input k to digits[d * stride + k]; returns the step.
WITH_VNNI float fixed_point(const float* x, int64_t inputs, int count, int8_t* digits,
                            int64_t stride) {
  const auto valid = [inputs](int64_t k) {
    return inputs - k >= kLanes ? __mmask16(0xFFFF) : __mmask16((1u << (inputs - k)) - 1);
  };
  __m512 largest = _mm512_setzero_ps();
  for (int64_t k = 0; k < inputs; k += kLanes)
    largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_maskz_loadu_ps(valid(k), x + k)));
  const float peak = _mm512_reduce_max_ps(largest);
  const float top = 127.0f * std::ldexp(1.0f, 8 * (count - 1));
  const float step = std::fmax(peak / top, std::numeric_limits<float>::min());
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const __m512 ratio =
        _mm512_div_ps(_mm512_maskz_loadu_ps(valid(k), x + k), _mm512_set1_ps(step));
    const __m512 clipped =
        _mm512_min_ps(_mm512_max_ps(ratio, _mm512_set1_ps(-top)), _mm512_set1_ps(top));
    __m512i code = _mm512_cvtps_epi32(clipped);  // to nearest, ties to even
    for (int d = 0; d < count; ++d) {
      // The low byte, as a signed number, is the digit; what it lacks goes to the next one.
      _mm512_mask_cvtepi32_storeu_epi8(digits + d * stride + k, valid(k), code);
      const __m512i digit = _mm512_srai_epi32(_mm512_slli_epi32(code, 24), 24);
      code = _mm512_srai_epi32(_mm512_sub_epi32(code, digit), 8);
    }
  }
  return step;
}

// y = scale * step / 2 * sum_d 256^d sum_d, of one row; sums are [digits, batch, width].
void scaled(const int32_t* sums, int count, int64_t distance, float step, const float* scales,
            int64_t width, float* y) {
  for (int64_t i = 0; i < width; ++i) {
    float value = static_cast<float>(sums[(count - 1) * distance + i]);
    for (int d = count - 2; d >= 0; --d)
      value = value * 256.0f + static_cast<float>(sums[d * distance + i]);
    y[i] = value * (0.5f * step) * scales[i];
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

ffi::Error plane_product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                         ffi::Buffer<ffi::U32> planes, ffi::Buffer<ffi::F32> scales,
                         ffi::ResultBuffer<ffi::F32> y, int64_t n_planes, int64_t digits) {
  const auto xs = x.dimensions(), ps = planes.dimensions(), ss = scales.dimensions();
  const int n = static_cast<int>(n_planes), count = static_cast<int>(digits);
  if (xs.size() != 2 || ps.size() != 3 || ss.size() != 2 || n < 1 || n > ps[0] || n > 8 ||
      n > ss[0] || ss[1] != ps[2] || count < 1 || count > 4 || (xs[1] + 31) / 32 != ps[1])
    return ffi::Error::InvalidArgument("plane_product: shapes that do not fit");
  const int64_t batch = xs[0], inputs = xs[1], words = ps[1], outputs = ps[2];
  const int64_t rows = batch * count, width = words * 32;
  const Operands o{planes.typed_data(), words, outputs};
  std::unique_ptr<int8_t[]> plain(new int8_t[rows * width]()), packed(new int8_t[rows * width]);
  std::unique_ptr<uint32_t[]> totals(new uint32_t[rows]);
  std::unique_ptr<float[]> steps(new float[batch]);
  for (int64_t b = 0; b < batch; ++b)
    steps[b] = fixed_point(x.typed_data() + b * inputs, inputs, count, plain.get() + b * width,
                           batch * width);
  pack(plain.get(), n, rows, words, packed.get(), totals.get());
  const int64_t vectors = (outputs + kLanes - 1) / kLanes;
  int64_t parts = words * outputs * n * rows / kShare;
  if (parts > 2 * pool.num_threads()) parts = 2 * pool.num_threads();  // evens out busy cores
  if (parts > vectors) parts = vectors;
  if (parts < 1) parts = 1;
  const float* scale = scales.typed_data() + (n - 1) * outputs;
  float* to = y->typed_data();
  in_parts(pool, parts, [&](int64_t part) {
    const int64_t begin = vectors * part / parts, end = vectors * (part + 1) / parts;
    const int64_t first = begin * kLanes, last = end * kLanes < outputs ? end * kLanes : outputs;
    const int64_t own = (end - begin) * kLanes;
    std::unique_ptr<int32_t[]> sums(new int32_t[rows * own]);
    multiply(o, n, rows, packed.get(), totals.get(), begin, end, sums.get());
    for (int64_t b = 0; b < batch; ++b)
      scaled(sums.get() + b * own, count, batch * own, steps[b], scale + first, last - first,
             to + b * outputs + first);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dual_precision_plane_product, plane_product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("planes")
                                  .Attr<int64_t>("digits"));

extern "C" int dual_precision_supported() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni");
}
