#include "cpu/large_memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <limits>
#include <list>
#include <mutex>

namespace spanbert_fast {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

struct Block {
  void* data;
  size_t size;
};

class Store {
 public:
  // The smallest block that fits and is not twice as large as that, or new memory.
  Block take(size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = kept_.end();
      for (auto block = kept_.begin(); block != kept_.end(); ++block) {
        const bool fits = size <= block->size && block->size <= 2 * size;
        if (fits && (best == kept_.end() || block->size < best->size)) best = block;
      }
      if (best != kept_.end()) {
        const Block found = *best;
        bytes_ -= found.size;
        kept_.erase(best);
        return found;
      }
    }
    void* data = std::aligned_alloc(kHugePage, size);
    TORCH_CHECK(data != nullptr, "out of memory: no ", size, " bytes for a result");
#ifdef MADV_HUGEPAGE
    // mapping small pages takes up to a third of a product's time
    madvise(data, size, MADV_HUGEPAGE);
#endif
    return {data, size};
  }

  // The block goes first; the oldest ones go back to the system where there are too many.
  void give(const Block& block) {
    if (block.size > kKeptBytes) return std::free(block.data);  // all others would have to go
    std::list<Block> freed;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      kept_.push_front(block);
      bytes_ += block.size;
      while (bytes_ > kKeptBytes) {
        bytes_ -= kept_.back().size;
        freed.splice(freed.end(), kept_, std::prev(kept_.end()));
      }
    }
    for (const Block& old : freed) std::free(old.data);
  }

 private:
  std::mutex mutex_;
  std::list<Block> kept_;
  size_t bytes_ = 0;
};

Store& store() {
  static Store* const made = new Store;  // outlives tensors that go at the process's end
  return *made;
}

}  // namespace

at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  if (bytes < kHugePage) return at::empty(sizes, options);
  const Block block = store().take((bytes + kHugePage - 1) / kHugePage * kHugePage);
  const at::Tensor tensor =
      at::from_blob(block.data, sizes, [block](void*) { store().give(block); }, options);
  const at::Context& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory()) {
    tensor.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  return tensor;
}

}  // namespace spanbert_fast
