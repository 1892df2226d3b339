#include "cpu/large_memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <new>

namespace spanbert_fast {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

struct Block {
  void* data;
  size_t size;
};

class Store {
 public:
  // The smallest stored block that fits and has less than twice the size, or new memory.
  Block take(size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = stored_.end();
      for (auto block = stored_.begin(); block != stored_.end(); ++block) {
        const bool fits = size <= block->size && block->size <= 2 * size;
        if (fits && (best == stored_.end() || block->size < best->size)) best = block;
      }
      if (best != stored_.end()) {
        const Block found = *best;
        bytes_ -= found.size;
        stored_.erase(best);
        return found;
      }
    }
    void* data = std::aligned_alloc(kHugePage, size);
    if (data == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    // mapping small pages takes up to a third of a product's time
    madvise(data, size, MADV_HUGEPAGE);
#endif
    return {data, size};
  }

  // Stores the block in front; frees the oldest blocks if there are too many bytes.
  void give(const Block& block) {
    if (block.size > kStoredBytes) return std::free(block.data);  // it would push out all others
    std::list<Block> freed;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stored_.push_front(block);
      bytes_ += block.size;
      while (bytes_ > kStoredBytes) {
        bytes_ -= stored_.back().size;
        freed.splice(freed.end(), stored_, std::prev(stored_.end()));
      }
    }
    for (const Block& old : freed) std::free(old.data);
  }

  size_t release() {
    std::list<Block> freed;
    size_t bytes = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      freed.swap(stored_);
      std::swap(bytes, bytes_);
    }
    for (const Block& block : freed) std::free(block.data);
    return bytes;
  }

 private:
  std::mutex mutex_;
  std::list<Block> stored_;
  size_t bytes_ = 0;
};

Store& store() {
  static Store* const made = new Store;  // outlives tensors that are freed at exit
  return *made;
}

// Whether PyTorch is told to fill uninitialised memory with NaN. The stable ABI has no function for
// this, so some memory is allocated and read.
bool fills_empty_memory() {
  const Tensor probe = empty({4}, kFloat);
  const float* values = data_of<float>(probe);
  for (int i = 0; i < 4; ++i) {
    if (!std::isnan(values[i])) return false;
  }
  return true;
}

}  // namespace

Tensor empty_large(const Shape& shape, ScalarType dtype) {
  const Tensor none = empty({0}, dtype);
  size_t bytes = none.element_size();
  for (const int64_t size : shape) bytes *= size;
  if (bytes < kHugePage) return empty(shape, dtype);
  const Block block = store().take((bytes + kHugePage - 1) / kHugePage * kHugePage);
  if (fills_empty_memory()) std::memset(block.data, 0xff, bytes);  // NaN in every format
  return torch::stable::from_blob(
      block.data, shape, contiguous_strides(shape),
      torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
      [block](void*) { store().give(block); });
}

size_t release_memory() { return store().release(); }

}  // namespace spanbert_fast
