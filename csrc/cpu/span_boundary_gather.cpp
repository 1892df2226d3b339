// span_boundary_gather on the CPU: checks, and tasks over spans; kernels in
// kernels/span_boundary_gather.cpp.
#include "cpu/kernels/span_boundary_gather.h"

#include "cpu/common.h"

namespace spanbert_fast {
namespace {

// Prefix sums of the spans' target counts, checked, since kernels use them as offsets.
Tensor checked_targets(
    const Tensor& cu_span_lengths, int64_t num_spans, int64_t num_targets,
    int64_t max_span_targets) {
  check_dtype("cu_span_lengths", cu_span_lengths, kInt);
  check_shape("cu_span_lengths", cu_span_lengths, {num_spans + 1});
  const Tensor values = as_contiguous(cu_span_lengths);
  const int32_t* bounds = data_of<int32_t>(values);
  SPANBERT_FAST_CHECK(bounds[0] == 0, "cu_span_lengths must start at 0, got ", bounds[0]);
  int64_t longest = 0;
  for (int64_t s = 0; s < num_spans; ++s) {
    SPANBERT_FAST_CHECK(
        bounds[s] <= bounds[s + 1], "cu_span_lengths must not fall, got ", bounds[s], " then ",
        bounds[s + 1], " at index ", s + 1);
    longest = std::max<int64_t>(longest, int64_t{bounds[s + 1]} - bounds[s]);
  }
  SPANBERT_FAST_CHECK(
      bounds[num_spans] == num_targets, "cu_span_lengths must end at ", num_targets, ", got ",
      bounds[num_spans]);
  SPANBERT_FAST_CHECK(
      longest <= max_span_targets,
      "cu_span_lengths must give no span more than max_span_targets = ", max_span_targets,
      " targets, got ", longest);
  return values;
}

// The op's inputs for the kernels: contiguous, parameters in float.
struct Inputs {
  Tensor spans, places, targets, weight, bias;
  Format format;
  SpanBoundaryGather op{};

  Inputs(
      const Tensor& spans_, const Tensor& places_, const Tensor& cu_span_lengths,
      int64_t num_targets, const Tensor& weight_, const Tensor& bias_, double eps)
      : format(format_of("spans", spans_)) {
    SPANBERT_FAST_CHECK(
        spans_.dim() == 2, "spans must have shape (num_spans, hidden_size), got ",
        shape_of(spans_));
    op.hidden_size = spans_.size(1);
    SPANBERT_FAST_CHECK(
        places_.dim() == 2 && places_.size(1) == op.hidden_size,
        "places must have shape (max_span_targets, ", op.hidden_size, "), got ", shape_of(places_));
    check_dtype("places", places_, spans_.scalar_type());
    targets = checked_targets(cu_span_lengths, spans_.size(0), num_targets, places_.size(0));
    spans = as_contiguous(spans_);
    places = as_contiguous(places_);
    weight = float_vector("weight", weight_, op.hidden_size);
    bias = float_vector("bias", bias_, op.hidden_size);
    op.spans = spans.const_data_ptr();
    op.places = places.const_data_ptr();
    op.targets = data_of<int32_t>(targets);
    op.weight = data_of<float>(weight);
    op.bias = data_of<float>(bias);
    op.eps = static_cast<float>(eps);
  }
};

std::tuple<Tensor, Tensor, Tensor> span_boundary_gather_fwd(
    const Tensor& spans, const Tensor& places, const Tensor& cu_span_lengths, int64_t num_targets,
    const Tensor& weight, const Tensor& bias, double eps) {
  Inputs in(spans, places, cu_span_lengths, num_targets, weight, bias, eps);
  const int64_t num_spans = spans.size(0), hidden_size = spans.size(1);
  const Tensor y = empty({num_targets, hidden_size}, spans.scalar_type());
  const Tensor mean = empty({num_targets, 1}, kFloat), rstd = empty({num_targets, 1}, kFloat);
  in.op.mean = mutable_data_of<float>(mean);
  in.op.rstd = mutable_data_of<float>(rstd);
  const auto forward = SPANBERT_FAST_KERNELS(span_boundary_gather_kernels).forward[in.format];
  parallel_for(0, num_spans, rows_per_thread(hidden_size), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(span_scratch_size(hidden_size));
    forward(in.op, y.mutable_data_ptr(), first, last, scratch.data());
  });
  return {y, mean, rstd};
}

// The gradients of spans, places, weight and bias.
std::tuple<Tensor, Tensor, Tensor, Tensor> span_boundary_gather_bwd(
    const Tensor& dy_, const Tensor& spans, const Tensor& places, const Tensor& cu_span_lengths,
    int64_t num_targets, const Tensor& weight, const Tensor& bias, double eps, const Tensor& mean_,
    const Tensor& rstd_) {
  Inputs in(spans, places, cu_span_lengths, num_targets, weight, bias, eps);
  const int64_t hidden_size = spans.size(1), num_places = places.size(0);
  check_shape("dy", dy_, {num_targets, hidden_size});
  check_dtype("dy", dy_, spans.scalar_type());
  const Tensor dy = as_contiguous(dy_);
  const Tensor mean = statistics("mean", mean_, num_targets);
  const Tensor rstd = statistics("rstd", rstd_, num_targets);
  in.op.mean = mutable_data_of<float>(mean);
  in.op.rstd = mutable_data_of<float>(rstd);
  const Tensor dspans = empty_as(spans);
  const RowTasks tasks(spans.size(0));
  Partials partials(tasks.count, (2 + num_places) * hidden_size);  // dweight, dbias, dplaces
  const auto backward = SPANBERT_FAST_KERNELS(span_boundary_gather_kernels).backward[in.format];
  tasks.run(hidden_size, [&](int64_t task) {
    std::vector<float> scratch(span_scratch_size(hidden_size));
    float* sums = partials.of(task);
    backward(
        in.op, dy.const_data_ptr(), dspans.mutable_data_ptr(), sums, sums + hidden_size,
        sums + 2 * hidden_size, tasks.begin(task), tasks.begin(task + 1), scratch.data());
  });
  const float* sums = partials.total();
  return {
      dspans, from_floats(sums + 2 * hidden_size, {num_places, hidden_size}, places.scalar_type()),
      from_floats(sums, {hidden_size}, weight.scalar_type()),
      from_floats(sums + hidden_size, {hidden_size}, bias.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("span_boundary_gather_fwd", TORCH_BOX(&span_boundary_gather_fwd));
  library.impl("span_boundary_gather_bwd", TORCH_BOX(&span_boundary_gather_bwd));
}

}  // namespace spanbert_fast
