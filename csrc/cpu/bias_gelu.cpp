// bias_gelu on the CPU: tasks over rows, kernels in kernels/bias_gelu.cpp. Its results are the
// largest of a layer, and mapping 25 MB of new pages takes longer than computing them.
#include "cpu/kernels/bias_gelu.h"

#include "cpu/common.h"
#include "cpu/large_memory.h"

namespace spanbert_fast {
namespace {

struct Rows {
  int64_t features, count, bytes;

  explicit Rows(const Tensor& x) {
    SPANBERT_FAST_CHECK(x.dim() > 0, "x must have shape (..., features), got ()");
    features = x.size(x.dim() - 1);
    count = features == 0 ? 0 : x.numel() / features;
    bytes = features * static_cast<int64_t>(x.element_size());
  }
};

Tensor bias_gelu_fwd(const Tensor& x_, const Tensor& bias_) {
  const Format format = format_of("x", x_);
  const Tensor x = as_contiguous(x_);
  const Rows rows(x);
  const Tensor bias = float_vector("bias", bias_, rows.features);
  const Tensor y = empty_large(shape_of(x), x.scalar_type());
  const auto forward = SPANBERT_FAST_KERNELS(bias_gelu_kernels).forward[format];
  const char* from = bytes(x);
  char* to = mutable_bytes(y);
  parallel_for(0, rows.count, rows_per_thread(rows.features), [&](int64_t first, int64_t last) {
    forward(
        from + first * rows.bytes, data_of<float>(bias), to + first * rows.bytes, last - first,
        rows.features);
  });
  return y;
}

std::tuple<Tensor, Tensor> bias_gelu_bwd(const Tensor& dy_, const Tensor& x_, const Tensor& bias_) {
  const Format format = format_of("x", x_);
  check_like("dy", dy_, x_);
  const Tensor dy = as_contiguous(dy_), x = as_contiguous(x_);
  const Rows rows(x);
  const Tensor bias = float_vector("bias", bias_, rows.features);
  const Tensor dx = empty_large(shape_of(x), x.scalar_type());
  const RowTasks tasks(rows.count);
  Partials dbias(tasks.count, rows.features);
  const auto backward = SPANBERT_FAST_KERNELS(bias_gelu_kernels).backward[format];
  tasks.run(rows.features, [&](int64_t task) {
    const int64_t offset = tasks.begin(task) * rows.bytes;
    backward(
        bytes(dy) + offset, bytes(x) + offset, data_of<float>(bias), mutable_bytes(dx) + offset,
        dbias.of(task), tasks.size(task), rows.features);
  });
  return {dx, from_floats(dbias.total(), {rows.features}, bias_.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("bias_gelu_fwd", TORCH_BOX(&bias_gelu_fwd));
  library.impl("bias_gelu_bwd", TORCH_BOX(&bias_gelu_bwd));
}

}  // namespace spanbert_fast
