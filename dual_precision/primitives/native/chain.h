// Convolutions, and what follows each number by number, while its sums are in the cache.
//
//   x [N, H, W, in] uint8, codes [k, k, in, out] int8 -> sums [N, h, w, out] int32, as float32
//
// of x and the weights 2 (code >> shift) + 1; or x, kernel and sums are float32;
//
// then steps on slots, see chain_steps.py: the first slots have the operands. An operand is a number,
// a vector of the channels, or an array like the sums. A tile of some pixels goes through all steps
// before the next one comes.
//
// A call is a list of such links. Some images go through the whole list before the next ones come: what
// stands between two of them is small then, and stays in the cache too.

#pragma once

#include <cstring>
#include <tuple>

#include "onednn.h"
#include "parts.h"
#include "tiles.h"

namespace native {

enum Kind : int64_t { kNumber, kChannels, kArray };  // chains.py has the same numbers

// Where a value stands: an argument or a result of the call, or what stands between its links.
enum From : int64_t { kArgument, kResult, kBetween };

struct Place {
  int64_t from, at;  // a number of arguments or results, or bytes of an image
};

// The values of some images, from image `first` of the batch.
struct Values {
  const std::vector<char*>& arguments;
  const std::vector<char*>& results;
  char* between;  // room for `room` images
  int64_t room, first;

  char* at(const Place& place, int64_t image_bytes) const {
    if (place.from == kBetween) return between + place.at * room;
    return (place.from == kArgument ? arguments : results)[place.at] + first * image_bytes;
  }
};

constexpr int64_t kTile = 512;                    // numbers of a tile, if a pixel has no more
constexpr int64_t kChunk = 1 << 20;               // bytes of what images have that go together
constexpr size_t kMostKept = size_t{1} << 29;     // bytes of kernels in layout
constexpr size_t kLargeFloats = size_t{1} << 18;  // bytes of one that is laid out at each call

// A kernel as it is given. `bits` of its codes, 0 of float32; those of 8 stand for themselves, as
// 2 code + 1 is no int8: see sum_windows.
struct Weights {
  const char* from;
  size_t bytes;
  int64_t bits, shift;
  int64_t tag;  // of codes that stay what they are: a number made of them; else 0
};

// Weights in the layout of a program. They are kept, by where they stand, with what they were made
// of, and compared with that: to bring them there takes longer than the convolution of an image.
// Those with a tag are not compared: what stands there with that tag is the same. Nobody says when a
// program is gone: past a bound all are dropped.
struct Ordered {
  std::vector<char> plain;
  Scratch memory;
  void* inner = nullptr;
};

inline std::shared_ptr<const Ordered> ordered(const Convolution& program, const Weights& w) {
  static std::mutex mutex;
  using Kept = std::tuple<const Convolution*, const char*, int64_t, int64_t, int64_t>;
  static std::map<Kept, std::shared_ptr<const Ordered>> kept;
  static size_t bytes = 0;  // of all
  const Kept key(&program, w.from, w.tag, w.bits, w.shift);
  std::shared_ptr<const Ordered> found;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto at = kept.find(key); at != kept.end()) found = at->second;
  }
  if (found && (w.tag || !std::memcmp(found->plain.data(), w.from, w.bytes))) return found;
  auto made = std::make_shared<Ordered>();
  made->plain.assign(w.from, w.from + w.bytes);
  std::vector<char> weights = made->plain;
  if (w.bits && w.bits < 8)
    for (char& code : weights)
      code = static_cast<char>(2 * (static_cast<int8_t>(code) >> w.shift) + 1);
  made->inner = made->memory.take(program.ordered_size());
  if (program.orders())
    program.order(weights.data(), made->inner);
  else
    std::memcpy(made->inner, weights.data(), w.bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  if (bytes > kMostKept) {
    kept.clear();
    bytes = 0;
  }
  // One that takes the place of another has its size.
  if (kept.insert_or_assign(key, made).second) bytes += w.bytes + program.ordered_size();
  return made;
}

struct Operand {
  Kind kind;
  Place place;
};

struct Result {
  Place place;
  int64_t bytes;  // of a number
};

struct Link {
  Shape shape;  // of an image
  Place x, kernel;
  int64_t bits, shift, tag, slots;  // 0 bits are float32
  std::vector<Operand> operands;
  std::vector<Result> results;
  std::vector<Step> steps;

