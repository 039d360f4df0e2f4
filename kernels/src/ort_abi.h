// The part of onnxruntime's C interface that is used here. The interface is append-only: a slot keeps its place and its
// signature for ever (onnxruntime_c_api.h; offsets checked against the header of 1.24). No header of onnxruntime is needed.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace stonnx::ort {

// Version 17 of the interface (onnxruntime 1.17) is the first with KernelContext_ParallelFor.
constexpr uint32_t kApiVersion = 17;

struct Status;
struct Value;
struct ShapeInfo;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct CustomOpDomain;

struct ApiBase {
  const void* const* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kAny = 0, kFloat = 1, kInt8 = 3, kInt64 = 7, kBFloat16 = 16 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

enum Slot : int {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeInt64 = 86,
  kKernelInfoGetAttributeString = 87,
  kKernelContextGetInputCount = 88,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShapeInfo = 99,
  kKernelInfoGetInputCount = 230,
  kKernelInfoGetInputName = 232,
  kKernelInfoGetNodeName = 244,
  kKernelInfoGetConstantInputTensor = 249,
  kKernelContextParallelFor = 274,
};

// A custom operator as onnxruntime reads it (OrtCustomOp). What is after `version` are functions.
struct CustomOp {
  uint32_t version;
  void* create_v1;
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void* compute_v1;
  void (*destroy)(void* kernel);
  int (*input_characteristic)(const CustomOp*, size_t);
  int (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_least)(const CustomOp*);
  int (*variadic_input_same)(const CustomOp*);
  int (*variadic_output_least)(const CustomOp*);
  int (*variadic_output_same)(const CustomOp*);
  Status* (*create)(const CustomOp*, const void* api, const KernelInfo*, void** kernel);
  Status* (*compute)(void* kernel, KernelContext*);
  void* infer_shape;
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  void* in_place[4];
};
static_assert(sizeof(void*) == 8 && offsetof(CustomOp, create) == 136 && offsetof(CustomOp, end_version) == 168 &&
                  sizeof(CustomOp) == 208,
              "the layout of OrtCustomOp");

extern const void* const* api;  // set once, by RegisterCustomOps

template <class... Arguments>
inline Status* call(Slot slot, Arguments... arguments) {
  return reinterpret_cast<Status* (*)(Arguments...)>(const_cast<void*>(api[slot]))(arguments...);
}

// What onnxruntime shows the user as an error.
Status* failure(ErrorCode code, const char* format, ...) __attribute__((format(printf, 2, 3)));
// Forgets a status; true if there was an error.
bool failed(Status* status);

}  // namespace stonnx::ort
