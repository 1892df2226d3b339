// dropout_add_layer_norm on the CPU: tasks over rows; kernels in
// kernels/dropout_add_layer_norm.cpp.
#include "cpu/kernels/dropout_add_layer_norm.h"

#include "cpu/common.h"

namespace spanbert_fast {
namespace {

// The op's inputs for the kernels: contiguous, parameters in float.
struct Inputs {
  Tensor x, residual, weight, bias;
  std::optional<Tensor> rows;
  std::vector<float> no_x_bias;
  Tensor x_bias;
  Format format;
  bool wide;  // the residual stream is in float
  DropoutAddLayerNorm op{};

  Inputs(
      const Tensor& x_, const Tensor& residual_, const Tensor& weight_, const Tensor& bias_,
      const std::optional<Tensor>& x_bias_, const std::optional<Tensor>& seed,
      const std::optional<Tensor>& rows_, int64_t threshold, int64_t site, double eps)
      : format(format_of("x", x_)), wide(residual_.scalar_type() == kFloat) {
    SPANBERT_FAST_CHECK(
        x_.dim() == 2, "x must have shape (tokens, hidden_size), got ", shape_of(x_));
    check_shape("residual", residual_, shape_of(x_));
    if (!wide) check_dtype("residual", residual_, x_.scalar_type());
    op.hidden_size = x_.size(1);
    x = as_contiguous(x_);
    residual = as_contiguous(residual_);
    weight = float_vector("weight", weight_, op.hidden_size);
    bias = float_vector("bias", bias_, op.hidden_size);
    if (x_bias_) {
      x_bias = float_vector("x_bias", *x_bias_, op.hidden_size);
      op.x_bias = data_of<float>(x_bias);
    } else {
      no_x_bias.resize(op.hidden_size);
      op.x_bias = no_x_bias.data();
    }
    if (rows_) {
      rows = int64_vector("rows", *rows_, x.size(0));
      op.rows = data_of<int64_t>(*rows);
      // the number of a row's last element has to be an integer, too
      const int64_t most = INT64_MAX / std::max<int64_t>(op.hidden_size, 1) - 1;
      for (int64_t i = 0; i < x.size(0); ++i) {
        SPANBERT_FAST_CHECK(
            op.rows[i] >= 0 && op.rows[i] <= most, "rows must be from 0 to ", most, ", got ",
            op.rows[i]);
      }
    }
    op.x = x.const_data_ptr();
    op.residual = residual.const_data_ptr();
    op.weight = data_of<float>(weight);
    op.bias = data_of<float>(bias);
    op.dropout = dropout_key(seed, threshold, site);
    op.eps = static_cast<float>(eps);
  }
};

std::tuple<Tensor, Tensor, Tensor> dropout_add_layer_norm_fwd(
    const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias,
    const std::optional<Tensor>& x_bias, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& rows, int64_t threshold, int64_t site, double eps) {
  Inputs in(x, residual, weight, bias, x_bias, seed, rows, threshold, site, eps);
  const int64_t tokens = x.size(0), hidden_size = x.size(1);
  const Tensor y = empty_as(residual);
  const Tensor mean = empty({tokens, 1}, kFloat), rstd = empty({tokens, 1}, kFloat);
  in.op.mean = mutable_data_of<float>(mean);
  in.op.rstd = mutable_data_of<float>(rstd);
  const auto& kernels = SPANBERT_FAST_KERNELS(dropout_add_layer_norm_kernels);
  const auto forward = (in.wide ? kernels.wide_forward : kernels.forward)[in.format];
  parallel_for(0, tokens, rows_per_thread(hidden_size), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(norm_scratch_size(hidden_size));
    forward(in.op, y.mutable_data_ptr(), first, last, scratch.data());
  });
  return {y, mean, rstd};
}

// The gradients of x, residual, weight, bias and x_bias; the last is (0,) without x_bias.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dropout_add_layer_norm_bwd(
    const Tensor& dy_, const Tensor& x, const Tensor& residual, const Tensor& weight,
    const Tensor& bias, const std::optional<Tensor>& x_bias, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& rows, int64_t threshold, int64_t site, double eps,
    const Tensor& mean_, const Tensor& rstd_) {
  Inputs in(x, residual, weight, bias, x_bias, seed, rows, threshold, site, eps);
  check_like("dy", dy_, residual);
  const int64_t hidden_size = x.size(1);
  const Tensor dy = as_contiguous(dy_);
  const Tensor mean = statistics("mean", mean_, x.size(0));
  const Tensor rstd = statistics("rstd", rstd_, x.size(0));
  in.op.mean = mutable_data_of<float>(mean);
  in.op.rstd = mutable_data_of<float>(rstd);
  const Tensor dx = empty_as(x), dresidual = empty_as(residual);
  const RowTasks tasks(x.size(0));
  Partials partials(tasks.count, 3 * hidden_size);
  const auto& kernels = SPANBERT_FAST_KERNELS(dropout_add_layer_norm_kernels);
  const auto backward = (in.wide ? kernels.wide_backward : kernels.backward)[in.format];
  tasks.run(hidden_size, [&](int64_t task) {
    std::vector<float> scratch(norm_scratch_size(hidden_size));
    float* sums = partials.of(task);
    backward(
        in.op, dy.const_data_ptr(), dx.mutable_data_ptr(), dresidual.mutable_data_ptr(), sums,
        sums + hidden_size, sums + 2 * hidden_size, tasks.begin(task), tasks.begin(task + 1),
        scratch.data());
  });
  const float* sums = partials.total();
  return {
      dx, dresidual, from_floats(sums, {hidden_size}, weight.scalar_type()),
      from_floats(sums + hidden_size, {hidden_size}, bias.scalar_type()),
      x_bias ? from_floats(sums + 2 * hidden_size, {hidden_size}, x_bias->scalar_type())
             : empty({0}, x.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("dropout_add_layer_norm_fwd", TORCH_BOX(&dropout_add_layer_norm_fwd));
  library.impl("dropout_add_layer_norm_bwd", TORCH_BOX(&dropout_add_layer_norm_bwd));
}

}  // namespace spanbert_fast
