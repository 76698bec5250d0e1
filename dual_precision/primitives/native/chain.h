// A convolution of codes, and what follows it number by number, while its sums are in the cache.
//
//   x [N, H, W, in] uint8, codes [k, k, in, out] int8 -> sums [N, h, w, out] int32, as float32
//
// of x and the weights 2 (code >> shift) + 1;
//
// then steps on slots, see chains.py: slot 0 has the sums, the next ones the operands. An operand
// is a number, a vector of the channels, or an array like the sums. A tile of some pixels goes
// through all steps before the next one comes.

#pragma once

#include <emmintrin.h>

#include <cstring>
#include <optional>

#include "onednn.h"
#include "parts.h"

namespace native {

// chains.py has the same numbers.
enum Op : int64_t {
  kMultiply, kAdd, kSubtract, kMax, kMin, kRound, kFused, kFusedMinus, kMinusFused, kFloat, kByte
};
enum Kind : int64_t { kNumber, kChannels, kArray };

struct Step {
  int64_t op, to, a, b, c;
};

constexpr int64_t kTile = 512;            // numbers of a tile, if a pixel has no more
constexpr int64_t kChunk = 512 << 10;     // bytes of sums that are made before their steps run
constexpr size_t kMostKept = 1024;        // kernels

// Weights in the layout of a program. They are kept with what they were made of, and compared with
// that: to bring them there takes longer than the convolution of an image.
struct Ordered {
  std::vector<int8_t> codes;
  Scratch memory;
  void* inner = nullptr;
};

// Of 8 bits, 2 code + 1 is no int8: then the codes stand for it, see window_sums.
inline std::shared_ptr<const Ordered> ordered(const Convolution& program, const int8_t* codes,
                                              size_t count, int64_t shift, bool whole,
                                              int64_t tag) {
  static std::mutex mutex;
  static std::map<std::pair<const Convolution*, int64_t>, std::shared_ptr<const Ordered>> kept;
  const std::pair key(&program, tag);
  std::shared_ptr<const Ordered> found;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto at = kept.find(key); at != kept.end()) found = at->second;
  }
  if (found && !std::memcmp(found->codes.data(), codes, count)) return found;
  auto made = std::make_shared<Ordered>();
  made->codes.assign(codes, codes + count);
  std::vector<int8_t> weights = made->codes;
  if (!whole)
    for (int8_t& code : weights) code = static_cast<int8_t>(2 * (code >> shift) + 1);
  made->inner = made->memory.take(program.ordered_size());
  if (program.orders())
    program.order(weights.data(), made->inner);
  else
    std::memcpy(made->inner, weights.data(), count);
  const std::lock_guard<std::mutex> lock(mutex);
  if (kept.size() >= kMostKept) kept.clear();
  kept[key] = made;
  return made;
}

// Sums of x over the window of every output: what an odd weight 2 c + 1 adds to 2 sum(x c).
// `grid` has room for a number of every pixel and of the zeros around.
inline void window_sums(const uint8_t* x, const Shape& s, int32_t* grid, int32_t* to) {
  const int64_t pad = s.pad(), across = s.width + 2 * pad, wide = s.out(s.width);
  std::fill_n(grid, across * (s.height + 2 * pad), 0);
  for (int64_t i = 0; i < s.height; ++i)
    for (int64_t j = 0; j < s.width; ++j, x += s.inputs) {
      __m128i total = _mm_setzero_si128();
      int64_t c = 0;
      for (; c + 16 <= s.inputs; c += 16)
        total = _mm_add_epi64(total, _mm_sad_epu8(_mm_loadu_si128((const __m128i*)(x + c)),
                                                  _mm_setzero_si128()));
      int32_t sum = _mm_cvtsi128_si32(total) + _mm_cvtsi128_si32(_mm_srli_si128(total, 8));
      for (; c < s.inputs; ++c) sum += x[c];
      grid[(i + pad) * across + j + pad] = sum;
    }
  std::fill_n(to, s.out(s.height) * wide, 0);
  for (int64_t i = 0; i < s.out(s.height); ++i, to += wide)
    for (int64_t r = 0; r < s.kernel; ++r)
      for (int64_t q = 0; q < s.kernel; ++q) {
        const int32_t* from = grid + (i * s.stride + r) * across + q;
        if (s.stride == 1)
          for (int64_t j = 0; j < wide; ++j) to[j] += from[j];
        else
          for (int64_t j = 0; j < wide; ++j) to[j] += from[j * s.stride];
      }
}

// What a tile reads and writes. Inlined into a function for each set of instructions.
struct Tile {
  const int32_t* sums;
  const int32_t* windows;  // of its pixels, or none
  int64_t pixels, channels;
  const Step* steps;
  int64_t count;
  float* const* slots;
  void* const* results;
};

