// Tasks that make matrix products with PyTorch's operators, each product on one thread, so that its
// bits do not depend on how many there are.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace spanbert_fast {

struct Range {
  int64_t first, size;
};

inline std::vector<Range> blocks_of(int64_t begin, int64_t end, int64_t width) {
  std::vector<Range> blocks;
  for (; begin < end; begin += width) blocks.push_back({begin, std::min(width, end - begin)});
  return blocks;
}

// Sets the calling thread's number of MKL threads and returns the one before, 0 for "as OpenMP
// says". Does nothing where PyTorch was built without MKL.
inline int set_mkl_threads(int threads) {
#if __has_include(<dlfcn.h>)
  using Set = int(int);
  static Set* const set =
      reinterpret_cast<Set*>(dlsym(RTLD_DEFAULT, "MKL_Set_Num_Threads_Local"));
  if (set != nullptr) return set(threads);
#endif
  return 0;
}

// While it lives, PyTorch's operators run on one thread, and compute in the dtypes they are given.
//
// Both settings are needed. With OpenMP's alone MKL takes another code path on the workers of a
// parallel region than on its first thread, and a product's bits depend on which thread made it.
class PlainOperators {
 public:
  PlainOperators() {
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
  }
  PlainOperators(const PlainOperators&) = delete;
  ~PlainOperators() {
    set_mkl_threads(mkl_threads_);
#ifdef _OPENMP
    omp_set_num_threads(threads_);
#endif
  }

 private:
#ifdef _OPENMP
  int threads_ = omp_get_max_threads();
#endif
  int mkl_threads_ = set_mkl_threads(1);
  at::AutoDispatchBelowADInplaceOrView below_autograd_;
  c10::impl::ExcludeDispatchKeyGuard below_autocast_{c10::autocast_dispatch_keyset};
};

// Memory of a thread for parts of at most the first one's size.
class Buffer {
 public:
  at::Tensor get(int64_t rows, int64_t columns, const at::TensorOptions& options) {
    const int64_t size = rows * columns;
    if (!memory_.defined() || memory_.numel() < size) memory_ = at::empty({size}, options);
    return memory_.narrow(0, 0, size).view({rows, columns});
  }

 private:
  at::Tensor memory_;
};

struct Buffers {
  Buffer scores, weight, product;
};

// body(buffers, i) for i in [0, count).
template <class Body>
void run_product_tasks(int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  // Two at least: inside a parallel region no library takes a second thread for a product.
  const int64_t threads = std::max<int64_t>(2, std::min<int64_t>(count, at::get_num_threads()));
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const PlainOperators guard;
    Buffers buffers;
    for (int64_t i; (i = next.fetch_add(1)) < count;) body(buffers, i);
  });
}

}  // namespace spanbert_fast
