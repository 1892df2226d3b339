// unpad and pad on the CPU: rows of bytes, of any dtype, read and written once.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/common.h"
#include "cpu/ops.h"

namespace spanbert_fast {
namespace {

// The places of tokens in [0, rows), checked: a wrong one would be memory that is not the batch's.
at::Tensor checked_indices(const at::Tensor& indices_, int64_t tokens, int64_t rows) {
  const at::Tensor indices = int64_vector("indices", indices_, tokens);
  const int64_t* first = indices.const_data_ptr<int64_t>();
  const auto [low, high] = std::minmax_element(first, first + tokens);
  TORCH_CHECK_VALUE(
      tokens == 0 || (0 <= *low && *high < rows), "indices must be in [0, ", rows, "), got ",
      *low < 0 ? *low : *high);
  return indices;
}

// Row i of the result is row from[i] of x, or zeros where that is kNoToken.
constexpr int64_t kNoToken = -1;

at::Tensor copied_rows(const at::Tensor& x_, const int64_t* from, int64_t rows) {
  // A copy moves this much in the time that the other ops take for an element.
  constexpr int64_t kBytesPerElement = 16;
  const at::Tensor x = x_.contiguous();
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[0] = rows;
  const at::Tensor out = at::empty(sizes, x.options());
  const int64_t row_bytes = c10::multiply_integers(x.sizes().slice(1)) * x.element_size();
  if (row_bytes == 0) return out;
  const char* source = bytes(x);
  char* target = mutable_bytes(out);
  const int64_t grain = rows_per_thread(at::divup(row_bytes, kBytesPerElement));
  at::parallel_for(0, rows, grain, [&](int64_t first, int64_t last) {
    // a sequence's tokens lie side by side on both sides, and so does its padding: one copy each
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

}  // namespace

at::Tensor unpad_fwd(const at::Tensor& x, const at::Tensor& indices_) {
  TORCH_CHECK_VALUE(x.dim() > 0, "x must have shape (rows, ...), got ", x.sizes());
  const at::Tensor indices = checked_indices(indices_, indices_.numel(), x.size(0));
  return copied_rows(x, indices.const_data_ptr<int64_t>(), indices.numel());
}

at::Tensor pad_fwd(const at::Tensor& x, const at::Tensor& indices_, int64_t rows) {
  TORCH_CHECK_VALUE(x.dim() > 0, "x must have shape (total_tokens, ...), got ", x.sizes());
  TORCH_CHECK_VALUE(rows >= 0, "rows must not be negative, got ", rows);
  const at::Tensor indices = checked_indices(indices_, x.size(0), rows);
  const int64_t* places = indices.const_data_ptr<int64_t>();
  std::vector<int64_t> token(rows, kNoToken);  // that goes to each row
  for (int64_t i = 0; i < x.size(0); ++i) token[places[i]] = i;
  return copied_rows(x, token.data(), rows);
}

}  // namespace spanbert_fast