  bool whole() const { return bits == 8; }
  int64_t pixels() const { return shape.out(shape.height) * shape.out(shape.width); }
  int64_t image() const { return pixels() * shape.outputs; }
  int64_t count() const { return shape.kernel * shape.kernel * shape.inputs * shape.outputs; }
  // Bytes.
  int64_t input() const { return shape.height * shape.width * shape.inputs * (bits ? 1 : 4); }
  int64_t weights() const { return count() * (bits ? 1 : 4); }

  // Some images, on this thread.
  void run(int64_t images, const Values& values) const {
    static thread_local Scratch kept_sums, kept_slots;
    Shape own = shape;
    own.batch = images;
    const int64_t channels = shape.outputs, all = images * pixels();
    const int64_t tile = std::max<int64_t>(kTile / channels, 1), numbers = tile * channels;
    float* memory = static_cast<float*>(kept_slots.take(slots * numbers * sizeof(float)));
    std::vector<float*> at(slots);
    for (int64_t k = 0; k < slots; ++k) at[k] = memory + k * numbers;
    std::vector<float*> arrays(operands.size());
    for (size_t k = 0; k < operands.size(); ++k)
      arrays[k] = spread(operands[k], values, tile, at[k + 1]);
    auto* sums = static_cast<int32_t*>(kept_sums.take(all * channels * 4));
    const char* from = values.at(x, input());
    convolve(own, values, from, sums);
    const int32_t* windows = whole() ? sums_of_windows(images, from) : nullptr;
    std::vector<void*> to(results.size());
    for (int64_t p = 0; p < all; p += tile) {
      const int64_t place = p * channels;
      for (size_t k = 0; k < operands.size(); ++k)
        if (operands[k].kind == kArray) at[k + 1] = arrays[k] + place;
      for (size_t k = 0; k < results.size(); ++k)
        to[k] = values.at(results[k].place, image() * results[k].bytes) + place * results[k].bytes;
      const Tile t{sums + place, bits ? nullptr : reinterpret_cast<const float*>(sums) + place,
                   windows ? windows + p : nullptr, std::min(tile, all - p), channels,
                   steps.data(), static_cast<int64_t>(steps.size()), at.data(), to.data()};
      has_512() ? tile_512(t) : tile_256(t);
    }
  }

 private:
  void convolve(const Shape& own, const Values& values, const char* from, int32_t* sums) const {
    using type = memory::data_type;
    const auto program = bits ? convolution(kForward, own, {type::u8, type::s8, type::s32})
                              : convolution(kForward, own, {type::f32, type::f32, type::f32});
    const auto bytes = static_cast<size_t>(weights());
    if (!bits && bytes > kLargeFloats)
      return program->run(const_cast<char*>(from), values.arguments[kernel.at], sums);
    const Weights own_weights{values.arguments[kernel.at], bytes, bits, shift, tag};
    program->forward(from, ordered(*program, own_weights)->inner, sums);
  }

  const int32_t* sums_of_windows(int64_t images, const char* from) const {
    static thread_local Scratch kept_grid, kept;
    const int64_t around = 2 * shape.pad();
    auto* grid = static_cast<int32_t*>(
        kept_grid.take((shape.height + around + 1) * (shape.width + around) * 4));
    auto* windows = static_cast<int32_t*>(kept.take(images * pixels() * 4));
    for (int64_t i = 0; i < images; ++i) {
      const auto* one = reinterpret_cast<const uint8_t*>(from) + i * input();
      has_512() ? windows_512(one, shape, grid, windows + i * pixels())
                : windows_256(one, shape, grid, windows + i * pixels());
    }
    return windows;
  }

  // Numbers and vectors of the channels, written out over a tile; where an array begins.
  float* spread(const Operand& operand, const Values& values, int64_t tile, float* to) const {
    auto* from = reinterpret_cast<float*>(
        values.at(operand.place, operand.kind == kArray ? image() * 4 : 0));
    const int64_t channels = shape.outputs;
    if (operand.kind == kNumber) std::fill_n(to, tile * channels, *from);
    if (operand.kind == kChannels) {
      std::copy_n(from, channels, to);
      for (int64_t p = 1; p < tile; p *= 2)  // what is there, once more behind it
        std::copy_n(to, std::min(p, tile - p) * channels, to + p * channels);
    }
    return operand.kind == kArray ? from : to;
  }
};

}  // namespace native
