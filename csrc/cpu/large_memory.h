// Tensors of tens of megabytes whose memory is kept for the next step.
#pragma once

#include <ATen/ATen.h>

namespace spanbert_fast {

// As at::empty, for results such as the gradient of a vocabulary or a feed-forward's activations.
// malloc gives such memory back to the system when it is freed and takes it anew, page by page, at
// the next step: two thirds of the embedding's backward pass and of bias_gelu. Here it goes to a
// store of this process, of at most kKeptBytes.
at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options);

constexpr size_t kKeptBytes = size_t{512} << 20;

}  // namespace spanbert_fast
