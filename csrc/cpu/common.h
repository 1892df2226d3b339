// Shared by the CPU ops: formats, checks, the split of rows into tasks.
//
// The shape alone determines the split into tasks, and partial sums are added in the order of
// tasks, so the bits of a result do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <exception>
#include <mutex>

#include "cpu/kernels/dropout.h"
#include "cpu/kernels/format.h"
#include "tensor.h"

namespace spanbert_fast {

inline Format format_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case kBFloat16: return Format::bfloat16;
    case kHalf: return Format::float16;
    case kFloat: return Format::float32;
    default:
      raise_value_error(
          name, " must be bfloat16, float16 or float32, got ", name_of(tensor.scalar_type()));
  }
}

inline void check_dtype(const char* name, const Tensor& tensor, ScalarType dtype) {
  SPANBERT_FAST_CHECK(
      tensor.scalar_type() == dtype, name, " must be ", name_of(dtype), ", got ",
      name_of(tensor.scalar_type()));
}

inline void check_shape(const char* name, const Tensor& tensor, const Shape& shape) {
  const auto sizes = tensor.sizes();
  SPANBERT_FAST_CHECK(
      std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), name, " must have shape ",
      shape, ", got ", shape_of(tensor));
}

inline void check_like(const char* name, const Tensor& tensor, const Tensor& like) {
  check_shape(name, tensor, shape_of(like));
  check_dtype(name, tensor, like.scalar_type());
}

// A (size,) parameter in float, as the kernels read it.
inline Tensor float_vector(const char* name, const Tensor& tensor, int64_t size) {
  check_shape(name, tensor, {size});
  return cast(tensor, kFloat);
}

inline Tensor int64_vector(const char* name, const Tensor& tensor, int64_t size) {
  check_shape(name, tensor, {size});
  check_dtype(name, tensor, kLong);
  return as_contiguous(tensor);
}

// A (rows, 1) result of the forward, checked for the backward's kernels.
inline Tensor statistics(const char* name, const Tensor& tensor, int64_t rows) {
  check_shape(name, tensor, {rows, 1});
  check_dtype(name, tensor, kFloat);
  return as_contiguous(tensor);
}

inline DropoutKey dropout_key(const std::optional<Tensor>& seed, int64_t threshold, int64_t site) {
  SPANBERT_FAST_CHECK(
      0 <= threshold && threshold < 256, "threshold must be in [0, 256), got ", threshold);
  SPANBERT_FAST_CHECK(0 <= site && site < 65536, "site must be in [0, 65536), got ", site);
  SPANBERT_FAST_CHECK(threshold == 0 || seed, "seed must be given with a threshold above 0");
  SPANBERT_FAST_CHECK(
      threshold == 0 || (seed->dim() == 0 && seed->scalar_type() == kLong),
      "seed must be a 0-dim int64 tensor, got ", name_of(seed->scalar_type()), " ",
      shape_of(*seed));
  const auto value = threshold == 0 ? 0 : *data_of<int64_t>(*seed);
  return {
      static_cast<uint64_t>(value), static_cast<uint32_t>(site), static_cast<uint32_t>(threshold)};
}

// The least rows of `width` elements for a thread; for fewer, waking it costs more than their work.
inline int64_t rows_per_thread(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
}

// body(first, last) over parts of [begin, end) of at least `grain`, on PyTorch's threads. The first
// exception of a thread is thrown again in the calling thread: PyTorch would lose its message.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      body(first, last);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

// Splits rows into tasks that each keep a partial sum: at most 256 tasks of at least 64 rows.
struct RowTasks {
  int64_t rows, count, rows_per_task;

  explicit RowTasks(int64_t rows_)
      : rows(rows_),
        count(std::clamp<int64_t>(divide_up(rows_, 64), 1, 256)),
        rows_per_task(divide_up(rows_, count)) {}

  int64_t begin(int64_t task) const { return std::min(rows, task * rows_per_task); }
  int64_t size(int64_t task) const { return begin(task + 1) - begin(task); }

  // body(task) for every task; `width` is a row's number of elements.
  template <class Body>
  void run(int64_t width, const Body& body) const {
    const int64_t grain = divide_up(rows_per_thread(width), std::max<int64_t>(1, rows_per_task));
    parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) body(task);
    });
  }
};

// A sum of `width` floats per task, initially zero; the sums are added in the order of tasks.
class Partials {
 public:
  Partials(int64_t tasks, int64_t width) : tasks_(tasks), width_(width), sums_(tasks * width) {}

  float* of(int64_t task) { return sums_.data() + task * width_; }

  // Adds the sums of all tasks to the first one's.
  const float* total();

 private:
  int64_t tasks_, width_;
  std::vector<float> sums_;
};

// Floats as a contiguous tensor of that shape and dtype (one of the three formats, or float64).
Tensor from_floats(const float* values, const Shape& shape, ScalarType dtype);

}  // namespace spanbert_fast
