// The float parts of a decoder row by row, for x86 CPUs with AVX512, called by XLA: see
// primitives/attention.py. A row has the same sums in the same order whatever the number of rows.
// One call for what XLA starts a dozen small programs for, of which each takes longer to start than
// to run.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "lanes.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using native::exponential;
using native::valid;

constexpr int64_t kLanes = 16;
constexpr int64_t kMostRows = 8;  // that read keys and values together

WITH_AVX512 float dot(const float* a, const float* b, int64_t count) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 some = valid(count - i);
    sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, a + i), _mm512_maskz_loadu_ps(some, b + i),
                          sum);
  }
  return _mm512_reduce_add_ps(sum);
}

WITH_AVX512 void normalize(const float* x, const float* scale, int64_t count, float epsilon,
                           float* y) {
  const float factor = 1.0f / std::sqrt(dot(x, x, count) / static_cast<float>(count) + epsilon);
  const __m512 all = _mm512_set1_ps(factor);
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 some = valid(count - i);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), all);
    _mm512_mask_storeu_ps(y + i, some, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(some, scale + i)));
  }
}

// x [size] turned by its position: feature i goes with i + size / 2.
void rotate(const float* x, const float* cos, const float* sin, int64_t size, float* y) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    y[i] = x[i] * cos[i] - x[i + half] * sin[i];
    y[i + half] = x[i] * sin[i] + x[i + half] * cos[i];
  }
}

// Scores [R, most] of the rows q [R, size] with keys 0 to `end`. A key is read once for all of them:
// to read it takes longer than its products.
template <int R>
WITH_AVX512 void score(const float* q, const float* keys, int64_t end, int64_t stride, int64_t size,
                       int64_t most, float* scores) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t s = 0; s < end; ++s, keys += stride) {
    __m512 sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += kLanes) {
      const __mmask16 some = valid(size - i);
      const __m512 key = _mm512_maskz_loadu_ps(some, keys + i);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        sums[r] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, q + r * size + i), key, sums[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) scores[r * most + s] = _mm512_reduce_add_ps(sums[r]) * scale;
  }
}

// Scores of one row to e^(score - the largest); 1 / their sum.
WITH_AVX512 float exponentials(float* scores, int64_t seen) {
  __m512 largest = _mm512_set1_ps(-INFINITY);
  for (int64_t s = 0; s < seen; s += kLanes)
    largest = _mm512_mask_max_ps(largest, valid(seen - s), largest,
                                 _mm512_maskz_loadu_ps(valid(seen - s), scores + s));
  const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  __m512 total = _mm512_setzero_ps();
  for (int64_t s = 0; s < seen; s += kLanes) {
    const __mmask16 some = valid(seen - s);
    const __m512 away = _mm512_sub_ps(_mm512_maskz_loadu_ps(some, scores + s), peak);
    const __m512 weight = _mm512_maskz_mov_ps(some, exponential(away));
    total = _mm512_add_ps(total, weight);
    _mm512_mask_storeu_ps(scores + s, some, weight);
  }
  return 1.0f / _mm512_reduce_add_ps(total);
}

// C registers, of which `left` floats count, of the weighted values of R rows; row r sees `seen` + r.
template <int R, int C>
WITH_AVX512 void weigh(const float* weights, const float* shares, const float* values, int64_t seen,
                       int64_t stride, int64_t left, int64_t most, float* y) {
  __m512 sums[R][C];
  __mmask16 some[C];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    some[c] = valid(left - c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r][c] = _mm512_setzero_ps();
  }
  for (int64_t s = 0; s < seen; ++s) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const __m512 value = _mm512_maskz_loadu_ps(some[c], values + s * stride + c * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        sums[r][c] = _mm512_fmadd_ps(_mm512_set1_ps(weights[r * most + s]), value, sums[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      for (int64_t s = seen; s < seen + r; ++s)  // what the rows before have added
        sums[r][c] = _mm512_fmadd_ps(
            _mm512_set1_ps(weights[r * most + s]),
            _mm512_maskz_loadu_ps(some[c], values + s * stride + c * kLanes), sums[r][c]);
      _mm512_mask_storeu_ps(y + r * stride + c * kLanes, some[c],
                            _mm512_mul_ps(sums[r][c], _mm512_set1_ps(shares[r])));
    }
  }
}

// One head of R rows that follow each other, q [R, size]: the first sees `seen` keys and values, which
// lie `stride` floats apart, each other one more. Scores have room for [R, most].
template <int R>
void attend(const float* q, const float* keys, const float* values, int64_t seen, int64_t stride,
            int64_t size, int64_t most, float* scores, float* y) {
  constexpr int C = R > 4 ? 2 : 4;  // sums that fit the registers, and do not wait for each other
  score<R>(q, keys, seen + R - 1, stride, size, most, scores);
  float shares[R];
  for (int r = 0; r < R; ++r) shares[r] = exponentials(scores + r * most, seen + r);
  for (int64_t i = 0; i < size; i += C * kLanes)
    weigh<R, C>(scores, shares, values + i, seen, stride, size - i, most, y + i);
}

