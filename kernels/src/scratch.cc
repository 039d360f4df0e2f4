// Working memory: each thread keeps one piece of at most 8 MB between calls, and frees it when it ends. Larger ones are freed at once,
// so that a long text does not hold memory.
#include <stdlib.h>

#include "block.h"

namespace stonnx {
namespace {

constexpr size_t kKept = size_t{8} << 20;

struct Kept {
  void* memory = nullptr;
  size_t bytes = 0;
  bool taken = false;
  ~Kept() { free(memory); }
};

thread_local Kept kept;

void* aligned(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

}  // namespace

void* scratch_take(size_t bytes) {
  if (bytes > kKept || kept.taken) return aligned(bytes ? bytes : 64);
  if (bytes > kept.bytes) {
    free(kept.memory);
    // By a quarter more than is needed: a growing batch does not allocate each time.
    kept.bytes = bytes + bytes / 4 < kKept ? bytes + bytes / 4 : kKept;
    kept.memory = aligned(kept.bytes);
    if (!kept.memory) kept.bytes = 0;
  }
  kept.taken = kept.memory != nullptr;
  return kept.memory;
}

void scratch_give(void* memory) {
  if (memory == kept.memory && kept.taken)
    kept.taken = false;
  else
    free(memory);
}

}  // namespace stonnx
