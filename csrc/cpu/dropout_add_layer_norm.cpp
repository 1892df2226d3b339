// dropout_add_layer_norm on the CPU: tasks over rows; kernels in
// kernels/dropout_add_layer_norm.cpp.
#include "cpu/kernels/dropout_add_layer_norm.h"

#include <vector>

#include "cpu/common.h"
#include "cpu/ops.h"

namespace spanbert_fast {
namespace {

// The op's inputs as the kernels take them: contiguous, parameters in float.
struct Inputs {
  at::Tensor x, residual, x_bias, weight, rows;
  bool wide;  // the residual stream is in float
  DropoutAddLayerNorm op;

  Inputs(
      const at::Tensor& x_, const at::Tensor& residual_, const at::Tensor& weight_,
      const std::optional<at::Tensor>& x_bias_, const std::optional<at::Tensor>& seed,
      const std::optional<at::Tensor>& rows_, int64_t threshold, int64_t site) {
    TORCH_CHECK_VALUE(x_.dim() == 2, "x must have shape (tokens, hidden_size), got ", x_.sizes());
    wide = residual_.scalar_type() == at::kFloat;
    TORCH_CHECK_VALUE(
        residual_.sizes() == x_.sizes(), "residual must have shape ", x_.sizes(), ", got ",
        residual_.sizes());
    TORCH_CHECK_TYPE(
        wide || residual_.scalar_type() == x_.scalar_type(), "residual must be float32 or ",
        x_.scalar_type(), " as x is, got ", residual_.scalar_type());
    const int64_t hidden_size = x_.size(1);
    x = x_.contiguous();
    residual = residual_.contiguous();
    weight = float_vector("weight", weight_, hidden_size);
    x_bias = x_bias_ ? float_vector("x_bias", *x_bias_, hidden_size)
                     : at::zeros({hidden_size}, weight.options());
    op = {};
    if (rows_) {
      rows = int64_vector("dropout_rows", *rows_, x.size(0));
      op.rows = rows.const_data_ptr<int64_t>();
      for (int64_t i = 0; i < x.size(0); ++i) {
        TORCH_CHECK_VALUE(
            op.rows[i] >= 0, "dropout_rows must not be negative, got ", op.rows[i]);
      }
    }
    op.x = x.const_data_ptr();
    op.residual = residual.const_data_ptr();
    op.x_bias = x_bias.const_data_ptr<float>();
    op.weight = weight.const_data_ptr<float>();
    op.hidden_size = hidden_size;
    op.dropout = dropout_key(seed, threshold, site);
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> dropout_add_layer_norm_fwd(
    const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
    const at::Tensor& bias_, const std::optional<at::Tensor>& x_bias,
    const std::optional<at::Tensor>& seed, const std::optional<at::Tensor>& rows,
    int64_t threshold, int64_t site, double eps) {
  const int format = format_of("x", x);
  Inputs in(x, residual, weight, x_bias, seed, rows, threshold, site);
  const int64_t tokens = x.size(0), hidden_size = x.size(1);
  const at::Tensor bias = float_vector("bias", bias_, hidden_size);
  const at::Tensor y = at::empty(x.sizes(), residual.options());
  const at::Tensor mean = at::empty({tokens, 1}, bias.options());
  const at::Tensor rstd = at::empty({tokens, 1}, bias.options());
  in.op.bias = bias.const_data_ptr<float>();
  in.op.eps = static_cast<float>(eps);
  in.op.mean = mean.mutable_data_ptr<float>();
  in.op.rstd = rstd.mutable_data_ptr<float>();
  const auto forward = SPANBERT_FAST_KERNELS(dropout_add_layer_norm_kernels).forward[format][in.wide];
  at::parallel_for(0, tokens, rows_per_thread(hidden_size), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(norm_scratch_size(hidden_size));
    forward(in.op, y.mutable_data_ptr(), first, last, scratch.data());
  });
  return {y, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> dropout_add_layer_norm_bwd(
    const at::Tensor& dy_, const at::Tensor& x, const at::Tensor& residual,
    const at::Tensor& weight, const at::Tensor& bias, const std::optional<at::Tensor>& x_bias,
    const std::optional<at::Tensor>& seed, const std::optional<at::Tensor>& rows,
    const at::Tensor& mean, const at::Tensor& rstd, int64_t threshold, int64_t site) {
  const int format = format_of("x", x);
  check_like("dy", dy_, residual);
  Inputs in(x, residual, weight, x_bias, seed, rows, threshold, site);
  const int64_t hidden_size = x.size(1);
  const at::Tensor dy = dy_.contiguous();
  in.op.mean = mean.mutable_data_ptr<float>();
  in.op.rstd = rstd.mutable_data_ptr<float>();
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  const at::Tensor dresidual = at::empty(x.sizes(), residual.options());
  const RowTasks tasks(x.size(0));
  const at::Tensor partials = at::zeros({tasks.count, 3, hidden_size}, in.weight.options());
  const auto backward = SPANBERT_FAST_KERNELS(dropout_add_layer_norm_kernels).backward[format][in.wide];
  tasks.run(hidden_size, [&](int64_t task) {
    std::vector<float> scratch(norm_scratch_size(hidden_size));
    float* sums = partials.mutable_data_ptr<float>() + task * 3 * hidden_size;
    backward(
        in.op, dy.const_data_ptr(), dx.mutable_data_ptr(), dresidual.mutable_data_ptr(), sums,
        sums + hidden_size, sums + 2 * hidden_size, tasks.begin(task), tasks.begin(task + 1),
        scratch.data());
  });
  const at::Tensor sums = sum_partials(partials);
  return {
      dx, dresidual, as_output(sums[0], weight.scalar_type()),
      as_output(sums[1], bias.scalar_type()),
      x_bias ? as_output(sums[2], x_bias->scalar_type()) : at::empty({0}, x.options())};
}

}  // namespace spanbert_fast
