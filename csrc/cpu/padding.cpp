// unpad and pad on the CPU: rows of any dtype are copied as bytes, read and written once.
#include <cstring>

#include "cpu/common.h"

namespace spanbert_fast {
namespace {

// The places of tokens in [0, rows), checked, so that no copy leaves the batch's memory.
Tensor checked_indices(const Tensor& indices_, int64_t tokens, int64_t rows) {
  const Tensor indices = int64_vector("indices", indices_, tokens);
  const int64_t* first = data_of<int64_t>(indices);
  const auto [low, high] = std::minmax_element(first, first + tokens);
  SPANBERT_FAST_CHECK(
      tokens == 0 || (0 <= *low && *high < rows), "indices must be in [0, ", rows, "), got ",
      *low < 0 ? *low : *high);
  return indices;
}

// Row i of the result is row from[i] of x, or zeros if from[i] is kNoToken.
constexpr int64_t kNoToken = -1;

Tensor copied_rows(const Tensor& x_, const int64_t* from, int64_t rows) {
  // A copy moves this many bytes in the time that the other ops take for an element.
  constexpr int64_t kBytesPerElement = 16;
  const Tensor x = as_contiguous(x_);
  Shape shape = shape_of(x);
  int64_t row_bytes = x.element_size();
  for (size_t i = 1; i < shape.size(); ++i) row_bytes *= shape[i];
  shape[0] = rows;
  const Tensor out = empty(shape, x.scalar_type());
  if (row_bytes == 0) return out;
  const char* source = bytes(x);
  char* target = mutable_bytes(out);
  const int64_t grain = rows_per_thread(divide_up(row_bytes, kBytesPerElement));
  parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
    // a sequence's tokens are contiguous in both, and so is its padding: one copy for each
    for (int64_t row = first, end; row < last; row = end) {
      const int64_t step = from[row] == kNoToken ? 0 : 1;
      for (end = row + 1; end < last && from[end] == from[end - 1] + step;) ++end;
      char* to = target + row * row_bytes;
      const int64_t size = (end - row) * row_bytes;
      if (from[row] == kNoToken) {
        std::memset(to, 0, size);
      } else {
        std::memcpy(to, source + from[row] * row_bytes, size);
      }
    }
  });
  return out;
}

Tensor unpad_fwd(const Tensor& x, const Tensor& indices_) {
  SPANBERT_FAST_CHECK(x.dim() > 0, "x must have shape (rows, ...), got ()");
  const Tensor indices = checked_indices(indices_, indices_.numel(), x.size(0));
  return copied_rows(x, data_of<int64_t>(indices), indices.numel());
}

Tensor pad_fwd(const Tensor& x, const Tensor& indices_, int64_t rows) {
  SPANBERT_FAST_CHECK(x.dim() > 0, "x must have shape (total_tokens, ...), got ()");
  SPANBERT_FAST_CHECK(rows >= 0, "rows must not be negative, got ", rows);
  const Tensor indices = checked_indices(indices_, x.size(0), rows);
  const int64_t* places = data_of<int64_t>(indices);
  // The token of each row. If there is not enough memory, PyTorch raises its own error.
  const Tensor token_of = empty({rows}, kLong);
  int64_t* token = mutable_data_of<int64_t>(token_of);
  std::fill_n(token, rows, kNoToken);
  for (int64_t i = 0; i < x.size(0); ++i) {
    SPANBERT_FAST_CHECK(
        token[places[i]] == kNoToken, "indices must be distinct, got ", places[i], " twice");
    token[places[i]] = i;
  }
  return copied_rows(x, token, rows);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("unpad_fwd", TORCH_BOX(&unpad_fwd));
  library.impl("pad_fwd", TORCH_BOX(&pad_fwd));
}

}  // namespace spanbert_fast
