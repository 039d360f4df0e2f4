// The lock of what all sessions of the process share: the packed weights, the domains, the chosen variant. A fork waits for it, so
// that the child never finds it held by a thread that it does not have.
#pragma once
#include <mutex>

namespace stonnx {

std::mutex& process_lock();

}  // namespace stonnx
