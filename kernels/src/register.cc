// The operators as onnxruntime sees them, and RegisterCustomOps.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <map>
#include <new>
#include <string>

#include "c_api.h"
#include "inputs.h"
#include "kernels.h"
#include "ort_abi.h"
#include "process_lock.h"
#include "variants.h"

namespace stonnx {

namespace ort {

const void* const* api = nullptr;

Status* failure(ErrorCode code, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return call(kCreateStatus, static_cast<int>(code), static_cast<const char*>(text));
}

bool failed(Status* status) {
  if (!status) return false;
  reinterpret_cast<void (*)(Status*)>(const_cast<void*>(api[kReleaseStatus]))(status);
  return true;
}

}  // namespace ort

namespace {

constexpr int kAliases = 24;  // NAME, NAME_1 to NAME_23: a model's functions need a name each

struct Operator : ort::CustomOp {
  char alias[40];
  Weights weights;
};

// Shape and data of an input, or nothing if it is missing.
bool read_view(ort::KernelContext* context, size_t index, View* view) {
  const ort::Value* value = nullptr;
  if (ort::failed(ort::call(ort::kKernelContextGetInput, static_cast<const ort::KernelContext*>(context), index, &value))) return false;
  if (!value) return true;
  ort::ShapeInfo* shape = nullptr;
  if (ort::failed(ort::call(ort::kGetTensorTypeAndShape, value, &shape))) return false;
  size_t rank = 0;
  void* data = nullptr;
  bool good = !ort::failed(ort::call(ort::kGetDimensionsCount, static_cast<const ort::ShapeInfo*>(shape), &rank)) &&
              !ort::failed(ort::call(ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &data));
  if (good && rank <= 4) good = !ort::failed(ort::call(ort::kGetDimensions, static_cast<const ort::ShapeInfo*>(shape), view->dims, rank));
  reinterpret_cast<void (*)(ort::ShapeInfo*)>(const_cast<void*>(ort::api[ort::kReleaseTensorTypeAndShapeInfo]))(shape);
  view->data = data;
  view->rank = static_cast<int>(rank);
  view->there = true;
  return good;
}

// Runs on the threads of the session.
void run_on_session(void* self, void (*work)(void*, size_t), size_t count, void* argument) {
  if (ort::failed(ort::call(ort::kKernelContextParallelFor, static_cast<const ort::KernelContext*>(self), work, count, size_t{0}, argument)))
    for (size_t i = 0; i < count; i++) work(argument, i);
}

int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000000000} + now.tv_nsec;
}

// How many threads a call of so many tokens uses. After a pause, the session's other threads sleep, and are back after a millisecond or more,
// most of all on a virtual machine: a short text is done by then. Results do not depend on the number of threads.
struct Pace {
  static constexpr int64_t kFewTokens = 32, kPause = 400000, kWaking = 2000000;
  int64_t ended = 0, alone_until = 0;

  int threads(int all, int64_t tokens) {
    if (all <= 1 || tokens > kFewTokens) return all;
    const int64_t now = nanoseconds();
    if (now - ended > kPause) alone_until = now + kWaking;
    return now < alone_until ? 1 : all;
  }
};
thread_local Pace pace;

struct AttentionTraits {
  using Kernel = AttentionKernel;
  using Call = AttentionCall;
  static constexpr int kInputs = attention_input::kCount, kAll = attention_input::kAll;
  static constexpr const char* const* kNames = kAttentionNames;
  static constexpr int kWeights[] = {attention_input::kWq, attention_input::kWk, attention_input::kWv, attention_input::kWo};
  static constexpr int kIntegers[] = {attention_input::kLengths, attention_input::kTokenLimit, attention_input::kAttended};
  // Read at each call; everything else was read when the kernel was made.
  static constexpr int kRead[] = {attention_input::kX, attention_input::kLengths, attention_input::kTokenLimit, attention_input::kCos,
                                  attention_input::kSin, attention_input::kPositionBias, attention_input::kAttended};
  static auto build(Node& node, Weights weights, Layout layout) { return build_attention(node, weights, layout); }
  static bool run(const Kernel& k, const Call& c) { return k.variant->attention(k.made->block, c); }
};

struct FeedForwardTraits {
  using Kernel = FeedForwardKernel;
  using Call = FeedForwardCall;
  static constexpr int kInputs = feed_forward_input::kCount, kAll = feed_forward_input::kAll;
  static constexpr const char* const* kNames = kFeedForwardNames;
  static constexpr int kWeights[] = {feed_forward_input::kWUp, feed_forward_input::kWGate, feed_forward_input::kWDown};
  static constexpr int kIntegers[] = {feed_forward_input::kLengths};
  static constexpr int kRead[] = {feed_forward_input::kX, feed_forward_input::kLengths};
  static auto build(Node& node, Weights weights, Layout layout) { return build_feed_forward(node, weights, layout); }
  static bool run(const Kernel& k, const Call& c) { return k.variant->feed_forward(k.made->block, c); }
};

