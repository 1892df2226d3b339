// The CPU implementations of the custom ops that registration.cpp binds, under the ops' names and
// with their arguments. They take bfloat16, float16 and float32; strides may be any.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <tuple>

namespace spanbert_fast {

at::Tensor bias_gelu_fwd(const at::Tensor& x, const at::Tensor& bias);
std::tuple<at::Tensor, at::Tensor> bias_gelu_bwd(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& bias);

}  // namespace spanbert_fast