__attribute__((always_inline)) inline void run_tile(const Tile& t) {
  const int64_t n = t.pixels * t.channels;
  float* total = t.slots[0];
  if (t.windows)
    for (int64_t p = 0; p < t.pixels; ++p)
      for (int64_t c = p * t.channels; c < (p + 1) * t.channels; ++c)
        total[c] = static_cast<float>(2 * t.sums[c] + t.windows[p]);
  else
    for (int64_t i = 0; i < n; ++i) total[i] = static_cast<float>(t.sums[i]);
  const auto each = [n](float* __restrict to, auto of) __attribute__((always_inline)) {
    for (int64_t i = 0; i < n; ++i) to[i] = of(i);
  };
  for (int64_t k = 0; k < t.count; ++k) {
    const Step& s = t.steps[k];
    const float *a = t.slots[s.a], *b = t.slots[s.b], *c = t.slots[s.c];
    float* to = s.op < kFloat ? t.slots[s.to] : nullptr;
    switch (s.op) {
      case kMultiply: each(to, [=](int64_t i) { return a[i] * b[i]; }); break;
      case kAdd: each(to, [=](int64_t i) { return a[i] + b[i]; }); break;
      case kSubtract: each(to, [=](int64_t i) { return a[i] - b[i]; }); break;
      case kMax: each(to, [=](int64_t i) { return a[i] > b[i] ? a[i] : b[i]; }); break;
      case kMin: each(to, [=](int64_t i) { return a[i] < b[i] ? a[i] : b[i]; }); break;
      case kRound: each(to, [=](int64_t i) { return __builtin_rintf(a[i]); }); break;
      case kFused: each(to, [=](int64_t i) { return __builtin_fmaf(a[i], b[i], c[i]); }); break;
      case kFusedMinus:
        each(to, [=](int64_t i) { return __builtin_fmaf(a[i], b[i], -c[i]); });
        break;
      case kMinusFused:
        each(to, [=](int64_t i) { return __builtin_fmaf(-a[i], b[i], c[i]); });
        break;
      case kFloat: std::memcpy(t.results[s.to], a, n * sizeof(float)); break;
      default: {
        uint8_t* __restrict bytes = static_cast<uint8_t*>(t.results[s.to]);
        for (int64_t i = 0; i < n; ++i) bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(a[i]));
      }
    }
  }
}

__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))) inline void tile_512(
    const Tile& t) {
  run_tile(t);
}

__attribute__((target("avx2,fma"))) inline void tile_256(const Tile& t) { run_tile(t); }

inline bool wide() {
  static const bool found = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq");
  return found;
}

// One call: what is the same for all of its parts.
struct Chain {
  Shape shape;  // of the whole batch
  const uint8_t* x;
  const int8_t* codes;
  size_t count;  // of codes
  int64_t shift;
  bool whole;  // codes of 8 bits
  int64_t tag;
  int64_t slots;
  std::vector<Step> steps;
  std::vector<std::pair<Kind, const float*>> operands;
  std::vector<std::pair<void*, int64_t>> results;  // where, and the bytes of a number

  // The images from `first` to `last`, on this thread.
  void run(int64_t first, int64_t last) const {
    static thread_local Scratch kept_sums, kept_slots, kept_grid, kept_windows;
    const int64_t pixels = shape.out(shape.height) * shape.out(shape.width);
    const int64_t channels = shape.outputs, image = pixels * channels;
    const int64_t tile = std::max<int64_t>(kTile / channels, 1), numbers = tile * channels;
    const int64_t chunk = std::max<int64_t>(kChunk / (image * 4), 1);
    float* memory = static_cast<float*>(kept_slots.take(slots * numbers * sizeof(float)));
    std::vector<float*> at(slots);
    for (int64_t k = 0; k < slots; ++k) at[k] = memory + k * numbers;
    spread(at, tile, channels);
    const int64_t around = 2 * shape.pad();
    auto* grid = static_cast<int32_t*>(
        kept_grid.take((shape.height + around) * (shape.width + around) * 4));
    std::vector<void*> to(results.size());
    while (first < last) {
      Shape own = shape;
      own.batch = std::min(chunk, last - first);
      auto* sums = static_cast<int32_t*>(kept_sums.take(own.batch * image * 4));
      auto* windows = static_cast<int32_t*>(kept_windows.take(own.batch * pixels * 4));
      const uint8_t* from = x + first * shape.height * shape.width * shape.inputs;
      using type = memory::data_type;
      const auto program = convolution(kForward, own, {type::u8, type::s8, type::s32});
      program->forward(from, ordered(*program, codes, count, shift, whole, tag)->inner, sums);
      if (whole)
        for (int64_t i = 0; i < own.batch; ++i)
          window_sums(from + i * shape.height * shape.width * shape.inputs, shape, grid,
                      windows + i * pixels);
      for (int64_t p = 0, all = own.batch * pixels; p < all; p += tile) {
        const int64_t place = (first * pixels + p) * channels;
        for (size_t k = 0; k < operands.size(); ++k)
          if (operands[k].first == kArray) at[k + 1] = const_cast<float*>(operands[k].second) + place;
        for (size_t k = 0; k < results.size(); ++k)
          to[k] = static_cast<char*>(results[k].first) + place * results[k].second;
        const Tile t{sums + p * channels, whole ? windows + p : nullptr, std::min(tile, all - p),
                     channels, steps.data(), static_cast<int64_t>(steps.size()), at.data(), to.data()};
        wide() ? tile_512(t) : tile_256(t);
      }
      first += own.batch;
    }
  }

 private:
  // Numbers and vectors of the channels, written out over a tile.
  void spread(const std::vector<float*>& at, int64_t tile, int64_t channels) const {
    for (size_t k = 0; k < operands.size(); ++k) {
      const auto& [kind, from] = operands[k];
      if (kind == kNumber) std::fill_n(at[k + 1], tile * channels, *from);
      if (kind == kChannels)
        for (int64_t p = 0; p < tile; ++p) std::copy_n(from, channels, at[k + 1] + p * channels);
    }
  }
};

}  // namespace native
