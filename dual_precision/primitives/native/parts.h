// Work in parts on the threads of XLA, for every compiled CPU kernel.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace native {

constexpr int kPatience = 4096;  // pauses before a waiting thread gives way

// So many that busy cores are evened out; 1 or more, whatever the pool says of itself.
inline int64_t most_parts(const xla::ffi::ThreadPool& pool) {
  return std::max<int64_t>(2 * pool.num_threads(), 1);
}

// Parts are taken from a counter by whoever is free, the caller too: it never waits for a part
// that nobody has begun, so that a pool whose threads are all busy cannot lock up.
inline void in_parts(xla::ffi::ThreadPool& pool, int64_t parts,
                     const std::function<void(int64_t)>& work) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  // A late thread finds no part left and touches nothing but `progress`, which it owns a share of.
  auto run = [progress, parts, &work] {
    for (int64_t part; (part = progress->next.fetch_add(1)) < parts;) {
      work(part);
      progress->done.fetch_add(1);
    }
  };
  for (int64_t i = 1; i < parts && i < pool.num_threads(); ++i)
    pool.Schedule(std::function<void()>(run));
  run();
  for (int waited = 0; progress->done.load() < parts; ++waited) {
    if (waited < kPatience)
      _mm_pause();
    else
      std::this_thread::yield();  // its core may be what the others wait for
  }
}

}  // namespace native
