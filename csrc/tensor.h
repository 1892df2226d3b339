// Tensors through PyTorch's stable ABI: no ATen header is included anywhere, so that one binary
// serves every PyTorch from 2.11 on, and a source compiles in two seconds.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace spanbert_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr ScalarType kBFloat16 = ScalarType::BFloat16, kHalf = ScalarType::Half,
                     kFloat = ScalarType::Float, kInt = ScalarType::Int, kLong = ScalarType::Long,
                     kBool = ScalarType::Bool, kChar = ScalarType::Char;

using Shape = std::vector<int64_t>;

inline Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// As Python writes them: (3, 4), (3,), ().
inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '(';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  return out << (shape.size() == 1 ? ",)" : ")");
}

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::Float: return "torch.float32";
    case ScalarType::Double: return "torch.float64";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Long: return "torch.int64";
    case ScalarType::Bool: return "torch.bool";
    default: return "another dtype";
  }
}

// The message of this thread's last ValueError.
inline thread_local std::string last_value_error;

// A ValueError for Python; the arguments are the parts of its message. PyTorch 2.15 makes a
// RuntimeError of it, which ops/_register.py tells from others by its message.
template <class... Parts>
[[noreturn]] void raise_value_error(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  last_value_error = message.str();
  throw std::invalid_argument(last_value_error);
}

// The parts of the message are evaluated only if the condition does not hold.
#define SPANBERT_FAST_CHECK(condition, ...)                            \
  do {                                                                 \
    if (!(condition)) ::spanbert_fast::raise_value_error(__VA_ARGS__); \
  } while (false)

inline Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= std::max<int64_t>(1, shape[i])) {
    strides[i] = stride;
  }
  return strides;
}

// Contiguous, uninitialised memory of a device. It is filled if PyTorch is told to fill such memory
// (torch.use_deterministic_algorithms).
inline Tensor empty(
    const Shape& shape, ScalarType dtype,
    torch::stable::Device device = torch::stable::Device(torch::headeronly::DeviceType::CPU)) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      shape.size(), shape.data(), contiguous_strides(shape).data(), to<int32_t>(from(dtype)),
      to<int32_t>(from(device.type())), device.index(), &made));
  return Tensor(made);
}

// On the CPU.
inline Tensor empty_as(const Tensor& tensor) {
  return empty(shape_of(tensor), tensor.scalar_type());
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(as_contiguous(*tensor)) : std::nullopt;
}

// The tensor, contiguous and of that dtype; itself if it already is.
inline Tensor cast(const Tensor& tensor, ScalarType dtype) {
  if (tensor.scalar_type() == dtype) return as_contiguous(tensor);
  return as_contiguous(torch::stable::to(tensor, dtype));
}

template <class T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline const char* bytes(const Tensor& tensor) { return data_of<char>(tensor); }
inline char* mutable_bytes(const Tensor& tensor) { return mutable_data_of<char>(tensor); }

inline int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

}  // namespace spanbert_fast
