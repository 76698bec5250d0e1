// What a row goes through before and after its sums with bit planes: fixed point, digits in the
// order of the tiles; whole sums, floats. Used by plane_product.h.

#pragma once

#include <cmath>
#include <limits>

#include "lanes.h"
#include "plane_tiles.h"

namespace planes {

using native::valid;

// Three rows run as four, five to seven as eight: one tile takes less time than two, each of which
// reads the weights.
inline int tile_rows(int64_t left) { return left >= 5 ? 8 : left >= 3 ? 4 : left >= 2 ? 2 : 1; }

// Rows with those that fill up the last tile.
inline int64_t tiled(int64_t rows) {
  const int64_t left = rows % 8;
  return rows + (left >= 5 ? 8 - left : left == 3 ? 1 : 0);
}

// 32 inputs by bit: those of a word's [4 bytes, 8 bits] as [8, 4], so that the four of one bit are
// neighbours.
inline void by_bit(const int8_t* from, int8_t* to) {
  const auto byte = [from](int i) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * i));
  };
  const __m128i low = _mm_unpacklo_epi8(byte(0), byte(1)), high = _mm_unpacklo_epi8(byte(2), byte(3));
  __m128i* four = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(four, _mm_unpacklo_epi16(low, high));
  _mm_storeu_si128(four + 1, _mm_unpackhi_epi16(low, high));
}

// Tile after tile, x as [words, rows of the tile, 32], and sum x of every row.
inline void pack(const int8_t* x, int n, int64_t rows, int64_t words, int8_t* packed,
                 uint32_t* totals) {
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

// Sums of neighbours: of every four lanes a0 + a1, a2 + a3, b0 + b1, b2 + b3.
WITH_VNNI inline __m512i pairs(__m512i a, __m512i b) {
  const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
  return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                          _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xDD)));
}

// sum x (2c + 1) = 2 sum x u - (2^n - 1) sum x of a register of outputs, in numbers modulo 2^32 until
// the end. Where sums are in parts, four or two neighbouring lanes belong to an output, and are
// 2^excess times too large.
WITH_VNNI inline __m512i whole(const __m512i* sums, int parts, __m128i excess, __m512i subtracted) {
  __m512i sum = sums[0];
  if (parts == 4) sum = pairs(pairs(sums[0], sums[1]), pairs(sums[2], sums[3]));
  if (parts == 2) sum = pairs(sums[0], sums[1]);
  sum = _mm512_sra_epi32(sum, excess);
  return _mm512_sub_epi32(_mm512_add_epi32(sum, sum), subtracted);
}

// fixed_point of one row: digit d of input k to digits[d * stride + k]; returns the step, NaN if
// an input is not finite.
WITH_VNNI inline float fixed_point(const float* x, int64_t inputs, int count, int8_t* digits,
                            int64_t stride) {
  __m512 largest = _mm512_setzero_ps();
  __mmask16 no_number = 0;  // max_ps would lose a NaN
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const __m512 some = _mm512_maskz_loadu_ps(valid(inputs - k), x + k);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(some));
    no_number |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
  }
  const float peak = _mm512_reduce_max_ps(largest);
  if (no_number || std::isinf(peak)) return std::numeric_limits<float>::quiet_NaN();
  const float top = 127.0f * std::ldexp(1.0f, 8 * (count - 1));
  const float step = std::fmax(peak * (1.0f / top), std::numeric_limits<float>::min());
  const __m512 inverse = _mm512_set1_ps(1.0f / step);  // as ste.in_steps: not a quotient each
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const __m512 ratio = _mm512_mul_ps(_mm512_maskz_loadu_ps(valid(inputs - k), x + k), inverse);
    const __m512 clipped =
        _mm512_min_ps(_mm512_max_ps(ratio, _mm512_set1_ps(-top)), _mm512_set1_ps(top));
    __m512i code = _mm512_cvtps_epi32(clipped);  // to nearest, ties to even
    for (int d = 0; d < count; ++d) {
      // The low byte, as a signed number, is the digit; what it lacks goes to the next one.
      _mm512_mask_cvtepi32_storeu_epi8(digits + d * stride + k, valid(inputs - k), code);
      const __m512i digit = _mm512_srai_epi32(_mm512_slli_epi32(code, 24), 24);
      code = _mm512_srai_epi32(_mm512_sub_epi32(code, digit), 8);
    }
  }
  return step;
}

// The codes of one row on a grid that is given, see ste.uniform_code; returns the step, or NaN where
// an input is one.
WITH_VNNI inline float on_grid(const float* x, int64_t inputs, float step, const float* ends,
                        int8_t* codes) {
  const __m512 inverse = _mm512_set1_ps(1.0f / step);
  const __m512 low = _mm512_set1_ps(ends[0]), top = _mm512_set1_ps(ends[1]);
  __mmask16 no_number = 0;
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const __mmask16 some = valid(inputs - k);
    const __m512 own = _mm512_maskz_loadu_ps(some, x + k);
    no_number |= _mm512_cmp_ps_mask(own, own, _CMP_UNORD_Q);
    const __m512 ratio = _mm512_mul_ps(own, inverse);
    const __m512i code = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(ratio, low), top));
    _mm512_mask_cvtepi32_storeu_epi8(codes + k, some, code);
  }
  return no_number ? std::numeric_limits<float>::quiet_NaN() : step;
}

// y = scale * step / 2 * sum_d 256^d sum_d, of one row of several digits; sums are
// [digits, batch, width], and whole registers of each.
WITH_VNNI inline void scaled(const int32_t* sums, int count, int64_t distance, float step,
                             const float* scales, int64_t width, float* y) {
  const __m512 base = _mm512_set1_ps(256.0f), half = _mm512_set1_ps(0.5f * step);
  const auto digit = [=](int d, int64_t i) WITH_VNNI {
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + d * distance + i));
  };
  for (int64_t i = 0; i < width; i += kLanes) {
    __m512 value = digit(count - 1, i);
    for (int d = count - 2; d >= 0; --d)
      value = _mm512_add_ps(_mm512_mul_ps(value, base), digit(d, i));
    const __mmask16 some = valid(width - i);
    value = _mm512_mul_ps(_mm512_mul_ps(value, half), _mm512_maskz_loadu_ps(some, scales + i));
    _mm512_mask_storeu_ps(y + i, some, value);
  }
}

}  // namespace planes
