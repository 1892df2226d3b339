#include "cpu/common.h"

#include <cstring>

namespace spanbert_fast {

const float* Partials::total() {
  float* to = sums_.data();
  parallel_for(0, width_, rows_per_thread(tasks_), [&](int64_t first, int64_t last) {
    for (int64_t task = 1; task < tasks_; ++task) {
      for (int64_t i = first; i < last; ++i) to[i] += to[task * width_ + i];
    }
  });
  return to;
}

Tensor from_floats(const float* values, const Shape& shape, ScalarType dtype) {
  const Tensor made = empty(shape, kFloat);
  if (made.numel() > 0) std::memcpy(made.mutable_data_ptr(), values, made.numel() * sizeof(float));
  return cast(made, dtype);
}

}  // namespace spanbert_fast
