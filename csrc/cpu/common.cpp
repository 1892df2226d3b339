#include "cpu/common.h"

namespace spanbert_fast {

at::Tensor sum_partials(const at::Tensor& partials) {
  const int64_t tasks = partials.size(0);
  if (tasks == 1) return partials.select(0, 0);
  const at::Tensor total = at::empty(partials.sizes().slice(1), partials.options());
  const int64_t width = total.numel();
  const float* from = partials.const_data_ptr<float>();
  float* to = total.mutable_data_ptr<float>();
  at::parallel_for(0, width, rows_per_thread(tasks), [&](int64_t first, int64_t last) {
    std::copy(from + first, from + last, to + first);
    for (int64_t task = 1; task < tasks; ++task) {
      for (int64_t i = first; i < last; ++i) to[i] += from[task * width + i];
    }
  });
  return total;
}

}  // namespace spanbert_fast
