// span_boundary_gather on the CPU: checks, and tasks over spans; kernels in
// kernels/span_boundary_gather.cpp.
#include "cpu/kernels/span_boundary_gather.h"

#include <vector>

#include "cpu/common.h"
#include "cpu/ops.h"

namespace spanbert_fast {
namespace {

// The op's inputs as the kernels take them: contiguous, parameters in float.
struct Inputs {
  at::Tensor spans, places, targets, weight;
  SpanBoundaryGather op;

  Inputs(
      const at::Tensor& spans_, const at::Tensor& places_, const at::Tensor& cu_span_lengths,
      int64_t num_targets, const at::Tensor& weight_) {
    TORCH_CHECK_VALUE(
        spans_.dim() == 2, "spans must have shape (num_spans, hidden_size), got ", spans_.sizes());
    const int64_t hidden_size = spans_.size(1);
    TORCH_CHECK_VALUE(
        places_.dim() == 2 && places_.size(1) == hidden_size,
        "places must have shape (max_span_targets, ", hidden_size, "), got ", places_.sizes());
    TORCH_CHECK_TYPE(
        places_.scalar_type() == spans_.scalar_type(), "places must be ", spans_.scalar_type(),
        ", got ", places_.scalar_type());
    check_targets(cu_span_lengths, spans_.size(0), num_targets, places_.size(0));
    spans = spans_.contiguous();
    places = places_.contiguous();
    targets = cu_span_lengths.contiguous();
    weight = float_vector("weight", weight_, hidden_size);
    op = {};
    op.spans = spans.const_data_ptr();
    op.places = places.const_data_ptr();
    op.targets = targets.const_data_ptr<int32_t>();
    op.weight = weight.const_data_ptr<float>();
    op.hidden_size = hidden_size;
  }

 private:
  static void check_targets(
      const at::Tensor& cu_span_lengths, int64_t num_spans, int64_t num_targets,
      int64_t max_span_targets) {
    TORCH_CHECK_TYPE(
        cu_span_lengths.scalar_type() == at::kInt, "cu_span_lengths must be int32, got ",
        cu_span_lengths.scalar_type());
    TORCH_CHECK_VALUE(
        cu_span_lengths.dim() == 1 && cu_span_lengths.size(0) == num_spans + 1,
        "cu_span_lengths must have shape (", num_spans + 1, ",), got ", cu_span_lengths.sizes());
    const at::Tensor values = cu_span_lengths.contiguous();
    const int32_t* bounds = values.const_data_ptr<int32_t>();
    TORCH_CHECK_VALUE(bounds[0] == 0, "cu_span_lengths must start at 0, got ", bounds[0]);
    int64_t longest = 0;
    for (int64_t s = 0; s < num_spans; ++s) {
      TORCH_CHECK_VALUE(
          bounds[s] <= bounds[s + 1], "cu_span_lengths must not fall, got ", bounds[s], " then ",
          bounds[s + 1], " at index ", s + 1);
      longest = std::max<int64_t>(longest, int64_t{bounds[s + 1]} - bounds[s]);
    }
    TORCH_CHECK_VALUE(
        bounds[num_spans] == num_targets, "cu_span_lengths must end at ", num_targets, ", got ",
        bounds[num_spans]);
    TORCH_CHECK_VALUE(
        longest <= max_span_targets, "cu_span_lengths must give no span more than "
        "max_span_targets = ", max_span_targets, " targets, got ", longest);
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> span_boundary_gather_fwd(
    const at::Tensor& spans, const at::Tensor& places, const at::Tensor& cu_span_lengths,
    int64_t num_targets, const at::Tensor& weight, const at::Tensor& bias_, double eps) {
  const int format = format_of("spans", spans);
  Inputs in(spans, places, cu_span_lengths, num_targets, weight);
  const int64_t num_spans = spans.size(0), hidden_size = spans.size(1);
  const at::Tensor bias = float_vector("bias", bias_, hidden_size);
  const at::Tensor y = at::empty({num_targets, hidden_size}, spans.options());
  const at::Tensor mean = at::empty({num_targets, 1}, bias.options());
  const at::Tensor rstd = at::empty({num_targets, 1}, bias.options());
  in.op.bias = bias.const_data_ptr<float>();
  in.op.eps = static_cast<float>(eps);
  in.op.mean = mean.mutable_data_ptr<float>();
  in.op.rstd = rstd.mutable_data_ptr<float>();
  const auto forward = SPANBERT_FAST_KERNELS(span_boundary_gather_kernels).forward[format];
  at::parallel_for(0, num_spans, rows_per_thread(hidden_size), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(span_scratch_size(hidden_size));
    forward(in.op, y.mutable_data_ptr(), first, last, scratch.data());
  });
  return {y, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> span_boundary_gather_bwd(
    const at::Tensor& dy_, const at::Tensor& spans, const at::Tensor& places,
    const at::Tensor& cu_span_lengths, const at::Tensor& weight, const at::Tensor& bias,
    const at::Tensor& mean, const at::Tensor& rstd) {
  const int format = format_of("spans", spans);
  TORCH_CHECK_VALUE(
      dy_.dim() == 2 && dy_.size(1) == spans.size(1), "dy must have shape (num_targets, ",
      spans.size(1), "), got ", dy_.sizes());
  TORCH_CHECK_TYPE(
      dy_.scalar_type() == spans.scalar_type(), "dy must be ", spans.scalar_type(), ", got ",
      dy_.scalar_type());
  Inputs in(spans, places, cu_span_lengths, dy_.size(0), weight);
  const int64_t hidden_size = spans.size(1), num_places = places.size(0);
  const at::Tensor dy = dy_.contiguous();
  in.op.mean = mean.mutable_data_ptr<float>();
  in.op.rstd = rstd.mutable_data_ptr<float>();
  const at::Tensor dspans = at::empty(spans.sizes(), spans.options());
  const RowTasks tasks(spans.size(0));
  // of each task: dweight, dbias, dplaces
  const at::Tensor partials =
      at::zeros({tasks.count, 2 + num_places, hidden_size}, in.weight.options());
  const auto backward = SPANBERT_FAST_KERNELS(span_boundary_gather_kernels).backward[format];
  tasks.run(hidden_size, [&](int64_t task) {
    std::vector<float> scratch(span_scratch_size(hidden_size));
    float* sums = partials.mutable_data_ptr<float>() + task * (2 + num_places) * hidden_size;
    backward(
        in.op, dy.const_data_ptr(), dspans.mutable_data_ptr(), sums, sums + hidden_size,
        sums + 2 * hidden_size, tasks.begin(task), tasks.begin(task + 1), scratch.data());
  });
  const at::Tensor sums = sum_partials(partials);
  return {
      dspans, as_output(sums.slice(0, 2), places.scalar_type()),
      as_output(sums[0], weight.scalar_type()), as_output(sums[1], bias.scalar_type())};
}

}  // namespace spanbert_fast
