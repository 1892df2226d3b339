// Tasks that compute matrix products with PyTorch's operators, each product on one thread, so that
// its bits do not depend on the number of threads.
#pragma once

#include <atomic>

#include "cpu/common.h"

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

namespace spanbert_fast {

struct Range {
  int64_t first, size;
};

inline std::vector<Range> blocks_of(int64_t begin, int64_t end, int64_t width) {
  std::vector<Range> blocks;
  for (; begin < end; begin += width) blocks.push_back({begin, std::min(width, end - begin)});
  return blocks;
}

// A (rows, columns) matrix in memory that it does not own, rows `stride` elements apart.
struct Matrix {
  Tensor tensor;

  static Matrix at(
      const void* data, int64_t rows, int64_t columns, int64_t stride, ScalarType dtype) {
    const int64_t sizes[] = {rows, columns}, strides[] = {stride, 1};
    return {torch::stable::from_blob(
        const_cast<void*>(data), sizes, strides,
        torch::stable::Device(torch::headeronly::DeviceType::CPU, 0), dtype)};
  }

  static Matrix of(const Tensor& tensor) {
    return at(
        tensor.const_data_ptr(), tensor.size(0), tensor.size(1), tensor.stride(0),
        tensor.scalar_type());
  }

  int64_t rows() const { return tensor.size(0); }
  int64_t columns() const { return tensor.size(1); }
  int64_t stride() const { return tensor.stride(0); }
  ScalarType dtype() const { return tensor.scalar_type(); }

  char* row(int64_t number) const {
    return mutable_bytes(tensor) + number * stride() * static_cast<int64_t>(tensor.element_size());
  }
  Matrix row_range(Range rows) const {
    return at(row(rows.first), rows.size, columns(), stride(), dtype());
  }
  Matrix column_range(Range columns) const {
    const int64_t offset = columns.first * static_cast<int64_t>(tensor.element_size());
    return at(row(0) + offset, rows(), columns.size, stride(), dtype());
  }
  Matrix transposed() const {
    const int64_t sizes[] = {columns(), rows()}, strides[] = {1, stride()};
    return {torch::stable::from_blob(
        tensor.mutable_data_ptr(), sizes, strides,
        torch::stable::Device(torch::headeronly::DeviceType::CPU, 0), tensor.scalar_type())};
  }
};

// out = a b, in out's memory. Autocast does not apply to a product with a given result.
inline void multiply(const Matrix& a, const Matrix& b, const Matrix& out) {
  StableIValue stack[] = {
      torch::stable::detail::from(a.tensor), torch::stable::detail::from(b.tensor),
      torch::stable::detail::from(out.tensor)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // drops its reference
}

// While it lives, PyTorch's operators run on one thread and record nothing for autograd.
//
// Both settings of threads are needed. With OpenMP's alone, MKL takes another code path on the
// workers of a parallel region than on its first thread, and a product's bits depend on the thread
// that computed it. The functions are those of the libraries that PyTorch has loaded; if it was
// built without one of them, there is nothing to set.
class PlainOperators {
 public:
  PlainOperators() {
    aoti_torch_grad_mode_set_enabled(false);
    set_openmp_threads(1);
  }
  PlainOperators(const PlainOperators&) = delete;
  ~PlainOperators() {
    set_mkl_threads(mkl_threads_);
    set_openmp_threads(openmp_threads_);
    aoti_torch_grad_mode_set_enabled(grad_mode_);
  }

 private:
  template <class Function>
  static Function* loaded(const char* name) {
#if __has_include(<dlfcn.h>)
    return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
#else
    return nullptr;
#endif
  }

  static void set_openmp_threads(int threads) {
    static auto* const set = loaded<void(int)>("omp_set_num_threads");
    if (set != nullptr) set(threads);
  }
  static int openmp_threads() {
    static auto* const get = loaded<int()>("omp_get_max_threads");
    return get == nullptr ? 1 : get();
  }
  // Sets the calling thread's number; returns the former one, 0 for "as OpenMP says".
  static int set_mkl_threads(int threads) {
    static auto* const set = loaded<int(int)>("MKL_Set_Num_Threads_Local");
    return set == nullptr ? 0 : set(threads);
  }

  const bool grad_mode_ = aoti_torch_grad_mode_is_enabled();
  const int openmp_threads_ = openmp_threads();
  const int mkl_threads_ = set_mkl_threads(1);
};

// Memory for a matrix, never larger than the first one that is asked for.
class Buffer {
 public:
  Matrix get(int64_t rows, int64_t columns, ScalarType dtype) {
    if (!memory_ || memory_->numel() < rows * columns) memory_ = empty({rows * columns}, dtype);
    return Matrix::at(memory_->const_data_ptr(), rows, columns, columns, dtype);
  }

 private:
  std::optional<Tensor> memory_;
};

// The buffers of a thread.
struct Buffers {
  Buffer scores, weight, product;
};

// body(buffers, i) for i in [0, count), each on one thread, with PlainOperators. There are at least
// two threads: inside a parallel region no library uses a second thread for a product.
template <class Body>
void run_product_tasks(int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::max<int64_t>(2, std::min<int64_t>(count, num_threads()));
  parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const PlainOperators guard;
    Buffers buffers;
    for (int64_t i; (i = next.fetch_add(1)) < count;) body(buffers, i);
  });
}

}  // namespace spanbert_fast
