#include "pack.h"

#include <stdlib.h>
#include <string.h>

namespace stonnx {

void* Pool::cut(size_t bytes) {
  void* piece = base_ ? base_ + used_ : nullptr;
  used_ += (bytes + 63) / 64 * 64;
  return piece;
}

bool Pool::allocate() {
  base_ = static_cast<uint8_t*>(aligned_alloc(64, used_ ? used_ : 64));
  used_ = 0;
  return base_ != nullptr;
}

Pool::~Pool() { free(base_); }

int steps_of(Form form, int inputs) {
  const int each = form == Form::kInt8 ? 64 : 32;
  return (inputs + each - 1) / each;
}

namespace {

uint16_t bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// One panel, in which `Bytes` bytes of a column lie together.
template <class From, class To, To (*Convert)(From), int Bytes>
void fill_panel(uint8_t* to, const PanelSource& source, const std::vector<int>& rows, int steps, int32_t* sums) {
  constexpr int kGroup = Bytes / sizeof(To), kGroups = kStepBytes / Bytes, kHalf = kPanel / 2 * Bytes;
  // Not aligned if the weights are mapped from a file.
  const uint8_t* weight = static_cast<const uint8_t*>(source.matrix->weight.data);
  const bool transposed = source.matrix->transposed;
  const int64_t columns = source.matrix->weight.dims[1], down = transposed ? 1 : columns, right = transposed ? columns : 1;
  for (int step = 0; step < steps; step++) {
    for (int group = 0; group < kGroups; group++) {
      To values[kPanel][kGroup] = {};
      for (int i = 0; i < kGroup; i++) {
        const size_t input = static_cast<size_t>(step * kGroups + group) * kGroup + i;
        const int row = input < rows.size() ? rows[input] : -1;
        if (row < 0) continue;
        const uint8_t* from = weight + (row * down + source.column * right) * sizeof(From);
        for (int c = 0; c < source.count; c++) {
          From value;
          memcpy(&value, from + c * right * sizeof(From), sizeof value);
          values[c][i] = Convert(value);
          if (sums) sums[c] += static_cast<int32_t>(value);
        }
      }
      memcpy(to + static_cast<size_t>(step) * 2048 + group * kHalf, values, kHalf);
      memcpy(to + static_cast<size_t>(step) * 2048 + 1024 + group * kHalf, values[16], kHalf);
    }
  }
}

template <class From, class To, To (*Convert)(From)>
void fill(int group, uint8_t* to, const PanelSource& source, const std::vector<int>& rows, int steps, int32_t* sums) {
  if (group == 8) return fill_panel<From, To, Convert, 8>(to, source, rows, steps, sums);
  fill_panel<From, To, Convert, 4>(to, source, rows, steps, sums);
}

int8_t same8(int8_t x) { return x; }
int16_t wider(int8_t x) { return x; }
uint16_t same16(uint16_t x) { return x; }

}  // namespace

Linear pack(Pool& pool, bool filling, Layout layout, const std::vector<PanelSource>& panels, const std::vector<int>& rows, int n) {
  const Form form = layout.form;
  Linear l{};
  l.k = static_cast<int>(rows.size());
  l.n = n;
  l.steps = steps_of(form, l.k);
  l.k_pad = (l.k + 63) / 64 * 64;  // activations have whole groups of 64, also where a step is 32
  if (form != Form::kInt8) l.steps = l.k_pad / 32;
  l.n_pad = static_cast<int>(panels.size()) * kPanel;
  uint8_t* weights = static_cast<uint8_t*>(pool.cut(panels.size() * l.steps * 2048));
  float* scale = static_cast<float*>(pool.cut(l.n_pad * sizeof(float)));
  float* bias = static_cast<float*>(pool.cut(l.n_pad * sizeof(float)));
  float* colsum = static_cast<float*>(pool.cut(l.n_pad * sizeof(float)));
  l.weights = weights, l.scale = scale, l.bias = bias, l.colsum = colsum;
  if (!filling) return l;
  for (size_t p = 0; p < panels.size(); p++) {
    const PanelSource& source = panels[p];
    const Matrix& m = *source.matrix;
    int32_t sums[kPanel] = {};
    uint8_t* to = weights + p * l.steps * 2048;
    if (form == Form::kInt8)
      fill<int8_t, int8_t, same8>(layout.group, to, source, rows, l.steps, sums);
    else if (form == Form::kInt16)
      fill<int8_t, int16_t, wider>(layout.group, to, source, rows, l.steps, sums);
    else if (m.weight.type == ort::kFloat)
      fill<float, uint16_t, bfloat16>(layout.group, to, source, rows, l.steps, nullptr);
    else
      fill<uint16_t, uint16_t, same16>(layout.group, to, source, rows, l.steps, nullptr);
    for (int c = 0; c < kPanel; c++) {
      const bool used = c < source.count;
      const size_t at = p * kPanel + c;
      scale[at] = !used ? 0.f : m.scale.data ? m.scale.floats()[source.column + c] : 1.f;
      bias[at] = used && m.bias.data ? m.bias.floats()[source.column + c] : 0.f;
      colsum[at] = static_cast<float>(sums[c]);
    }
  }
  return l;
}

const float* pack_vector(Pool& pool, bool filling, const Tensor& vector, int size, int padded) {
  if (!vector.data) return nullptr;
  float* to = static_cast<float*>(pool.cut(padded * sizeof(float)));
  if (filling) {
    memcpy(to, vector.data, size * sizeof(float));
    memset(to + size, 0, (padded - size) * sizeof(float));
  }
  return to;
}

}  // namespace stonnx
