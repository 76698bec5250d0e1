// Rows of floats times bit planes, see bitserial.plane_product: the rows, the tiles, the threads.
// Used by planes.cc and recurrence.cc.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "parts.h"
#include "plane_rows.h"
#include "plane_tiles.h"
#include "xla/ffi/api/ffi.h"

namespace planes {

namespace ffi = xla::ffi;

constexpr int64_t kShare = 96 * 1024;       // words of planes, times rows, that a thread is worth
constexpr int64_t kMostInputs = 64 * 1024;  // 2^16 * 255 * 128 still fits int32

// Sums of the outputs of registers begin to end, each given to take(row, register, sums); `sums` has
// room for kMostRegisters of each.
template <typename Take>
WITH_VNNI inline void multiply(const Operands& o, int n, int64_t rows, const int8_t* packed,
                               const uint32_t* totals, int64_t begin, int64_t end, __m512i* sums,
                               Take take) {
  for (int64_t row = 0; row < rows;) {
    const int tile = tile_rows(rows - row);
    const Way way = choose(n, tile);
    const int64_t stride = tile * way.parts;  // registers of sums for one of outputs
    const __m128i excess = _mm_cvtsi32_si128(way.parts > 1 ? 8 - n : 0);
    if (tile > 1)
      std::memset(static_cast<void*>(sums), 0, (end - begin) * stride * sizeof(__m512i));
    way.kernel(o, packed + row * o.words * 32, sums, begin, end);
    for (int r = 0; r < tile; ++r) {
      const uint32_t all = totals[row + r] * ((1u << n) - 1);
      const __m512i subtracted = _mm512_set1_epi32(static_cast<int32_t>(all));
      const __m512i* own = sums + r * way.parts;
      for (int64_t v = begin; v < end; ++v, own += stride)
        take(row + r, v, whole(own, way.parts, excess, subtracted));
    }
    row += tile;
  }
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

constexpr int kPieces = 6;  // of scratch memory, that a Product takes

// The products of rows x [batch, inputs] with `bits` planes, in scratch memory of its own.
struct Product {
  Operands planes;
  const float* scales;  // [outputs], of so many planes
  const float* step;    // [1], of x, whose codes end at ends [2]; or null, each row has its own
  const float* ends;
  int64_t batch, inputs;
  int bits, count;  // planes; digits of x
  int8_t *plain = nullptr, *packed = nullptr;
  uint32_t* totals = nullptr;
  float* steps = nullptr;
  int32_t* sums = nullptr;
  __m512i* registers = nullptr;

  int64_t rows() const { return tiled(batch * count); }
  int64_t width() const { return planes.words * 32; }
  int64_t vectors() const { return (planes.outputs + kLanes - 1) / kLanes; }
  int64_t bytes() const {
    return 2 * rows() * width() + 4 * (rows() + batch + rows() * vectors() * kLanes) +
           static_cast<int64_t>(sizeof(__m512i)) * vectors() * kMostRegisters;
  }

  void take(Scratch& scratch) {
    plain = scratch.take<int8_t>(rows() * width());
    packed = scratch.take<int8_t>(rows() * width());
    totals = scratch.take<uint32_t>(rows());
    steps = scratch.take<float>(batch);
    sums = scratch.take<int32_t>(rows() * vectors() * kLanes);
    registers = scratch.take<__m512i>(vectors() * kMostRegisters);
    std::memset(plain, 0, rows() * width());  // what fills up the last word adds nothing
  }

  // y [batch, outputs].
  void run(ffi::ThreadPool& pool, const float* x, float* y) const {
    for (int64_t b = 0; b < batch; ++b) {
      const float* row = x + b * inputs;
      int8_t* own = plain + b * width();
      steps[b] = step ? on_grid(row, inputs, *step, ends, own)
                      : fixed_point(row, inputs, count, own, batch * width());
    }
    pack(plain, bits, rows(), planes.words, packed, totals);
    int64_t parts = planes.words * planes.outputs * bits * rows() / kShare;
    if (parts > vectors()) parts = vectors();
    if (parts > 1) parts = std::min(parts, native::most_parts(pool));
    const Operands own{planes.planes, planes.words, planes.outputs, parts > 1};
    if (parts <= 1) return part(own, 0, vectors(), y);
    native::in_parts(pool, parts, [&](int64_t p) {
      part(own, vectors() * p / parts, vectors() * (p + 1) / parts, y);
    });
  }

  // The outputs of registers begin to end.
  WITH_VNNI void part(const Operands& o, int64_t begin, int64_t end, float* y) const {
    __m512i* own = registers + begin * kMostRegisters;
    if (count == 1) {
      multiply(o, bits, rows(), packed, totals, begin, end, own,
               [=](int64_t row, int64_t v, __m512i found) WITH_VNNI {
                 if (row < batch) scaled_once(found, steps[row], v, y + row * planes.outputs);
               });
      return;
    }
    const int64_t first = begin * kLanes, width = (end - begin) * kLanes;
    const int64_t last = std::min(end * kLanes, planes.outputs);
    int32_t* all = sums + rows() * first;
    multiply(o, bits, rows(), packed, totals, begin, end, own,
             [=](int64_t row, int64_t v, __m512i found) WITH_VNNI {
               _mm512_storeu_si512(all + row * width + (v - begin) * kLanes, found);
             });
    for (int64_t b = 0; b < batch; ++b)
      scaled(all + b * width, count, batch * width, steps[b], scales + first, last - first,
             y + b * planes.outputs + first);
  }

  // Register v of a row of one digit; on a grid that is given rounded as code_products.code_product
  // rounds, else as `scaled` does.
  WITH_VNNI void scaled_once(__m512i found, float own, int64_t v, float* y) const {
    const int64_t k = v * kLanes;
    const __mmask16 some = valid(planes.outputs - k);
    const __m512 scale = _mm512_maskz_loadu_ps(some, scales + k);
    const __m512 sum = _mm512_cvtepi32_ps(found), all = _mm512_set1_ps(own);
    const __m512 half = _mm512_set1_ps(0.5f);
    const __m512 value = step ? _mm512_mul_ps(sum, _mm512_mul_ps(_mm512_mul_ps(half, scale), all))
                              : _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_mul_ps(half, all)), scale);
    _mm512_mask_storeu_ps(y + k, some, value);
  }
};

using Floats = ffi::Buffer<ffi::F32>;

inline bool supported() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni");
}

// Of what XLA hands over; false where shapes do not fit.
inline bool product_of(int64_t batch, int64_t inputs, int64_t outputs, ffi::Buffer<ffi::U32> words,
                       Floats scales, Floats step, Floats ends, int64_t n, int64_t digits,
                       Product& product) {
  const auto ps = words.dimensions(), ss = scales.dimensions();
  if (ps.size() != 3 || ss.size() != 2 || n < 1 || n > 8 || n > ps[0] || n > ss[0] ||
      ss[1] != ps[2] || ps[2] != outputs || digits < 1 || digits > 4 || step.element_count() > 1 ||
      ends.element_count() != 2 * step.element_count() || (step.element_count() && digits != 1) ||
      (inputs + 31) / 32 != ps[1] || inputs > kMostInputs)
    return false;
  const bool given = step.element_count() > 0;
  product = Product{Operands{words.typed_data(), ps[1], outputs, false},
                    scales.typed_data() + (n - 1) * outputs,
                    given ? step.typed_data() : nullptr,
                    ends.typed_data(),
                    batch,
                    inputs,
                    static_cast<int>(n),
                    static_cast<int>(digits)};
  return true;
}

}  // namespace planes