struct VocabularyTraits {
  using Kernel = VocabularyKernel;
  using Call = VocabularyCall;
  static constexpr int kInputs = vocabulary_input::kCount, kAll = vocabulary_input::kAll;
  static constexpr const char* const* kNames = kVocabularyNames;
  static constexpr int kWeights[] = {vocabulary_input::kTable};
  static constexpr int kIntegers[] = {vocabulary_input::kLengths};
  static constexpr int kRead[] = {vocabulary_input::kX, vocabulary_input::kLengths};
  static auto build(Node& node, Weights weights, Layout layout) { return build_vocabulary(node, weights, layout); }
  static bool run(const Kernel& k, const Call& c) { return k.variant->vocabulary(k.made->block, c); }
};

template <class T>
ort::Status* create(const ort::CustomOp* op, const void*, const ort::KernelInfo* info, void** out) {
  const Variant* variant = variant_in_use();
  const Operator& self = *static_cast<const Operator*>(op);
  OrtSource source(info);
  try {
    if (!variant) return ort::failure(ort::kFail, "stonnx.kernels: %s", variant_reason());
    Node node(source, T::kNames);
    auto made = T::build(node, self.weights, layout_of(*variant, self.weights));
    if (!made)
      return ort::failure(ort::kInvalidArgument, "stonnx.kernels::%s (node '%s'): %s", self.alias, source.node_name().c_str(),
                          node.error().c_str());
    *out = new typename T::Kernel{made, variant, threads_of_new_sessions()};
    return nullptr;
  } catch (const std::bad_alloc&) {
    return ort::failure(ort::kFail, "stonnx.kernels::%s: no memory for the weights", self.alias);
  }
}

template <class T>
ort::Status* compute(void* kernel, ort::KernelContext* context) {
  const auto& k = *static_cast<const typename T::Kernel*>(kernel);
  View inputs[T::kAll], out;
  size_t count = 0;
  if (ort::Status* status = ort::call(ort::kKernelContextGetInputCount, static_cast<const ort::KernelContext*>(context), &count)) return status;
  for (int i : T::kRead)
    if (static_cast<size_t>(i) < count && !read_view(context, static_cast<size_t>(i), &inputs[i]))
      return ort::failure(ort::kFail, "stonnx.kernels: cannot read input %s", i < T::kInputs ? T::kNames[i] : "attended");
  typename T::Call call;
  if (const char* wrong = prepare_call(k, inputs, &call, &out)) return ort::failure(ort::kInvalidArgument, "stonnx.kernels: %s", wrong);
  ort::Value* value = nullptr;
  if (ort::Status* status = ort::call(ort::kKernelContextGetOutput, context, size_t{0}, static_cast<const int64_t*>(out.dims),
                                      static_cast<size_t>(out.rank), &value))
    return status;
  void* data = nullptr;
  if (ort::Status* status = ort::call(ort::kGetTensorMutableData, value, &data)) return status;
  call.y = static_cast<float*>(data);
  for (int i = 0; i < out.rank; i++)
    if (!out.dims[i]) return nullptr;
  call.threads = {pace.threads(k.threads, call.batch * call.seq), run_on_session, context};
  const bool done = T::run(k, call);
  if (k.threads > 1) pace.ended = nanoseconds();
  return done ? nullptr : ort::failure(ort::kFail, "stonnx.kernels: no memory for the call");
}

template <class T>
int input_type(const ort::CustomOp* op, size_t index) {
  const Weights weights = static_cast<const Operator*>(op)->weights;
  const int i = static_cast<int>(index);
  for (int w : T::kWeights)
    if (i == w) return weights == Weights::kInt8 ? ort::kInt8 : weights == Weights::kFloat ? ort::kFloat : ort::kBFloat16;
  for (int w : T::kIntegers)
    if (i == w) return ort::kInt64;
  return i < T::kInputs ? ort::kFloat : ort::kAny;
}

