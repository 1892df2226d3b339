// bias_gelu on the CPU: tasks over rows, kernels in kernels/bias_gelu.cpp. Its results are the
// widest of a layer: mapping 25 MB of new pages takes longer than computing them.
#include "cpu/common.h"
#include "cpu/kernels/bias_gelu.h"
#include "cpu/large_memory.h"
#include "cpu/ops.h"

namespace spanbert_fast {

at::Tensor bias_gelu_fwd(const at::Tensor& x_, const at::Tensor& bias_) {
  const int format = format_of("x", x_);
  const at::Tensor x = x_.contiguous();
  const int64_t features = x.size(-1), rows = features == 0 ? 0 : x.numel() / features;
  const at::Tensor bias = float_vector("bias", bias_, features);
  const at::Tensor y = empty_large(x.sizes(), x.options());
  const auto forward = SPANBERT_FAST_KERNELS(bias_gelu_kernels).forward[format];
  const int64_t row_bytes = features * x.element_size();
  at::parallel_for(0, rows, rows_per_thread(features), [&](int64_t first, int64_t last) {
    forward(
        bytes(x) + first * row_bytes, bias.const_data_ptr<float>(),
        mutable_bytes(y) + first * row_bytes, last - first, features);
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor> bias_gelu_bwd(
    const at::Tensor& dy_, const at::Tensor& x_, const at::Tensor& bias_) {
  const int format = format_of("x", x_);
  check_like("dy", dy_, x_);
  const at::Tensor dy = dy_.contiguous(), x = x_.contiguous();
  const int64_t features = x.size(-1), rows = features == 0 ? 0 : x.numel() / features;
  const at::Tensor bias = float_vector("bias", bias_, features);
  const at::Tensor dx = empty_large(x.sizes(), x.options());
  const RowTasks tasks(rows);
  const at::Tensor partials = at::zeros({tasks.count, features}, bias.options());
  const auto backward = SPANBERT_FAST_KERNELS(bias_gelu_kernels).backward[format];
  const int64_t row_bytes = features * x.element_size();
  tasks.run(features, [&](int64_t task) {
    const int64_t offset = tasks.begin(task) * row_bytes;
    backward(
        bytes(dy) + offset, bytes(x) + offset, bias.const_data_ptr<float>(),
        mutable_bytes(dx) + offset, partials.mutable_data_ptr<float>() + task * features,
        tasks.size(task), features);
  });
  return {dx, sum_partials(partials).to(bias_.scalar_type())};
}

}  // namespace spanbert_fast
