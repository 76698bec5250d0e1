// plane_product for x86 CPUs with AVX512-VNNI, called by XLA: see bitserial.plane_product.
//
//   x      float  [batch, inputs]
//   planes uint32 [bits, words, outputs], most significant first; the first n are read
//   scales float  [bits, outputs]
//   step   float  [1], of x; or [0], where each row has its own step
//   ends   float  [2], smallest and largest code of x; or [0]
//   y      float  [batch, outputs]
//
// One call, from floats to floats, because XLA takes longer to start the ten small programs of the
// same arithmetic than a plane of a 4096 x 4096 matrix takes. Inside, x is rows of int8 digits.
// Built by native.py, with the header that jaxlib ships.

#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "parts.h"
#include "plane_tiles.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using native::in_parts;
using planes::kLanes;
using planes::kMostRegisters;
using planes::Operands;
using planes::Way;

constexpr int64_t kShare = 96 * 1024;       // words of planes, times rows, that a thread is worth
constexpr int64_t kMostInputs = 64 * 1024;  // 2^16 * 255 * 128 still fits int32

// Three rows run as four, five to seven as eight: one tile takes less time than two, each of which
// reads the weights.
int tile_rows(int64_t left) { return left >= 5 ? 8 : left >= 3 ? 4 : left >= 2 ? 2 : 1; }

// Rows with those that fill up the last tile.
int64_t tiled(int64_t rows) {
  const int64_t left = rows % 8;
  return rows + (left >= 5 ? 8 - left : left == 3 ? 1 : 0);
}

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
    const Way way = planes::choose(n, tile);
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

// sum x (2c + 1) = 2 sum x u - (2^n - 1) sum x, in numbers modulo 2^32 until the end. Where sums are
// in parts, four or two neighbouring lanes belong to an output, and are 2^(8-n) times too large.
WITH_VNNI void finish(const __m512i* sums, int parts, int n, uint32_t total, int64_t stride,
                      int64_t count, int32_t* y) {
  const __m512i all = _mm512_set1_epi32(static_cast<int32_t>(total * ((1u << n) - 1)));
  const __m128i excess = _mm_cvtsi32_si128(parts > 1 ? 8 - n : 0);
  for (int64_t v = 0; v < count; ++v, sums += stride) {
    __m512i sum = sums[0];
    if (parts == 4) sum = pairs(pairs(sums[0], sums[1]), pairs(sums[2], sums[3]));
    if (parts == 2) sum = pairs(sums[0], sums[1]);
    sum = _mm512_sra_epi32(sum, excess);
    _mm512_storeu_si512(y + v * kLanes, _mm512_sub_epi32(_mm512_add_epi32(sum, sum), all));
  }
}

// y [rows, (end - begin) * kLanes] for the outputs of registers begin to end; `sums` has room for
// kMostRegisters of each.
void multiply(const Operands& o, int n, int64_t rows, const int8_t* packed, const uint32_t* totals,
              int64_t begin, int64_t end, __m512i* sums, int32_t* y) {
  for (int64_t row = 0; row < rows;) {
    const int tile = tile_rows(rows - row);
    const Way way = planes::choose(n, tile);
    const int64_t stride = tile * way.parts;  // registers of sums for one of outputs
    std::memset(static_cast<void*>(sums), 0, (end - begin) * stride * sizeof(__m512i));
    way.kernel(o, packed + row * o.words * 32, sums, begin, end);
    for (int r = 0; r < tile; ++r) {
      finish(sums + r * way.parts, way.parts, n, totals[row + r], stride, end - begin,
             y + (row + r) * (end - begin) * kLanes);
    }
    row += tile;
  }
}

// fixed_point of one row: digit d of input k to digits[d * stride + k]; returns the step, NaN if
// an input is not finite.
WITH_VNNI float fixed_point(const float* x, int64_t inputs, int count, int8_t* digits,
                            int64_t stride) {
  const auto valid = [inputs](int64_t k) {
    return inputs - k >= kLanes ? __mmask16(0xFFFF) : __mmask16((1u << (inputs - k)) - 1);
  };
  __m512 largest = _mm512_setzero_ps();
  __mmask16 no_number = 0;  // max_ps would lose a NaN
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const __m512 some = _mm512_maskz_loadu_ps(valid(k), x + k);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(some));
    no_number |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
  }
  const float peak = _mm512_reduce_max_ps(largest);
  if (no_number || std::isinf(peak)) return std::numeric_limits<float>::quiet_NaN();
  const float top = 127.0f * std::ldexp(1.0f, 8 * (count - 1));
  const float step = std::fmax(peak / top, std::numeric_limits<float>::min());
  const __m512 inverse = _mm512_set1_ps(1.0f / step);  // as ste.in_steps: not a quotient each
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const __m512 ratio = _mm512_mul_ps(_mm512_maskz_loadu_ps(valid(k), x + k), inverse);
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

// The codes of one row on a grid that is given, see ste.uniform_code; returns the step, or NaN where
// an input is one.
WITH_VNNI float on_grid(const float* x, int64_t inputs, float step, const float* ends,
                        int8_t* codes) {
  const __m512 inverse = _mm512_set1_ps(1.0f / step);
  const __m512 low = _mm512_set1_ps(ends[0]), top = _mm512_set1_ps(ends[1]);
  __mmask16 no_number = 0;
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const __mmask16 valid =
        inputs - k >= kLanes ? __mmask16(0xFFFF) : __mmask16((1u << (inputs - k)) - 1);
    const __m512 some = _mm512_maskz_loadu_ps(valid, x + k);
    no_number |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
    const __m512 ratio = _mm512_mul_ps(some, inverse);
    const __m512i code = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(ratio, low), top));
    _mm512_mask_cvtepi32_storeu_epi8(codes + k, valid, code);
  }
  return no_number ? std::numeric_limits<float>::quiet_NaN() : step;
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

