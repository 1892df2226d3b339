// The dtypes of the kernels, and tables of functions by dtype.
#pragma once

namespace spanbert_fast {

enum class Format : int { bfloat16, float16, float32 };

// One function for each format; null for a format that the op does not have.
template <class Function>
struct PerFormat {
  Function* functions[3];

  Function* operator[](Format format) const { return functions[static_cast<int>(format)]; }
};

}  // namespace spanbert_fast
