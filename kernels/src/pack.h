// Constant matrices, laid out as the products read them.
#pragma once
#include <vector>

#include "block.h"
#include "node.h"

namespace stonnx {

// One matrix and what belongs to its columns.
struct Matrix {
  Tensor weight;  // [rows, columns]
  Tensor scale;   // [columns]; int8 only
  Tensor bias;    // [columns], or missing
  bool transposed = false;  // weight is [columns, rows]
};

// Up to 32 columns of a matrix that make a panel; the others are zero.
struct PanelSource {
  const Matrix* matrix;
  int column;
  int count;
};

// All memory of a block, in one piece that is freed at once. Measured first, then filled.
class Pool {
 public:
  void* cut(size_t bytes);
  bool allocate();  // after measuring: cut() again in the same order
  ~Pool();

 private:
  uint8_t* base_ = nullptr;
  size_t used_ = 0;
};

// rows[i]: the matrix's row that input i of the product reads, or -1. `n`: outputs, with padded heads.
Linear pack(Pool& pool, bool filling, Layout layout, const std::vector<PanelSource>& panels, const std::vector<int>& rows, int n);

// A vector with zeros to `padded`; null if it is missing.
const float* pack_vector(Pool& pool, bool filling, const Tensor& vector, int size, int padded);

int steps_of(Form form, int inputs);

}  // namespace stonnx
