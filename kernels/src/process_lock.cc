#include "process_lock.h"

#include <pthread.h>

namespace stonnx {
namespace {

std::mutex shared_lock;

}  // namespace

std::mutex& process_lock() {
  static const int registered =
      pthread_atfork([] { shared_lock.lock(); }, [] { shared_lock.unlock(); }, [] { shared_lock.unlock(); });
  (void)registered;
  return shared_lock;
}

}  // namespace stonnx
