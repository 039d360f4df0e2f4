// The time of one layer with random weights, for `stonnx doctor` and for work on the kernels.
#include <time.h>

#include <map>
#include <string>
#include <vector>

#include "c_api.h"
#include "inputs.h"
#include "kernels.h"
#include "variants.h"

namespace stonnx {
namespace {

// A node whose tensors are made up.
class MadeUp final : public Source {
 public:
  std::map<std::string, int64_t> integers;
  std::map<std::string, std::string> texts;

  void weight(int index, int rows, int columns, bool bf16) {
    Tensor& t = tensors_[index];
    t.type = bf16 ? ort::kBFloat16 : ort::kInt8;
    t.rank = 2;
    t.dims[0] = rows, t.dims[1] = columns;
    auto& bytes = memory_[index];
    bytes.resize(static_cast<size_t>(rows) * columns * (bf16 ? 2 : 1));
    for (size_t i = 0; i < bytes.size(); i++) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      bytes[i] = static_cast<uint8_t>(bf16 && i % 2 ? 0x3c + (state_ >> 63) * 0x80 : state_ >> 56);
    }
    t.data = bytes.data();
  }
  void vector(int index, int size, float value) {
    Tensor& t = tensors_[index];
    t.type = ort::kFloat;
    t.rank = 1;
    t.dims[0] = size;
    auto& floats = floats_[index];
    floats.assign(static_cast<size_t>(size), value);
    t.data = floats.data();
  }
  bool has_input(int index) override { return tensors_.count(index) != 0; }
  bool constant(int index, Tensor* tensor) override {
    *tensor = tensors_[index];
    return true;
  }
  bool attribute(const char* name, int64_t* value) override {
    const auto found = integers.find(name);
    if (found != integers.end()) *value = found->second;
    return found != integers.end();
  }
  bool attribute(const char*, float*) override { return false; }
  bool attribute(const char* name, std::string* value) override {
    const auto found = texts.find(name);
    if (found != texts.end()) *value = found->second;
    return found != texts.end();
  }

 private:
  std::map<int, Tensor> tensors_;
  std::map<int, std::vector<uint8_t>> memory_;
  std::map<int, std::vector<float>> floats_;
  uint64_t state_ = 1;
};

double seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace
}  // namespace stonnx

double stonnx_kernels_bench(int hidden, int inner, int heads, int tokens, int bf16) {
  using namespace stonnx;
  const Variant* variant = variant_in_use();
  if (!variant || (bf16 && !variant->bf16) || hidden < 1 || inner < 1 || heads < 1 || tokens < 1 || hidden % heads) return -1;
  const Weights weights = bf16 ? Weights::kBFloat16 : Weights::kInt8;
  const Layout layout = layout_of(*variant, weights);
  MadeUp a, f;
  {
    using namespace attention_input;
    a.integers = {{"heads", heads}, {"head_size", hidden / heads}};
    const int index[4][2] = {{kWq, kSq}, {kWk, kSk}, {kWv, kSv}, {kWo, kSo}};
    for (const auto& i : index) a.weight(i[0], hidden, hidden, bf16), a.vector(i[1], hidden, 1e-3f);
    a.vector(kPostGamma, hidden, 1.f), a.vector(kPostBeta, hidden, 0.f);
  }
  {
    using namespace feed_forward_input;
    f.texts = {{"activation", "gelu"}};
    f.weight(kWUp, hidden, inner, bf16), f.vector(kSUp, inner, 1e-3f);
    f.weight(kWDown, inner, hidden, bf16), f.vector(kSDown, hidden, 1e-3f);
    f.vector(kPostGamma, hidden, 1.f), f.vector(kPostBeta, hidden, 0.f);
  }
  Node attention_node(a, kAttentionNames), feed_node(f, kFeedForwardNames);
  const auto attention = build_attention(attention_node, weights, layout);
  const auto feed = build_feed_forward(feed_node, weights, layout);
  if (!attention || !feed) return -1;
  const size_t count = static_cast<size_t>(tokens) * hidden;
  std::vector<float> x(count), y(count), z(count);
  for (size_t i = 0; i < count; i++) x[i] = static_cast<float>(static_cast<int>(i * 2654435761u >> 16 & 0xffff) - 32768) / 16384.f;
  AttentionCall ac{};
  ac.x = x.data(), ac.y = y.data(), ac.batch = 1, ac.seq = ac.out_seq = tokens, ac.threads = {1, nullptr, nullptr};
  FeedForwardCall fc{};
  fc.x = y.data(), fc.y = z.data(), fc.batch = 1, fc.seq = tokens, fc.threads = ac.threads;
  double best = 1e30;
  for (int round = 0; round < 9; round++) {
    const double start = seconds();
    if (!variant->attention(attention->block, ac) || !variant->feed_forward(feed->block, fc)) return -1;
    const double taken = seconds() - start;
    if (taken < best) best = taken;
  }
  return best;
}
