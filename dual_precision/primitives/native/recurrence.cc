// The recurrence of an LSTM whose weights are bit planes, for x86 CPUs with AVX512-VNNI, called by
// XLA: see primitives/recurrence.py.
//
//   gates  float  [texts, length, 4 H], products with inputs: i, f, g, o
//   c, h   float  [texts, H], of the byte before
//   bias   float  [4 H]
//   planes uint32 [bits, words, 4 H], scales, step, ends: as in planes.cc, of h
//   out    float  [texts, length, H]; c, h of the last byte
//
// One call for all bytes, because XLA takes longer to start what stands between two products than
// those products take.

#include <algorithm>

#include "lanes.h"
#include "plane_product.h"

namespace ffi = xla::ffi;

namespace {

using native::exponential;
using native::valid;
using planes::Floats;
using planes::kLanes;

constexpr int64_t kUnits = 16 * 1024;  // that a thread is worth

// above / below, with below of 1 to 4: a first guess, and what it lacks. To divide takes longer than
// e^x, so that products of gates are divided once.
struct Quotient {
  __m512 above, below;

  WITH_AVX512 __m512 value() const {
    const __m512 guess = _mm512_rcp14_ps(below);
    const __m512 lacks = _mm512_fnmadd_ps(below, guess, _mm512_set1_ps(1.0f));
    return _mm512_mul_ps(above, _mm512_fmadd_ps(guess, lacks, guess));
  }
};

WITH_AVX512 inline Quotient times(Quotient a, Quotient b) {
  return {_mm512_mul_ps(a.above, b.above), _mm512_mul_ps(a.below, b.below)};
}

// 1 / (1 + e^-x), from e = e^-|x|.
WITH_AVX512 inline Quotient sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
  const __m512 e = exponential(_mm512_sub_ps(zero, _mm512_abs_ps(x)));
  const __mmask16 below = _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ);
  return {_mm512_mask_mov_ps(one, below, e), _mm512_add_ps(one, e)};
}

// (1 - e) / (1 + e) with e = e^-2|x| and the sign of x; a polynomial, where that would lose digits
// (Cephes, tanhf).
WITH_AVX512 inline Quotient tanh_of(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), size = _mm512_abs_ps(x);
  const __m512 e = exponential(_mm512_mul_ps(size, _mm512_set1_ps(-2.0f)));
  const __m512 square = _mm512_mul_ps(x, x);
  __m512 p = _mm512_set1_ps(-5.70498872745e-3f);
  for (float c : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f})
    p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(c));
  const __m512 narrow = _mm512_fmadd_ps(_mm512_mul_ps(p, square), x, x);
  const __m512 sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
  const __mmask16 small = _mm512_cmp_ps_mask(size, _mm512_set1_ps(0.625f), _CMP_LT_OQ);
  return {_mm512_mask_mov_ps(_mm512_or_ps(_mm512_sub_ps(one, e), sign), small, narrow),
          _mm512_mask_mov_ps(_mm512_add_ps(one, e), small, one)};
}

// One text after one byte: c, h and out [H], with gates = given + bias + sums.
WITH_AVX512 void step(const float* given, const float* bias, const float* sums, int64_t units,
                      float* c, float* h, float* out) {
  for (int64_t k = 0; k < units; k += kLanes) {
    const __mmask16 some = valid(units - k);
    const auto gate = [&](int64_t at) WITH_AVX512 {
      at = at * units + k;
      const __m512 own = _mm512_add_ps(_mm512_maskz_loadu_ps(some, given + at),
                                       _mm512_maskz_loadu_ps(some, bias + at));
      return _mm512_add_ps(own, _mm512_maskz_loadu_ps(some, sums + at));
    };
    Quotient kept = sigmoid(gate(1));
    kept.above = _mm512_mul_ps(kept.above, _mm512_maskz_loadu_ps(some, c + k));
    const __m512 all =
        _mm512_add_ps(kept.value(), times(sigmoid(gate(0)), tanh_of(gate(2))).value());
    const __m512 shown = times(sigmoid(gate(3)), tanh_of(all)).value();
    _mm512_mask_storeu_ps(c + k, some, all);
    _mm512_mask_storeu_ps(h + k, some, shown);
    _mm512_mask_storeu_ps(out + k, some, shown);
  }
}

void copy(const Floats& from, ffi::Result<Floats>& to) {
  if (to->typed_data() != from.typed_data())
    std::copy_n(from.typed_data(), from.element_count(), to->typed_data());
}

ffi::Error recurrence(ffi::ThreadPool pool, Floats gates, Floats c_in, Floats h_in, Floats bias,
                      ffi::Buffer<ffi::U32> words, Floats scales, Floats grid_step, Floats ends,
                      ffi::Result<Floats> out, ffi::Result<Floats> c, ffi::Result<Floats> h,
                      int64_t n, int64_t digits) {
  const auto gs = gates.dimensions(), hs = h_in.dimensions();
  planes::Product product;
  if (gs.size() != 3 || hs.size() != 2 || gs[0] != hs[0] || gs[2] != 4 * hs[1] ||
      bias.element_count() != static_cast<size_t>(gs[2]) ||
      c_in.element_count() != h_in.element_count() || c->element_count() != h_in.element_count() ||
      h->element_count() != h_in.element_count() ||
      out->element_count() * 4 != gates.element_count() ||
      !planes::product_of(hs[0], hs[1], gs[2], words, scales, grid_step, ends, n, digits, product))
    return ffi::Error::InvalidArgument("recurrence: shapes that do not fit");
  const int64_t texts = gs[0], length = gs[1], units = hs[1];
  static thread_local planes::Scratch scratch;
  if (!scratch.reserve(product.bytes() + 4 * texts * gs[2], planes::kPieces + 1))
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "recurrence: no memory");
  product.take(scratch);
  float* sums = scratch.take<float>(texts * gs[2]);
  copy(c_in, c);
  copy(h_in, h);
  int64_t parts = std::min(texts, texts * units / kUnits);
  parts = parts > 1 ? std::min(parts, native::most_parts(pool)) : 1;
  for (int64_t t = 0; t < length; ++t) {
    product.run(pool, h->typed_data(), sums);
    const auto part = [&](int64_t p) {
      for (int64_t b = texts * p / parts; b < texts * (p + 1) / parts; ++b)
        step(gates.typed_data() + (b * length + t) * gs[2], bias.typed_data(), sums + b * gs[2],
             units, c->typed_data() + b * units, h->typed_data() + b * units,
             out->typed_data() + (b * length + t) * units);
    };
    if (parts > 1)
      native::in_parts(pool, parts, part);
    else
      part(0);
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dual_precision_recurrence, recurrence,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int64_t>("planes")
                                  .Attr<int64_t>("digits"));

extern "C" int dual_precision_supported() {
  return planes::supported() && __builtin_cpu_supports("avx512dq");
}
