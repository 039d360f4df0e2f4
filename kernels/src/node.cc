#include "node.h"

#include <string.h>

namespace stonnx {

void Node::fail(const std::string& message) {
  if (error_.empty()) error_ = message;
}

int64_t Node::integer(const char* name, int64_t fallback, int64_t least, int64_t most) {
  int64_t value = fallback;
  source_.attribute(name, &value);
  if (value < least || value > most)
    fail(std::string("attribute ") + name + " is " + std::to_string(value) + ", but must be between " + std::to_string(least) +
         " and " + std::to_string(most));
  return value;
}

float Node::number(const char* name, float fallback) {
  float value = fallback;
  source_.attribute(name, &value);
  if (!(value > 0.f && value < 1e30f)) fail(std::string("attribute ") + name + " is " + std::to_string(value) + ", but must be positive");
  return value;
}

std::string Node::text(const char* name) {
  std::string value;
  if (!source_.attribute(name, &value)) fail(std::string("attribute ") + name + " is missing");
  return value;
}

Tensor Node::tensor(int index, int type, bool required, int64_t rows, int64_t columns) {
  Tensor t;
  const std::string name = std::string("input ") + names_[index];
  if (!source_.has_input(index)) {
    if (required) fail(name + " is missing");
    return {};
  }
  if (!source_.constant(index, &t)) {
    fail(name + " must be a constant");
    return {};
  }
  const int rank = columns < 0 ? 1 : 2;
  const bool fits = t.rank == rank && (rows <= 0 || t.dims[0] == rows) && (rank == 1 || columns <= 0 || t.dims[1] == columns);
  if (t.type != type || !fits) {
    std::string shape, wanted = "[" + (rows > 0 ? std::to_string(rows) : std::string("any"));
    for (int i = 0; i < t.rank && i < 4; i++) shape += (i ? ", " : "") + std::to_string(t.dims[i]);
    if (rank == 2) wanted += ", " + (columns > 0 ? std::to_string(columns) : std::string("any"));
    fail(name + " has element type " + std::to_string(t.type) + " and shape [" + shape + "], but must have " + std::to_string(type) +
         " and " + wanted + "]");
    return {};
  }
  return t;
}

bool OrtSource::has_input(int index) {
  size_t count = 0, size = 0;
  if (ort::failed(ort::call(ort::kKernelInfoGetInputCount, info_, &count)) || static_cast<size_t>(index) >= count) return false;
  // The size includes the terminating zero: a missing input has an empty name.
  if (ort::failed(ort::call(ort::kKernelInfoGetInputName, info_, static_cast<size_t>(index), static_cast<char*>(nullptr), &size)))
    return false;
  return size > 1;
}

bool OrtSource::constant(int index, Tensor* tensor) {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  if (ort::failed(ort::call(ort::kKernelInfoGetConstantInputTensor, info_, static_cast<size_t>(index), &is_constant, &value)) ||
      !is_constant || !value)
    return false;
  ort::ShapeInfo* shape = nullptr;
  if (ort::failed(ort::call(ort::kGetTensorTypeAndShape, value, &shape))) return false;
  size_t rank = 0;
  int type = 0;
  void* data = nullptr;
  bool good = !ort::failed(ort::call(ort::kGetDimensionsCount, static_cast<const ort::ShapeInfo*>(shape), &rank)) &&
              !ort::failed(ort::call(ort::kGetTensorElementType, static_cast<const ort::ShapeInfo*>(shape), &type)) &&
              !ort::failed(ort::call(ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &data));
  if (good && rank <= 4) good = !ort::failed(ort::call(ort::kGetDimensions, static_cast<const ort::ShapeInfo*>(shape), tensor->dims, rank));
  reinterpret_cast<void (*)(ort::ShapeInfo*)>(const_cast<void*>(ort::api[ort::kReleaseTensorTypeAndShapeInfo]))(shape);
  tensor->data = data;
  tensor->type = type;
  tensor->rank = static_cast<int>(rank);
  return good;
}

bool OrtSource::attribute(const char* name, int64_t* value) {
  int64_t found = 0;
  if (ort::failed(ort::call(ort::kKernelInfoGetAttributeInt64, info_, name, &found))) return false;
  *value = found;
  return true;
}

bool OrtSource::attribute(const char* name, float* value) {
  float found = 0;
  if (ort::failed(ort::call(ort::kKernelInfoGetAttributeFloat, info_, name, &found))) return false;
  *value = found;
  return true;
}

bool OrtSource::attribute(const char* name, std::string* value) {
  char text[64] = {};
  size_t size = sizeof text;
  if (ort::failed(ort::call(ort::kKernelInfoGetAttributeString, info_, name, static_cast<char*>(text), &size))) return false;
  *value = std::string(text, strnlen(text, sizeof text));
  return true;
}

std::string OrtSource::node_name() {
  char text[256] = {};
  size_t size = sizeof text;
  if (ort::failed(ort::call(ort::kKernelInfoGetNodeName, info_, static_cast<char*>(text), &size))) return "";
  return std::string(text, strnlen(text, sizeof text));
}

}  // namespace stonnx
