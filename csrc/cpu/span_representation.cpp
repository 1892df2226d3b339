// span_representation on the CPU: checks, the orders of spans, and tasks over spans (forward) and
// rows (backward); kernels in kernels/span_representation.cpp.
#include "cpu/kernels/span_representation.h"

#include "cpu/common.h"

namespace spanbert_fast {
namespace {

struct Inputs {
  Tensor firsts, lasts, starts, ends;
  std::optional<Tensor> inner, logits;
  int64_t rows, spans;
  Format format;
  SpanRepresentation op{};

  Inputs(
      const Tensor& firsts_, const Tensor& lasts_, const std::optional<Tensor>& inner_,
      const std::optional<Tensor>& logits_, const Tensor& starts_, const Tensor& ends_)
      : format(format_of("firsts", firsts_)) {
    SPANBERT_FAST_CHECK(
        firsts_.dim() == 2, "firsts must have shape (rows, features), got ", shape_of(firsts_));
    rows = firsts_.size(0);
    op.a = firsts_.size(1);
    op.b = columns_of("lasts", lasts_, firsts_);
    SPANBERT_FAST_CHECK(
        inner_.has_value() == logits_.has_value(), "inner and logits must be given together");
    firsts = as_contiguous(firsts_);
    lasts = as_contiguous(lasts_);
    if (inner_) {
      op.c = columns_of("inner", *inner_, firsts_);
      inner = as_contiguous(*inner_);
      logits = float_vector("logits", *logits_, rows);
      op.inner = inner->const_data_ptr();
      op.logits = data_of<float>(*logits);
    }
    SPANBERT_FAST_CHECK(
        starts_.dim() == 1, "starts must have shape (spans,), got ", shape_of(starts_));
    spans = starts_.size(0);
    starts = int64_vector("starts", starts_, spans);
    ends = int64_vector("ends", ends_, spans);
    op.firsts = firsts.const_data_ptr();
    op.lasts = lasts.const_data_ptr();
    op.starts = data_of<int64_t>(starts);
    op.ends = data_of<int64_t>(ends);
    for (int64_t s = 0; s < spans; ++s) {
      SPANBERT_FAST_CHECK(
          0 <= op.starts[s] && op.starts[s] <= op.ends[s] && op.ends[s] < rows,
          "starts must be <= ends, both in [0, ", rows, "), got ", op.starts[s], " and ",
          op.ends[s], " at span ", s);
    }
  }

  int64_t width() const { return op.a + op.b + op.c; }

 private:
  int64_t columns_of(const char* name, const Tensor& tensor, const Tensor& like) const {
    SPANBERT_FAST_CHECK(
        tensor.dim() == 2 && tensor.size(0) == rows, name, " must have shape (", rows,
        ", features), got ", shape_of(tensor));
    check_dtype(name, tensor, like.scalar_type());
    return tensor.size(1);
  }
};

// (y, lse); see spanbert_fast/ops/span_representation.py.
std::tuple<Tensor, Tensor> span_representation_fwd(
    const Tensor& firsts, const Tensor& lasts, const std::optional<Tensor>& inner,
    const std::optional<Tensor>& logits, const Tensor& starts, const Tensor& ends) {
  const Inputs in(firsts, lasts, inner, logits, starts, ends);
  const Tensor y = empty({in.spans, in.width()}, firsts.scalar_type());
  const Tensor lse = empty({inner ? in.spans : 0}, kFloat);
  const auto forward = SPANBERT_FAST_KERNELS(span_representation_kernels).forward[in.format];
  parallel_for(0, in.spans, rows_per_thread(in.width()), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(in.op.c);
    forward(in.op, y.mutable_data_ptr(), mutable_data_of<float>(lse), first, last, scratch.data());
  });
  return {y, lse};
}

// The spans sorted by their row; spans of one row keep their order.
struct Order {
  std::vector<int64_t> spans, bounds;

  Order(const int64_t* row_of, int64_t count, int64_t rows) : spans(count), bounds(rows + 1) {
    for (int64_t s = 0; s < count; ++s) ++bounds[row_of[s] + 1];
    for (int64_t t = 0; t < rows; ++t) bounds[t + 1] += bounds[t];
    std::vector<int64_t> next(bounds.begin(), bounds.end() - 1);
    for (int64_t s = 0; s < count; ++s) spans[next[row_of[s]]++] = s;
  }

  SpanOrder view() const { return {spans.data(), bounds.data()}; }
};

// For each row, the first place in the order of starts such that all spans before it end before the
// row.
std::vector<int64_t> reaching(const Order& by_start, const int64_t* ends, int64_t rows) {
  std::vector<int64_t> first(rows);
  const int64_t count = by_start.spans.size();
  int64_t place = 0;
  for (int64_t t = 0; t < rows; ++t) {
    while (place < count && place < by_start.bounds[t] && ends[by_start.spans[place]] < t) ++place;
    first[t] = place;
  }
  return first;
}

// The gradients of firsts, lasts, inner and logits; the last two are empty without inner.
std::tuple<Tensor, Tensor, Tensor, Tensor> span_representation_bwd(
    const Tensor& dy_, const Tensor& firsts, const Tensor& lasts,
    const std::optional<Tensor>& inner, const std::optional<Tensor>& logits, const Tensor& starts,
    const Tensor& ends, const Tensor& y_, const Tensor& lse_) {
  const Inputs in(firsts, lasts, inner, logits, starts, ends);
  check_shape("dy", dy_, {in.spans, in.width()});
  check_dtype("dy", dy_, firsts.scalar_type());
  check_like("y", y_, dy_);
  const Tensor dy = as_contiguous(dy_), y = as_contiguous(y_);
  const Tensor lse = float_vector("lse", lse_, inner ? in.spans : 0);
  const auto& kernels = SPANBERT_FAST_KERNELS(span_representation_kernels);
  const ScalarType dtype = firsts.scalar_type();
  const Tensor dfirsts = empty_as(firsts), dlasts = empty_as(lasts);
  const Tensor dinner = inner ? empty_as(*inner) : empty({0}, dtype);
  const Tensor dlogits = empty({inner ? in.rows : 0}, kFloat);
  const Order by_start(in.op.starts, in.spans, in.rows), by_end(in.op.ends, in.spans, in.rows);
  const std::vector<int64_t> first_reaching = reaching(by_start, in.op.ends, in.rows);
  std::vector<float> along(inner ? in.spans : 0);
  if (inner) {
    parallel_for(0, in.spans, rows_per_thread(in.op.c), [&](int64_t first, int64_t last) {
      kernels.along[in.format](
          in.op, dy.const_data_ptr(), y.const_data_ptr(), along.data(), first, last);
    });
  }
  const SpanRepresentationGradients to = {
      dy.const_data_ptr(),
      data_of<float>(lse),
      along.data(),
      by_start.view(),
      by_end.view(),
      first_reaching.data(),
      dfirsts.mutable_data_ptr(),
      dlasts.mutable_data_ptr(),
      dinner.mutable_data_ptr(),
      mutable_data_of<float>(dlogits)};
  parallel_for(0, in.rows, rows_per_thread(8 * in.width()), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(std::max({in.op.a, in.op.b, in.op.c}));
    kernels.backward[in.format](in.op, to, first, last, scratch.data());
  });
  const ScalarType of_logits = logits ? logits->scalar_type() : kFloat;
  return {dfirsts, dlasts, dinner, cast(dlogits, of_logits)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("span_representation_fwd", TORCH_BOX(&span_representation_fwd));
  library.impl("span_representation_bwd", TORCH_BOX(&span_representation_bwd));
}

}  // namespace spanbert_fast
