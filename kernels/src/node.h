// A node of the graph when its kernel is made: attributes and constant inputs, with errors that name them.
#pragma once
#include <stdint.h>

#include <string>

#include "ort_abi.h"

namespace stonnx {

// A constant tensor; data is null if the input is missing. It lives as long as the session.
struct Tensor {
  const void* data = nullptr;
  int type = 0;
  int rank = 0;
  int64_t dims[4] = {};
  const float* floats() const { return static_cast<const float*>(data); }
};

// Where tensors and attributes come from. Tests and the benchmark have one of their own.
class Source {
 public:
  virtual ~Source() = default;
  virtual bool has_input(int index) = 0;
  virtual bool constant(int index, Tensor* tensor) = 0;  // false: not a constant
  virtual bool attribute(const char* name, int64_t* value) = 0;
  virtual bool attribute(const char* name, float* value) = 0;
  virtual bool attribute(const char* name, std::string* value) = 0;
};

// Collects the first error.
class Node {
 public:
  Node(Source& source, const char* const* names) : source_(source), names_(names) {}

  int64_t integer(const char* name, int64_t fallback, int64_t least, int64_t most);
  float number(const char* name, float fallback);
  std::string text(const char* name);
  // A constant of `type` and the dimensions given (0: any). Missing is an error if `required`.
  Tensor tensor(int index, int type, bool required, int64_t rows, int64_t columns);
  Tensor vector(int index, bool required, int64_t size) { return tensor(index, ort::kFloat, required, size, -1); }
  bool has(int index) { return source_.has_input(index); }
  void fail(const std::string& message);
  bool ok() const { return error_.empty(); }
  const std::string& error() const { return error_; }

 private:
  Source& source_;
  const char* const* names_;
  std::string error_;
};

class OrtSource final : public Source {
 public:
  explicit OrtSource(const ort::KernelInfo* info) : info_(info) {}
  bool has_input(int index) override;
  bool constant(int index, Tensor* tensor) override;
  bool attribute(const char* name, int64_t* value) override;
  bool attribute(const char* name, float* value) override;
  bool attribute(const char* name, std::string* value) override;
  std::string node_name();

 private:
  const ort::KernelInfo* info_;
};

}  // namespace stonnx