// The same of one digit on a grid that is given, rounded as code_products.code_product rounds.
WITH_VNNI void scaled_once(const int32_t* sums, float step, const float* scales, int64_t width,
                           float* y) {
  for (int64_t i = 0; i < width; ++i)
    y[i] = static_cast<float>(sums[i]) * ((0.5f * scales[i]) * step);
}

// Memory that a thread keeps from call to call, handed out piece by piece: pages that are fresh at
// every call would take a tenth of its time.
class Scratch {
 public:
  // Room for `bytes` in `pieces`; false where there is none.
  bool reserve(int64_t bytes, int pieces) {
    used_ = 0;
    bytes += (pieces + 1) * kAlign;
    if (bytes <= size_) return true;
    memory_.reset(new (std::nothrow) char[bytes]);
    size_ = memory_ ? bytes : 0;
    return memory_ != nullptr;
  }
  template <typename T>
  T* take(int64_t count) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory_.get()) + used_;
    const uintptr_t at = (start + kAlign - 1) / kAlign * kAlign;
    used_ += at - start + count * sizeof(T);
    return reinterpret_cast<T*>(at);
  }

 private:
  static constexpr int64_t kAlign = sizeof(__m512i);
  std::unique_ptr<char[]> memory_;
  int64_t size_ = 0, used_ = 0;
};

ffi::Error plane_product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                         ffi::Buffer<ffi::U32> words_of, ffi::Buffer<ffi::F32> scales,
                         ffi::Buffer<ffi::F32> step, ffi::Buffer<ffi::F32> ends,
                         ffi::ResultBuffer<ffi::F32> y, int64_t n, int64_t digits) {
  const auto xs = x.dimensions(), ps = words_of.dimensions(), ss = scales.dimensions();
  const auto ys = y->dimensions();
  if (xs.size() != 2 || ps.size() != 3 || ss.size() != 2 || ys.size() != 2 || n < 1 || n > 8 ||
      n > ps[0] || n > ss[0] || ss[1] != ps[2] || digits < 1 || digits > 4 ||
      step.element_count() > 1 || ends.element_count() != 2 * step.element_count() ||
      (step.element_count() && digits != 1) ||
      (xs[1] + 31) / 32 != ps[1] || xs[1] > kMostInputs || ys[0] != xs[0] || ys[1] != ps[2])
    return ffi::Error::InvalidArgument("plane_product: shapes that do not fit");
  const int64_t batch = xs[0], inputs = xs[1], words = ps[1], outputs = ps[2];
  const bool given = step.element_count() > 0;
  const int64_t rows = tiled(batch * digits), width = words * 32;
  const int64_t vectors = (outputs + kLanes - 1) / kLanes;
  const int64_t sums_size = rows * vectors * kLanes, registers_size = vectors * kMostRegisters;
  static thread_local Scratch scratch;
  if (!scratch.reserve(2 * rows * width + 4 * (rows + batch + sums_size) +
                           static_cast<int64_t>(sizeof(__m512i)) * registers_size,
                       6))
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "plane_product: no memory");
  int8_t* plain = scratch.take<int8_t>(rows * width);
  int8_t* packed = scratch.take<int8_t>(rows * width);
  uint32_t* totals = scratch.take<uint32_t>(rows);
  float* steps = scratch.take<float>(batch);
  int32_t* sums = scratch.take<int32_t>(sums_size);
  __m512i* registers = scratch.take<__m512i>(registers_size);
  const int bits = static_cast<int>(n), count = static_cast<int>(digits);
  std::memset(plain, 0, rows * width);  // what fills up the last word adds nothing
  for (int64_t b = 0; b < batch; ++b) {
    const float* row = x.typed_data() + b * inputs;
    int8_t* own = plain + b * width;
    steps[b] = given ? on_grid(row, inputs, *step.typed_data(), ends.typed_data(), own)
                     : fixed_point(row, inputs, count, own, batch * width);
  }
  pack(plain, bits, rows, words, packed, totals);
  int64_t parts = words * outputs * n * rows / kShare;
  if (parts > 2 * pool.num_threads()) parts = 2 * pool.num_threads();  // evens out busy cores
  if (parts > vectors) parts = vectors;
  if (parts < 1) parts = 1;
  const Operands o{words_of.typed_data(), words, outputs};
  const float* scale = scales.typed_data() + (n - 1) * outputs;
  float* to = y->typed_data();
  in_parts(pool, parts, [&](int64_t part) {
    const int64_t begin = vectors * part / parts, end = vectors * (part + 1) / parts;
    const int64_t first = begin * kLanes, last = end * kLanes < outputs ? end * kLanes : outputs;
    const int64_t own = (end - begin) * kLanes;
    int32_t* found = sums + rows * first;
    multiply(o, bits, rows, packed, totals, begin, end, registers + begin * kMostRegisters, found);
    for (int64_t b = 0; b < batch; ++b) {
      float* row = to + b * outputs + first;
      if (given)
        scaled_once(found + b * own, steps[b], scale + first, last - first, row);
      else
        scaled(found + b * own, count, batch * own, steps[b], scale + first, last - first, row);
    }
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
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("planes")
                                  .Attr<int64_t>("digits"));

extern "C" int dual_precision_supported() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni");
}
