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

ffi::Error convolve_and_go_on(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer codes,
                              ffi::RemainingArgs operands, ffi::RemainingRets results,
                              int64_t stride, int64_t bits, int64_t shift, int64_t tag,
                              int64_t slots,
                              ffi::Span<const int64_t> kinds, ffi::Span<const int64_t> steps) try {
  const auto xs = x.dimensions(), ks = codes.dimensions();
  Chain chain{{xs[0], xs[1], xs[2], xs[3], ks[3], ks[0], stride},
              static_cast<const uint8_t*>(x.untyped_data()),
              static_cast<const int8_t*>(codes.untyped_data()), codes.element_count(), shift,
              bits == 8, tag, slots, {}, {}, {}};
  for (size_t k = 0; k < operands.size(); ++k) {
    const auto operand = operands.get<ffi::AnyBuffer>(k);
    if (operand.has_error()) return operand.error();
    chain.operands.emplace_back(static_cast<Kind>(kinds[k]),
                                static_cast<const float*>(operand->untyped_data()));
  }
  for (size_t k = 0; k < results.size(); ++k) {
    auto result = results.get<ffi::AnyBuffer>(k);
    if (result.has_error()) return result.error();
    const ffi::AnyBuffer y = **result;
    if (auto error = fits(kForward, xs, ks, y.dimensions(), chain.shape); error.failure())
      return error;
    chain.results.emplace_back(y.untyped_data(), y.element_type() == ffi::U8 ? 1 : 4);
  }
  for (size_t k = 0; k + 4 < steps.size(); k += 5)
    chain.steps.push_back({steps[k], steps[k + 1], steps[k + 2], steps[k + 3], steps[k + 4]});
  return by_images(pool, xs[0], [&](int64_t, int64_t first, int64_t last) {
    chain.run(first, last);
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(dual_precision_chain, convolve_and_go_on,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("shift")
                                  .Attr<int64_t>("tag")
                                  .Attr<int64_t>("slots")
                                  .Attr<ffi::Span<const int64_t>>("kinds")
                                  .Attr<ffi::Span<const int64_t>>("steps"));
