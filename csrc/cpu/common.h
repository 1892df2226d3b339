// What the CPU ops share: formats, checks, the split of rows into tasks.
//
// Work is split into tasks by the shape alone, and partial sums of tasks are added in the order of
// tasks: the bits of a result do not depend on the number of threads.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "cpu/kernels/dropout.h"

namespace spanbert_fast {

// The index of a dtype in the kernels' tables.
inline int format_of(const char* name, const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kBFloat16: return 0;
    case at::kHalf: return 1;
    case at::kFloat: return 2;
    default:
      TORCH_CHECK_TYPE(
          false, name, " must be bfloat16, float16 or float32, got ", tensor.scalar_type());
  }
}

inline void check_like(const char* name, const at::Tensor& tensor, const at::Tensor& like) {
  TORCH_CHECK_VALUE(
      tensor.sizes() == like.sizes(), name, " must have shape ", like.sizes(), ", got ",
      tensor.sizes());
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == like.scalar_type(), name, " must be ", like.scalar_type(), ", got ",
      tensor.scalar_type());
}

// A (size,) parameter in float, as the kernels read it.
inline at::Tensor float_vector(const char* name, const at::Tensor& tensor, int64_t size) {
  TORCH_CHECK_VALUE(
      tensor.dim() == 1 && tensor.size(0) == size, name, " must have shape (", size, ",), got ",
      tensor.sizes());
  return tensor.to(at::kFloat).contiguous();
}

inline at::Tensor int64_vector(const char* name, const at::Tensor& tensor, int64_t size) {
  TORCH_CHECK_VALUE(
      tensor.dim() == 1 && tensor.size(0) == size, name, " must have shape (", size, ",), got ",
      tensor.sizes());
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == at::kLong, name, " must be int64, got ", tensor.scalar_type());
  return tensor.contiguous();
}

inline DropoutKey dropout_key(
    const std::optional<at::Tensor>& seed, int64_t threshold, int64_t site) {
  TORCH_CHECK_VALUE(
      0 <= threshold && threshold < 256, "threshold must be in [0, 256), got ", threshold);
  TORCH_CHECK_VALUE(
      0 <= site && site < 65536, "dropout_site must be in [0, 65536), got ", site);
  TORCH_CHECK_VALUE(threshold == 0 || seed, "dropout_seed must be given with dropout_p > 0");
  const auto value = threshold == 0 ? 0 : *seed->const_data_ptr<int64_t>();
  return {
      static_cast<uint64_t>(value), static_cast<uint32_t>(site), static_cast<uint32_t>(threshold)};
}

// A gradient that shares no memory with the op's other outputs.
inline at::Tensor as_output(const at::Tensor& sum, at::ScalarType dtype) {
  return sum.to(dtype, /*non_blocking=*/false, /*copy=*/true);
}

inline const char* bytes(const at::Tensor& tensor) {
  return static_cast<const char*>(tensor.const_data_ptr());
}
inline char* mutable_bytes(const at::Tensor& tensor) {
  return static_cast<char*>(tensor.mutable_data_ptr());
}

// How many rows of `width` elements a thread should get at least: below, waking it costs more.
inline int64_t rows_per_thread(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
}

// Rows in tasks that each keep a partial sum: at most 256 tasks, of at least 64 rows.
struct RowTasks {
  int64_t rows, count, rows_per_task;

  explicit RowTasks(int64_t rows_)
      : rows(rows_),
        count(std::clamp<int64_t>(at::divup(rows_, 64), 1, 256)),
        rows_per_task(at::divup(rows_, count)) {}

  int64_t begin(int64_t task) const { return std::min(rows, task * rows_per_task); }
  int64_t size(int64_t task) const { return begin(task + 1) - begin(task); }

  // body(task) for every task; `width` is a row's number of elements.
  template <class Body>
  void run(int64_t width, const Body& body) const {
    const int64_t grain = at::divup(rows_per_thread(width), std::max<int64_t>(1, rows_per_task));
    at::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) body(task);
    });
  }
};

// Sum over the tasks of zero-initialised partials (tasks, ...), in their order.
at::Tensor sum_partials(const at::Tensor& partials);

}  // namespace spanbert_fast
