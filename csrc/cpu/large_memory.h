// Tensors of tens of megabytes whose memory is kept for the next step.
#pragma once

#include "tensor.h"

namespace spanbert_fast {

// As empty, for large results such as the gradient of a vocabulary or a feed-forward's activations.
// malloc returns such memory to the system when it is freed, and at the next step the system maps
// it again, page by page: two thirds of the time of the embedding's backward pass and of bias_gelu.
// Here freed memory goes to a store of this process, of at most kStoredBytes.
Tensor empty_large(const Shape& shape, ScalarType dtype);

constexpr size_t kStoredBytes = size_t{512} << 20;

// Gives all memory in the store back to the system; returns its bytes.
size_t release_memory();

}  // namespace spanbert_fast