template <class T>
void describe(Operator& op, const char* name, const char* kind, int alias, Weights weights) {
  if (alias)
    snprintf(op.alias, sizeof op.alias, "%s%s_%d", name, kind, alias);
  else
    snprintf(op.alias, sizeof op.alias, "%s%s", name, kind);
  op.weights = weights;
  op.version = ort::kApiVersion;
  op.name = [](const ort::CustomOp* o) -> const char* { return static_cast<const Operator*>(o)->alias; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.input_type = input_type<T>;
  op.input_count = [](const ort::CustomOp*) -> size_t { return T::kAll; };
  op.output_type = [](const ort::CustomOp*, size_t) -> int { return ort::kFloat; };
  op.output_count = [](const ort::CustomOp*) -> size_t { return 1; };
  op.destroy = [](void* kernel) { delete static_cast<typename T::Kernel*>(kernel); };
  op.input_characteristic = [](const ort::CustomOp*, size_t i) -> int { return i ? ort::kOptional : ort::kRequired; };
  op.output_characteristic = [](const ort::CustomOp*, size_t) -> int { return ort::kRequired; };
  op.input_memory = [](const ort::CustomOp*, size_t) -> int { return 0; };
  op.variadic_input_least = [](const ort::CustomOp*) -> int { return 1; };
  op.variadic_input_same = op.variadic_output_least = op.variadic_output_same = op.variadic_input_least;
  op.create = create<T>;
  op.compute = compute<T>;
  op.start_version = [](const ort::CustomOp*) -> int { return 1; };
  op.end_version = [](const ort::CustomOp*) -> int { return 0x7fffffff; };
}

constexpr int kKinds = 3;
constexpr int kBlocks = 3;  // attention, feed-forward network, vocabulary
Operator operators[kKinds][kBlocks][kAliases];

// Whether `names`, separated by commas, has a name; an empty list has all.
bool listed(const std::string& names, const char* name) {
  return names.empty() || ("," + names + ",").find("," + std::string(name) + ",") != std::string::npos;
}

ort::Status* make_domain(bool bf16, bool float32, const std::string& names, ort::CustomOpDomain** out) {
  ort::CustomOpDomain* domain = nullptr;
  if (ort::Status* status = ort::call(ort::kCreateCustomOpDomain, "stonnx.kernels", &domain)) return status;
  const bool wanted[kKinds] = {true, bf16, float32};
  for (int kind = 0; kind < kKinds; kind++)
    for (int which = 0; wanted[kind] && which < kBlocks; which++)
      for (Operator& op : operators[kind][which])
        if (listed(names, op.alias))
          if (ort::Status* status = ort::call(ort::kCustomOpDomainAdd, domain, static_cast<const ort::CustomOp*>(&op))) return status;
  *out = domain;
  return nullptr;
}

}  // namespace
}  // namespace stonnx

extern "C" __attribute__((visibility("default"))) stonnx::ort::Status* RegisterCustomOps(stonnx::ort::SessionOptions* options,
                                                                                       const stonnx::ort::ApiBase* base) {
  using namespace stonnx;
  const void* const* api = base->get_api(ort::kApiVersion);
  if (!api) {
    // Version 1 of the interface makes the error.
    ort::api = base->get_api(1);
    return ort::api ? ort::failure(ort::kFail, "stonnx-kernels %s needs onnxruntime 1.%u or newer, this is %s", stonnx_kernels_version(),
                                   ort::kApiVersion, base->get_version())
                    : nullptr;
  }
  ort::api = api;
  const Variant* variant = variant_in_use();
  if (!variant) return nullptr;  // the bodies run; stonnx_kernels_reason() says why
  const bool bf16 = variant->bf16, float32 = bf16 && float_as_bf16_in_new_sessions();
  // onnxruntime needs half a millisecond for each operator of a domain, and sessions need their domain as long as they live.
  static std::map<std::string, ort::CustomOpDomain*> domains;
  const std::lock_guard<std::mutex> guard(process_lock());
  static const bool described = [] {
    const char* const kinds[kKinds] = {"Int8", "BFloat16", "Float"};
    for (int kind = 0; kind < kKinds; kind++)
      for (int i = 0; i < kAliases; i++) {
        describe<AttentionTraits>(operators[kind][0][i], "Attention", kinds[kind], i, static_cast<Weights>(kind));
        describe<FeedForwardTraits>(operators[kind][1][i], "FeedForward", kinds[kind], i, static_cast<Weights>(kind));
        describe<VocabularyTraits>(operators[kind][2][i], "Vocabulary", kinds[kind], i, static_cast<Weights>(kind));
      }
    return true;
  }();
  (void)described;
  const std::string names = names_in_new_sessions();
  ort::CustomOpDomain*& domain = domains[(bf16 ? "b" : "") + std::string(float32 ? "f" : "") + "," + names];
  if (!domain)
    if (ort::Status* status = make_domain(bf16, float32, names, &domain)) return status;
  return ort::call(ort::kAddCustomOpDomain, options, domain);
}
