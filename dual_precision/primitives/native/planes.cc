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
// Built by build.py, with the header that jaxlib ships.

#include "plane_product.h"

namespace ffi = xla::ffi;

namespace {

ffi::Error plane_product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                         ffi::Buffer<ffi::U32> words, ffi::Buffer<ffi::F32> scales,
                         ffi::Buffer<ffi::F32> step, ffi::Buffer<ffi::F32> ends,
                         ffi::ResultBuffer<ffi::F32> y, int64_t n, int64_t digits) {
  const auto xs = x.dimensions(), ys = y->dimensions();
  planes::Product product;
  if (xs.size() != 2 || ys.size() != 2 || ys[0] != xs[0] ||
      !planes::product_of(xs[0], xs[1], ys[1], words, scales, step, ends, n, digits, product))
    return ffi::Error::InvalidArgument("plane_product: shapes that do not fit");
  static thread_local planes::Scratch scratch;
  if (!scratch.reserve(product.bytes(), planes::kPieces))
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "plane_product: no memory");
  product.take(scratch);
  product.run(pool, x.typed_data(), y->typed_data());
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

extern "C" int dual_precision_supported() { return planes::supported(); }
