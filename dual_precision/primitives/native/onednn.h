// Programs of oneDNN for one thread: see convolution.cc.

#pragma once

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
#include "xla/ffi/api/ffi.h"

// Of the OpenMP library that oneDNN brings; its header is the compiler's, and not always there.
extern "C" {
int omp_get_max_threads(void);
void omp_set_num_threads(int);
}

namespace native {

namespace ffi = xla::ffi;
using dnnl::memory;

enum Part : int64_t { kForward, kInputGradient, kWeightGradient };

constexpr int64_t kAlign = 64;

inline const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

inline memory::data_type type_of(ffi::DataType type) {
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

  // Whether the program wants its kernel in a layout of its own, and how many bytes that has.
  bool orders() const { return inner_ != kernel_; }
  size_t ordered_size() const { return inner_.get_size(); }

  void order(const void* plain, void* inner) const {
    dnnl::stream& stream = own_stream();
    reorder(stream, memory(kernel_, cpu(), const_cast<void*>(plain)),
            memory(inner_, cpu(), inner));
    stream.wait();
  }

  // A forward whose kernel has the layout that the program wants. A thread keeps its descriptions of
  // the arrays: to make them anew takes a third of the time of a small convolution.
  void forward(const void* x, const void* inner, void* y) const {
    static thread_local Scratch work;
    static thread_local std::map<const Convolution*, std::array<memory, 4>> kept;
    std::array<memory, 4>& own = kept[this];
    if (!own[0]) own = {unset(x_), unset(inner_), unset(y_), unset(scratch_)};
    const std::array<void*, 4> data{const_cast<void*>(x), const_cast<void*>(inner), y,
                                    work.take(scratch_.get_size())};
    constexpr int kNames[] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
    std::array<dnnl_exec_arg_t, 4> arguments;
    for (size_t i = 0; i < data.size(); ++i) {
      own[i].set_data_handle(data[i]);
      arguments[i] = {kNames[i], own[i].get()};
    }
    const dnnl::stream& stream = own_stream();
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(run_.get(), stream.get(), arguments.size(), arguments.data()),
        "a convolution did not run");
  }

  void run(void* a, void* b, void* result) const {
    static thread_local Scratch work, ordered;
    dnnl::stream& stream = own_stream();
    void* plain = part_ == kWeightGradient ? result : b;
    void* inner = orders() ? ordered.take(inner_.get_size()) : plain;
    memory kernel(inner_, cpu(), inner);
    if (orders() && part_ != kWeightGradient) order(plain, inner);
    if (part_ == kForward) return forward(a, inner, result);
    memory scratch(scratch_, cpu(), work.take(scratch_.get_size()));
    if (part_ == kInputGradient) {
      run_.execute(stream, {{DNNL_ARG_DIFF_DST, memory(y_, cpu(), a)},
                            {DNNL_ARG_WEIGHTS, kernel},
                            {DNNL_ARG_DIFF_SRC, memory(x_, cpu(), result)},
                            {DNNL_ARG_SCRATCHPAD, scratch}});
    } else {
      run_.execute(stream, {{DNNL_ARG_SRC, memory(x_, cpu(), a)},
                            {DNNL_ARG_DIFF_DST, memory(y_, cpu(), b)},
                            {DNNL_ARG_DIFF_WEIGHTS, kernel},
                            {DNNL_ARG_SCRATCHPAD, scratch}});
      if (orders()) reorder(stream, kernel, memory(kernel_, cpu(), plain));
    }
    stream.wait();
  }

 private:
  static memory unset(const memory::desc& description) {
    return memory(description, cpu(), nullptr);
  }

  static dnnl::stream& own_stream() {
    static thread_local dnnl::stream stream(cpu());
    return stream;
  }

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
inline std::shared_ptr<const Convolution> convolution(Part part, const Shape& s,
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

}  // namespace native