ffi::Error rms_norm(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> scale,
                    ffi::ResultBuffer<ffi::F32> y, float epsilon) {
  const auto xs = x.dimensions();
  if (xs.size() != 2 || scale.dimensions().size() != 1 || scale.dimensions()[0] != xs[1] ||
      y->element_count() != x.element_count())
    return ffi::Error::InvalidArgument("rms_norm: shapes that do not fit");
  for (int64_t r = 0; r < xs[0]; ++r)
    normalize(x.typed_data() + r * xs[1], scale.typed_data(), xs[1], epsilon,
              y->typed_data() + r * xs[1]);
  return ffi::Error::Success();
}

// qkv [N, T, 3, H, D]; keys, values [N, S, H, D]; length [N]; cos, sin [S, D / 2];
// y [N, T, H, D]; the keys and values that come out are those that went in.
ffi::Error attention(ffi::Buffer<ffi::F32> qkv, ffi::Buffer<ffi::F32> keys_in,
                     ffi::Buffer<ffi::F32> values_in, ffi::Buffer<ffi::S32> length,
                     ffi::Buffer<ffi::F32> cos, ffi::Buffer<ffi::F32> sin,
                     ffi::ResultBuffer<ffi::F32> y, ffi::ResultBuffer<ffi::F32> keys,
                     ffi::ResultBuffer<ffi::F32> values) {
  const auto qs = qkv.dimensions(), ks = keys_in.dimensions();
  if (qs.size() != 5 || ks.size() != 4 || qs[2] != 3 || qs[0] != ks[0] || qs[3] != ks[2] ||
      qs[4] != ks[3] || qs[4] % 2 || length.element_count() != static_cast<size_t>(qs[0]) ||
      cos.element_count() != static_cast<size_t>(ks[1] * qs[4] / 2) ||
      sin.element_count() != cos.element_count() ||
      values_in.element_count() != keys_in.element_count() ||
      y->element_count() * 3 != qkv.element_count())
    return ffi::Error::InvalidArgument("attention: shapes that do not fit");
  if (keys->typed_data() != keys_in.typed_data() || values->typed_data() != values_in.typed_data()) {
    std::copy_n(keys_in.typed_data(), keys_in.element_count(), keys->typed_data());
    std::copy_n(values_in.typed_data(), values_in.element_count(), values->typed_data());
  }
  const int64_t rows = qs[1], heads = qs[3], size = qs[4], context = ks[1], stride = heads * size;
  std::vector<float> scores(kMostRows * context), turned(kMostRows * size);
  for (int64_t n = 0; n < qs[0]; ++n) {
    float* own_keys = keys->typed_data() + n * context * stride;
    float* own_values = values->typed_data() + n * context * stride;
    const int64_t before = std::max<int64_t>(length.typed_data()[n], 0);
    const float* first = qkv.typed_data() + n * rows * 3 * stride;
    for (int64_t t = 0; t < rows && before + t < context; ++t) {
      const float* row = first + t * 3 * stride;
      const int64_t at = before + t, half = size / 2;
      for (int64_t h = 0; h < heads; ++h)
        rotate(row + stride + h * size, cos.typed_data() + at * half, sin.typed_data() + at * half,
               size, own_keys + at * stride + h * size);
      std::copy_n(row + 2 * stride, stride, own_values + at * stride);
    }
    for (int64_t t = 0; t < rows;) {
      // A row beyond the context means nothing, and is given what the last one sees.
      const int64_t at = std::min(before + t, context - 1), half = size / 2;
      const int64_t left = std::max<int64_t>(std::min(rows - t, context - before - t), 1);
      const int together = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const auto way = together == 8   ? attend<8>
                       : together == 4 ? attend<4>
                       : together == 2 ? attend<2>
                                       : attend<1>;
      for (int64_t h = 0; h < heads; ++h) {
        for (int r = 0; r < together; ++r)
          rotate(first + (t + r) * 3 * stride + h * size, cos.typed_data() + (at + r) * half,
                 sin.typed_data() + (at + r) * half, size, turned.data() + r * size);
        way(turned.data(), own_keys + h * size, own_values + h * size, at + 1, stride, size, context,
            scores.data(), y->typed_data() + (n * rows + t) * stride + h * size);
      }
      t += together;
    }
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dual_precision_rms_norm, rms_norm,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(dual_precision_attention, attention,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

extern "C" int dual_precision_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
}
