// Convolutions of small networks on CPUs, by oneDNN, called by XLA: see convolution.py.
//
//   x [N, H, W, in], kernel [k, k, in, out], y [N, h, w, out]; zeros around, (k - 1) / 2 a side
//
//   part 0, forward          x, kernel -> y
//   part 1, input gradient   y, kernel -> x
//   part 2, weight gradient  x, y      -> kernel
//
// The batch is cut into a part for each thread of XLA's own pool, and oneDNN runs each part on one
// thread: no second pool of threads fights for the cores. A weight gradient is the sum of those of
// the parts, in their order, so that its bits depend on the number of threads and on nothing else.

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "chain.h"
#include "onednn.h"
#include "parts.h"
#include "xla/ffi/api/ffi.h"

namespace {

using namespace native;

int64_t row_bytes(const ffi::AnyBuffer& buffer) {
  const auto sizes = buffer.dimensions();
  return sizes[0] ? static_cast<int64_t>(buffer.size_bytes()) / sizes[0] : 0;
}

ffi::Error fits(Part part, ffi::AnyBuffer::Dimensions x, ffi::AnyBuffer::Dimensions k,
                ffi::AnyBuffer::Dimensions y, const Shape& s) {
  const bool whole = part >= kForward && part <= kWeightGradient && s.stride >= 1 && k[0] % 2 == 1;
  if (!whole || k[1] != k[0] || k[2] != x[3] || y[0] != x[0] || y[3] != k[3] ||
      y[1] != s.out(x[1]) || y[2] != s.out(x[2]))
    return ffi::Error::InvalidArgument("convolution: shapes that do not fit");
  return ffi::Error::Success();
}

int64_t parts_of(ffi::ThreadPool& pool, int64_t batch) {
  return std::max<int64_t>(std::min<int64_t>(pool.num_threads(), batch), 1);
}

// work(part, first, last) on a part of the images for each thread; the first error of any.
template <typename Work>
ffi::Error by_images(ffi::ThreadPool& pool, int64_t batch, const Work& work) {
  const int64_t parts = parts_of(pool, batch);
  std::vector<std::string> errors(parts);
  in_parts(pool, parts, [&](int64_t i) {
    try {
      const OneThread one;
      work(i, batch * i / parts, batch * (i + 1) / parts);
    } catch (const std::exception& error) {
      errors[i] = std::string("convolution: ") + error.what();
    }
  });
  for (const auto& error : errors)
    if (!error.empty()) return ffi::Error(ffi::ErrorCode::kInternal, error);
  return ffi::Error::Success();
}

ffi::Error convolve(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b,
                    ffi::Result<ffi::AnyBuffer> result, int64_t number, int64_t stride) try {
  const Part part = static_cast<Part>(number);
  const ffi::AnyBuffer r = *result;
  if (a.dimensions().size() != 4 || b.dimensions().size() != 4 || r.dimensions().size() != 4)
    return ffi::Error::InvalidArgument("convolution: expected arrays of four axes");
  const ffi::AnyBuffer x = part == kInputGradient ? r : a, k = part == kWeightGradient ? r : b;
  const ffi::AnyBuffer y = part == kForward ? r : part == kInputGradient ? a : b;
  const auto xs = x.dimensions(), ks = k.dimensions();
  const Shape whole{xs[0], xs[1], xs[2], xs[3], ks[3], ks[0], stride};
  if (auto error = fits(part, xs, ks, y.dimensions(), whole); error.failure()) return error;
  const std::array<memory::data_type, 3> types{type_of(x.element_type()), type_of(k.element_type()),
                                               type_of(y.element_type())};
  const int64_t parts = parts_of(pool, whole.batch);
  const bool sums = part == kWeightGradient;
  const int64_t kernel = sums ? static_cast<int64_t>(r.element_count()) : 0;
  std::vector<float> partial(kernel * (parts - 1));
  const auto at = [](const ffi::AnyBuffer& buffer, int64_t offset) {
    return static_cast<char*>(buffer.untyped_data()) + offset;
  };
  auto done = by_images(pool, whole.batch, [&](int64_t i, int64_t first, int64_t last) {
    Shape own = whole;
    own.batch = last - first;
    char* to = sums ? (i ? reinterpret_cast<char*>(partial.data() + kernel * (i - 1)) : at(r, 0))
                    : at(r, first * row_bytes(r));
    convolution(part, own, types)
        ->run(at(a, first * row_bytes(a)), at(b, sums ? first * row_bytes(b) : 0), to);
  });
  if (done.failure()) return done;
  float* total = static_cast<float*>(r.untyped_data());
  for (int64_t p = 1; p < parts; ++p)
    for (int64_t i = 0; i < kernel; ++i) total[i] += partial[kernel * (p - 1) + i];
  return ffi::Error::Success();
} catch (const std::exception& error) {
  return ffi::Error(ffi::ErrorCode::kInternal, std::string("convolution: ") + error.what());
}

// Arguments or results of a call.
struct Buffers {
  std::vector<char*> data;
  std::vector<int64_t> bytes;

  void add(const ffi::AnyBuffer& buffer) {
    data.push_back(static_cast<char*>(buffer.untyped_data()));
    bytes.push_back(static_cast<int64_t>(buffer.size_bytes()));
  }
};

// The list of links of a call, see `_encoded` of chains.py; std::invalid_argument if it is none.
class Reader {
 public:
  Reader(ffi::Span<const int64_t> numbers, const Buffers& arguments, const Buffers& results,
         int64_t batch, int64_t between)
      : numbers_(numbers), arguments_(arguments), results_(results), batch_(batch),
        between_(between) {}

