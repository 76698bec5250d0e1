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
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "parts.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// Of the OpenMP library that oneDNN brings; its header is the compiler's, and not always there.
extern "C" {
int omp_get_max_threads(void);
void omp_set_num_threads(int);
}

namespace {

using dnnl::memory;
using native::in_parts;

enum Part : int64_t { kForward, kInputGradient, kWeightGradient };

constexpr int64_t kAlign = 64;

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

memory::data_type type_of(ffi::DataType type) {
  switch (type) {
    case ffi::F32: return memory::data_type::f32;
    case ffi::BF16: return memory::data_type::bf16;
    case ffi::U8: return memory::data_type::u8;
    case ffi::S8: return memory::data_type::s8;
    case ffi::S32: return memory::data_type::s32;
    default: return memory::data_type::undef;
  }
}

// Memory that a thread keeps from call to call.
class Scratch {
 public:
  void* take(size_t bytes) {
    if (bytes + kAlign > size_) {
      memory_.reset(new char[bytes + kAlign]);
      size_ = bytes + kAlign;
    }
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<void*>((start + kAlign - 1) / kAlign * kAlign);
  }

 private:
  std::unique_ptr<char[]> memory_;
  size_t size_ = 0;
};

// OpenMP's threads of this thread's parallel regions are 1 while it lives, then as before.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

struct Shape {
  int64_t batch, height, width, inputs, outputs, kernel, stride;
  int64_t pad() const { return (kernel - 1) / 2; }
  int64_t out(int64_t size) const { return (size + stride - 1) / stride; }
  // What is missing on the far side for the last window: less than pad where a stride skips it.
  int64_t far(int64_t size) const { return (out(size) - 1) * stride + kernel - size - pad(); }
};

// One convolution of one shape: oneDNN's program, and what brings the kernel into its layout.
class Convolution {
 public:
  Convolution(Part part, const Shape& s, const std::array<memory::data_type, 3>& types)
      : part_(part) {
    const memory::dims xs{s.batch, s.inputs, s.height, s.width};
    const memory::dims ks{s.outputs, s.inputs, s.kernel, s.kernel};
    const memory::dims ys{s.batch, s.outputs, s.out(s.height), s.out(s.width)};
    using tag = memory::format_tag;
    const auto [xt, kt, yt] = types;
    x_ = {xs, xt, tag::nhwc};
    y_ = {ys, yt, tag::nhwc};
    kernel_ = {ks, kt, tag::hwio};
    const memory::desc any(ks, kt, tag::any);
    const memory::dims strides{s.stride, s.stride}, near{s.pad(), s.pad()};
    const memory::dims far{s.far(s.height), s.far(s.width)};
    dnnl::primitive_attr own;
    own.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const auto direct = dnnl::algorithm::convolution_direct;
    const auto kind = part == kForward ? dnnl::prop_kind::forward_inference
                                       : dnnl::prop_kind::forward_training;
    // A gradient asks for the forward that it belongs to: one of its operands alone, since a
    // forward of bfloat16 and float32 together does not exist.
    const bool alike = part == kForward;
    const auto hint = part == kInputGradient ? yt : xt;
    const dnnl::convolution_forward::primitive_desc forward(
        cpu(), kind, direct, alike ? x_ : memory::desc(xs, hint, tag::nhwc),
        alike ? any : memory::desc(ks, hint, tag::any),
        alike ? y_ : memory::desc(ys, hint, tag::nhwc), strides, near, far, own);
    if (part == kForward) {
      keep<dnnl::convolution_forward>(forward, forward.weights_desc());
    } else if (part == kInputGradient) {
      const dnnl::convolution_backward_data::primitive_desc back(
          cpu(), direct, x_, any, y_, strides, near, far, forward, own);
      keep<dnnl::convolution_backward_data>(back, back.weights_desc());
    } else {
      const dnnl::convolution_backward_weights::primitive_desc back(
          cpu(), direct, x_, any, y_, strides, near, far, forward, own);
      keep<dnnl::convolution_backward_weights>(back, back.diff_weights_desc());
    }
    if (inner_ != kernel_) {
      const bool out = part == kWeightGradient;
      const dnnl::reorder::primitive_desc order(cpu(), out ? inner_ : kernel_, cpu(),
                                                out ? kernel_ : inner_, own);
      order_ = dnnl::reorder(order);
      order_scratch_ = order.scratchpad_desc();
    }
  }

