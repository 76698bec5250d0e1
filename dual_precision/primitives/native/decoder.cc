// The float parts of a decoder row by row, for x86 CPUs with AVX512, called by XLA: see
// primitives/attention.py. A row is computed by the same instructions whatever the number of rows.
// One call for what XLA starts a dozen small programs for, of which each takes longer to start than
// to run.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#define WITH_AVX512 __attribute__((target("avx512f,avx512dq")))

namespace {

constexpr int64_t kLanes = 16;

WITH_AVX512 inline __mmask16 valid(int64_t left) {
  return left >= kLanes ? __mmask16(0xFFFF) : __mmask16((1u << left) - 1);
}

WITH_AVX512 float dot(const float* a, const float* b, int64_t count) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 some = valid(count - i);
    sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, a + i), _mm512_maskz_loadu_ps(some, b + i),
                          sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// e^x for x <= 0, to about 2 units in the last place: 2^n times a polynomial (Cephes, expf).
WITH_AVX512 __m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                  5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
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

// One head of one row: q [size] with `seen` keys and values that lie `stride` floats apart.
WITH_AVX512 void attend(const float* q, const float* keys, const float* values, int64_t seen,
                        int64_t stride, int64_t size, float* scores, float* y) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  float peak = -INFINITY;
  for (int64_t s = 0; s < seen; ++s) {
    scores[s] = dot(q, keys + s * stride, size) * scale;
    peak = std::max(peak, scores[s]);
  }
  __m512 total = _mm512_setzero_ps();
  for (int64_t s = 0; s < seen; s += kLanes) {
    const __mmask16 some = valid(seen - s);
    const __m512 away =
        _mm512_sub_ps(_mm512_maskz_loadu_ps(some, scores + s), _mm512_set1_ps(peak));
    const __m512 weight = _mm512_maskz_mov_ps(some, exponential(away));
    total = _mm512_add_ps(total, weight);
    _mm512_mask_storeu_ps(scores + s, some, weight);
  }
  const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 some = valid(size - i);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t s = 0; s < seen; ++s)
      sum = _mm512_fmadd_ps(_mm512_set1_ps(scores[s]),
                            _mm512_maskz_loadu_ps(some, values + s * stride + i), sum);
    _mm512_mask_storeu_ps(y + i, some, _mm512_mul_ps(sum, share));
  }
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
  std::vector<float> scores(context), turned(size);
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
    for (int64_t t = 0; t < rows; ++t) {
      const int64_t at = std::min(before + t, context - 1), half = size / 2;
      for (int64_t h = 0; h < heads; ++h) {
        rotate(first + t * 3 * stride + h * size, cos.typed_data() + at * half,
               sin.typed_data() + at * half, size, turned.data());
        attend(turned.data(), own_keys + h * size, own_values + h * size, at + 1, stride, size,
               scores.data(), y->typed_data() + (n * rows + t) * stride + h * size);
      }
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