  std::vector<Link> links() {
    std::vector<Link> found(count());
    for (Link& link : found) link = one();
    return found;
  }

 private:
  Link one() {
    Link c{};
    c.shape = {0, next(), next(), next(), next(), next(), next()};
    const auto& [batch, height, width, inputs, outputs, kernel, stride] = c.shape;
    if (std::min({height, width, inputs, outputs, stride}) < 1 || kernel % 2 != 1) wrong("shape");
    c.bits = next();
    c.shift = next();
    c.tag = next();
    c.slots = next();
    c.x = place(c.input());
    c.kernel = place(c.weights(), 1);
    if (c.kernel.from != kArgument) wrong("kernel");
    c.operands.resize(count());
    if (c.slots <= static_cast<int64_t>(c.operands.size())) wrong("slots");
    for (Operand& operand : c.operands) {
      operand.kind = static_cast<Kind>(next());
      operand.place = operand.kind == kArray      ? place(c.image() * 4)
                      : operand.kind == kChannels ? place(outputs * 4, 1)
                                                  : place(4, 1);
    }
    c.results.resize(count());
    for (Result& result : c.results) {
      result.bytes = next();
      result.place = place(c.image() * result.bytes);
      if (result.place.from == kArgument) wrong("result");
    }
    c.steps.resize(count());
    for (Step& step : c.steps) step = one_step(c);
    return c;
  }

  Step one_step(const Link& c) {
    const Step step{next(), next(), {next(), next(), next(), next(), next()}};
    if (step.op < 0 || step.op > kCodesOfMax) wrong("step");
    for (const int64_t slot : step.of)
      if (slot < 0 || slot >= c.slots) wrong("step");
    const int64_t operands = static_cast<int64_t>(c.operands.size());
    const int64_t end = step.gives() ? static_cast<int64_t>(c.results.size()) : c.slots;
    if (step.to < 0 || step.to >= end) wrong("step");
    // The slots of operands stay what they are.
    if (!step.gives() && step.to > 0 && step.to <= operands) wrong("step");
    if (step.gives() && c.results[step.to].bytes != (step.op == kFloat ? 4 : 1)) wrong("step");
    return step;
  }

  // Of so many bytes an image; or in all, where `images` is 1.
  Place place(int64_t image_bytes, int64_t images = 0) {
    const Place found{next(), next()};
    if (found.from == kBetween) {
      if (found.at < 0 || found.at + image_bytes > between_) wrong("place");
      return found;
    }
    const auto& sizes = (found.from == kArgument ? arguments_ : results_).bytes;
    if (found.at < 0 || found.at >= static_cast<int64_t>(sizes.size()) ||
        sizes[found.at] != image_bytes * (images ? images : batch_))
      wrong("array");
    return found;
  }

  int64_t count() {
    const int64_t found = next();
    if (found < 0 || found > static_cast<int64_t>(numbers_.size())) wrong("count");
    return found;
  }

  int64_t next() {
    if (at_ >= numbers_.size()) wrong("end");
    return numbers_[at_++];
  }

  [[noreturn]] void wrong(const std::string& what) const {
    throw std::invalid_argument(what + " that does not fit, before number " + std::to_string(at_) +
                                " of the list");
  }

  ffi::Span<const int64_t> numbers_;
  const Buffers& arguments_;
  const Buffers& results_;
  int64_t batch_, between_;
  size_t at_ = 0;
};

ffi::Error run_links(ffi::ThreadPool pool, ffi::RemainingArgs arguments,
                              ffi::RemainingRets results, int64_t batch, int64_t between,
                              ffi::Span<const int64_t> list) try {
  Buffers given, made;
  for (size_t k = 0; k < arguments.size(); ++k) {
    const auto argument = arguments.get<ffi::AnyBuffer>(k);
    if (argument.has_error()) return argument.error();
    given.add(*argument);
  }
  for (size_t k = 0; k < results.size(); ++k) {
    auto result = results.get<ffi::AnyBuffer>(k);
    if (result.has_error()) return result.error();
    made.add(**result);
  }
  const auto links = Reader(list, given, made, batch, between).links();
  int64_t widest = std::max<int64_t>(between, 1);
  for (const Link& link : links) widest = std::max(widest, link.image() * 4);
  return by_images(pool, batch, [&](int64_t, int64_t first, int64_t last) {
    static thread_local Scratch memory;
    const int64_t room = std::clamp<int64_t>(kChunk / widest, 1, std::max<int64_t>(last - first, 1));
    auto* own = static_cast<char*>(memory.take(between * room));
    for (; first < last; first += room) {
      const Values values{given.data, made.data, own, room, first};
      for (const Link& link : links) link.run(std::min(room, last - first), values);
    }
  });
} catch (const std::exception& error) {
  return ffi::Error(ffi::ErrorCode::kInternal, std::string("convolution: ") + error.what());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dual_precision_convolution, convolve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("part")
                                  .Attr<int64_t>("stride"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(dual_precision_chains, run_links,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("batch")
                                  .Attr<int64_t>("between")
                                  .Attr<ffi::Span<const int64_t>>("list"));
