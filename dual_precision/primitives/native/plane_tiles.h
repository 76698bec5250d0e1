// Sums over tiles of bit planes, for x86 CPUs with AVX512-VNNI and GFNI. Used by plane_product.h.
//
// The n bits of a weight are expanded to a byte, and bytes multiplied four to a lane (vpdpbusd).
// Instructions per 64 weights and row: 2.4 in `masked`, for one plane; 3 to 5 in `Transposed`; 1
// and 2n for all rows in `shifted`. AND and population count with eight bits of x take 3n. The
// planes are what is read from memory.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define WITH_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,gfni")))
#define INLINE_VNNI WITH_VNNI __attribute__((always_inline)) inline

namespace planes {

constexpr int kLanes = 16;        // outputs in a register
constexpr int kMostRegisters = 16;  // of sums for kLanes outputs of a tile

struct Operands {
  const uint32_t* planes;
  int64_t words, outputs;
  bool in_parts;  // of the outputs

  // `ahead` fetches two words ahead: the processor's own prefetching ends with a part's share of
  // each row. Where nothing is shared out, it is a tenth of the time (measured).
  template <bool ahead = true>
  INLINE_VNNI __m512i plane(int b, int64_t w, int64_t v) const {
    const uint32_t* at = planes + (b * words + w) * outputs + v * kLanes;
    if (ahead) _mm_prefetch(reinterpret_cast<const char*>(at + 2 * outputs), _MM_HINT_T1);
    const int64_t left = outputs - v * kLanes;
    if (__builtin_expect(left >= kLanes, 1)) return _mm512_loadu_si512(at);
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << left) - 1), at);
  }
};

// A kernel adds up a tile: some rows, the outputs of registers begin to end. Its inputs are x as
// [words, rows, 32], its sums [end - begin, rows, parts, kLanes]: rows side by side, because rows
// that lie 4096 bytes apart would share one set of the first cache. What the sums of one row were
// before counts for nothing; those of more rows are added to, which takes them less time.
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
        __m512i total = rows > 1 || first ? sums[(v - begin) * rows + r] : _mm512_setzero_si512();
        for (int s = 0; s < 8; ++s)
          total = _mm512_add_epi32(total, _mm512_srai_epi32(sum[r][s], s));
        sums[(v - begin) * rows + r] = total;
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

  // Some words of all outputs. Of several, the fields are added up apart, where they stand in their
  // bytes, and the sums are shifted instead of the codes.
  template <int rows, int together, bool ahead>
  INLINE_VNNI static void add_words(const Operands& o, const int8_t* x, __m512i* sums, int64_t begin,
                                    int64_t end, int64_t w) {
    constexpr int kApart = together > 1 ? kFields : 1;
    const __m512i columns = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201ULL));
    __m512i given[together][rows][kInputs];
    for (int u = 0; u < together; ++u)
      for (int r = 0; r < rows; ++r) inputs(x + ((w + u) * rows + r) * 32, given[u][r]);
    for (int64_t v = begin; v < end; ++v, sums += rows * kSums) {
      __m512i own[rows][kApart][kSums];
      for (int r = 0; r < rows; ++r)
        for (int f = 0; f < kApart; ++f)
          for (int s = 0; s < kSums; ++s)
            own[r][f][s] = (rows > 1 || w) && !f ? sums[r * kSums + s] : _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int u = 0; u < together; ++u) {
        __m512i plane[n], matrix[kField];
        for (int b = 0; b < n; ++b) plane[b] = o.plane<ahead>(b, w + u, v);
        matrices(plane, matrix);
#pragma GCC unroll 8
        for (int m = 0; m < kField; ++m) {
          const __m512i codes = _mm512_gf2p8affine_epi64_epi8(columns, matrix[m], 0);
#pragma GCC unroll 4
          for (int f = 0; f < kFields; ++f) {
            const __m512i code = kApart > 1 ? field(codes, f) : field(at_top(codes, f), 0);
            for (int r = 0; r < rows; ++r) {
              __m512i& sum = own[r][kApart > 1 ? f : 0][kField == 8 ? m / 2 : m];
              sum = _mm512_dpbusd_epi32(sum, code, given[u][r][kField == 8 ? m % 2 : f]);
            }
          }
        }
      }
      for (int r = 0; r < rows; ++r)
        for (int s = 0; s < kSums; ++s) {
          __m512i sum = own[r][0][s];
          for (int f = 1; f < kApart; ++f)
            sum = _mm512_add_epi32(sum, _mm512_slli_epi32(own[r][f][s], f * kField));
          sums[r * kSums + s] = sum;
        }
    }
  }

  INLINE_VNNI static __m512i field(__m512i codes, int f) {
    constexpr int kMask = 0xFF & (0xFF << (8 - kField));
    if (kFields == 1) return codes;
    return _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(kMask >> (f * kField))));
  }

  INLINE_VNNI static __m512i at_top(__m512i codes, int f) {
    return kFields == 1 ? codes : _mm512_slli_epi16(codes, f * kField);
  }

  template <int rows, bool ahead>
  WITH_VNNI static void add_all(const Operands& o, const int8_t* x, __m512i* sums, int64_t begin,
                                int64_t end) {
    constexpr int kTogether = rows > 1 || n == 8 ? 1 : n <= 2 ? 4 : 2;  // what the registers hold
    int64_t w = 0;
    for (; w + kTogether <= o.words; w += kTogether)
      add_words<rows, kTogether, ahead>(o, x, sums, begin, end, w);
    for (; w < o.words; ++w) add_words<rows, 1, ahead>(o, x, sums, begin, end, w);
  }

  // Takes the inputs in order. Leaves sums in parts, 2^(8-n) times too large.
  template <int rows>
  static void add(const Operands& o, const int8_t* x, __m512i* sums, int64_t begin, int64_t end) {
    (o.in_parts ? add_all<rows, true> : add_all<rows, false>)(o, x, sums, begin, end);
  }
};

// What a kernel wants and leaves.
struct Way {
  Kernel kernel;
  bool by_bit;  // inputs
  int parts;    // of a sum
};

// More rows than two leave `masked` no registers. `Transposed` spills four, which is less than
// `shifted` takes to shift, but for codes of 3 and 4 bits and for eight rows (measured).
template <int n>
inline Way choose(int rows) {
  using By = Transposed<n>;
  switch (rows) {
    case 1: return n == 1 ? Way{masked<1>, true, 1} : Way{By::template add<1>, false, By::kSums};
    case 2: return n == 1 ? Way{masked<2>, true, 1} : Way{By::template add<2>, false, By::kSums};
    case 4:
      return n == 2 || n > 4 ? Way{By::template add<4>, false, By::kSums}
                             : Way{shifted<n, 4>, true, 1};
    default: return {shifted<n, 8>, true, 1};
  }
}

inline Way choose(int n, int rows) {
  switch (n) {  // no table: one in a function would be shared by all libraries of a process
    case 1: return choose<1>(rows);
    case 2: return choose<2>(rows);
    case 3: return choose<3>(rows);
    case 4: return choose<4>(rows);
    case 5: return choose<5>(rows);
    case 6: return choose<6>(rows);
    case 7: return choose<7>(rows);
    default: return choose<8>(rows);
  }
}

}  // namespace planes