  void run(void* a, void* b, void* result) const {
    static thread_local dnnl::stream stream(cpu());
    static thread_local Scratch work, ordered;
    const bool same = inner_ == kernel_;
    void* plain = part_ == kWeightGradient ? result : b;
    void* inner = same ? plain : ordered.take(inner_.get_size());
    memory kernel(inner_, cpu(), inner);
    if (!same && part_ != kWeightGradient) reorder(stream, memory(kernel_, cpu(), plain), kernel);
    memory scratch(scratch_, cpu(), work.take(scratch_.get_size()));
    if (part_ == kForward) {
      run_.execute(stream, {{DNNL_ARG_SRC, memory(x_, cpu(), a)},
                            {DNNL_ARG_WEIGHTS, kernel},
                            {DNNL_ARG_DST, memory(y_, cpu(), result)},
                            {DNNL_ARG_SCRATCHPAD, scratch}});
    } else if (part_ == kInputGradient) {
      run_.execute(stream, {{DNNL_ARG_DIFF_DST, memory(y_, cpu(), a)},
                            {DNNL_ARG_WEIGHTS, kernel},
                            {DNNL_ARG_DIFF_SRC, memory(x_, cpu(), result)},
                            {DNNL_ARG_SCRATCHPAD, scratch}});
    } else {
      run_.execute(stream, {{DNNL_ARG_SRC, memory(x_, cpu(), a)},
                            {DNNL_ARG_DIFF_DST, memory(y_, cpu(), b)},
                            {DNNL_ARG_DIFF_WEIGHTS, kernel},
                            {DNNL_ARG_SCRATCHPAD, scratch}});
      if (!same) reorder(stream, kernel, memory(kernel_, cpu(), plain));
    }
    stream.wait();
  }

 private:
  template <typename Primitive, typename Description>
  void keep(const Description& description, const memory::desc& inner) {
    run_ = Primitive(description);
    inner_ = inner;
    scratch_ = description.scratchpad_desc();
  }

  void reorder(dnnl::stream& stream, const memory& from, const memory& to) const {
    static thread_local Scratch work;
    memory scratch(order_scratch_, cpu(), work.take(order_scratch_.get_size()));
    dnnl::primitive(order_).execute(
        stream, {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}, {DNNL_ARG_SCRATCHPAD, scratch}});
  }

  Part part_;
  memory::desc x_, y_, kernel_, inner_, scratch_, order_scratch_;
  dnnl::primitive run_;
  dnnl::reorder order_;
};

using Key = std::array<int64_t, 11>;

// Made at the first call of a shape, and kept: to make one takes longer than to run it.
std::shared_ptr<const Convolution> convolution(Part part, const Shape& s,
                                               const std::array<memory::data_type, 3>& types) {
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const Convolution>> made;
  const auto number = [](memory::data_type type) { return static_cast<int64_t>(type); };
  const Key key{part,      s.batch,  s.height, s.width,          s.inputs,         s.outputs,
                s.kernel,  s.stride, number(types[0]), number(types[1]), number(types[2])};
  const std::lock_guard<std::mutex> lock(mutex);
  auto& found = made[key];
  if (!found) found = std::make_shared<const Convolution>(part, s, types);
  return found;
}

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
  const int64_t batch = whole.batch;
  const int64_t parts = std::max<int64_t>(std::min<int64_t>(pool.num_threads(), batch), 1);
  const bool sums = part == kWeightGradient;
  const int64_t kernel = sums ? static_cast<int64_t>(r.element_count()) : 0;
  std::vector<std::string> errors(parts);
  std::vector<float> partial(kernel * (parts - 1));
  const auto at = [](const ffi::AnyBuffer& buffer, int64_t offset) {
    return static_cast<char*>(buffer.untyped_data()) + offset;
  };
  in_parts(pool, parts, [&](int64_t i) {
    try {
      const OneThread one;
      const int64_t first = batch * i / parts, last = batch * (i + 1) / parts;
      Shape own = whole;
      own.batch = last - first;
      char* to = sums ? (i ? reinterpret_cast<char*>(partial.data() + kernel * (i - 1)) : at(r, 0))
                      : at(r, first * row_bytes(r));
      convolution(part, own, types)
          ->run(at(a, first * row_bytes(a)), at(b, sums ? first * row_bytes(b) : 0), to);
    } catch (const std::exception& error) {
      errors[i] = std::string("convolution: ") + error.what();
    }
  });
  for (const auto& error : errors)
    if (!error.empty()) return ffi::Error(ffi::ErrorCode::kInternal, error);
  float* total = static_cast<float*>(r.untyped_data());
  for (int64_t done = 1; done < parts; ++done)
    for (int64_t i = 0; i < kernel; ++i) total[i] += partial[kernel * (done - 1) + i];
  return ffi::Error::Success();
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
