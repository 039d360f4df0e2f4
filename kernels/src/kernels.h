// The kernels behind the operators: made from a node, run on tensors.
#pragma once
#include <memory>

#include "build.h"

namespace stonnx {

struct AttentionKernel {
  std::shared_ptr<Attention> made;
  const Variant* variant;
  int threads;
};

struct FeedForwardKernel {
  std::shared_ptr<FeedForward> made;
  const Variant* variant;
  int threads;
};

struct VocabularyKernel {
  std::shared_ptr<Vocabulary> made;
  const Variant* variant;
  int threads;
};

// A tensor of a call.
struct View {
  const void* data = nullptr;
  int rank = 0;
  int64_t dims[4] = {};
  bool there = false;
};

// Null, or what is wrong with the call's shapes. `out` receives the shape of the result, `call` all but the result.
const char* prepare_call(const AttentionKernel& kernel, const View* inputs, AttentionCall* call, View* out);
const char* prepare_call(const FeedForwardKernel& kernel, const View* inputs, FeedForwardCall* call, View* out);
const char* prepare_call(const VocabularyKernel& kernel, const View* inputs, VocabularyCall* call, View* out);

}  // namespace stonnx
