// Tests: one call of one operator, without onnxruntime, so that it runs in an emulator of another architecture.
//   stonnx_kernels_case CASE RESULT [VARIANT]
// CASE, little endian: int32 operator (0 attention, 1 feed-forward), int32 weights (0 int8, 1 bfloat16, 2 float), int32 threads; then
// records until the end: 'i' name int64 | 'f' name float | 't' name text | 'T' int32 input, int32 type, int32 rank, int64 dims[rank],
// int64 bytes, data. A name or text is an int32 length and its bytes. RESULT: int32 rank, int64 dims[rank], floats.
#include <stdio.h>
#include <string.h>

#include <map>
#include <string>
#include <thread>
#include <vector>

#include "inputs.h"
#include "kernels.h"
#include "variants.h"

using namespace stonnx;

namespace {

class Case final : public Source {
 public:
  bool read(FILE* file) {
    file_ = file;
    int32_t head[3];
    if (fread(head, 4, 3, file) != 3) return false;
    op = head[0], weights = static_cast<Weights>(head[1]), threads = head[2];
    for (int kind; (kind = fgetc(file)) != EOF;) {
      if (kind == 'T') {
        const int index = number<int32_t>();
        Tensor& t = tensors[index];
        t.type = number<int32_t>();
        t.rank = number<int32_t>();
        for (int i = 0; i < t.rank; i++) t.dims[i] = number<int64_t>();
        auto& bytes = memory_[index];
        // Exactly as long as it is: AddressSanitizer sees each byte read too far.
        bytes.resize(static_cast<size_t>(number<int64_t>()));
        if (fread(bytes.data(), 1, bytes.size(), file) != bytes.size()) return false;
        t.data = bytes.data();
        continue;
      }
      const std::string name = text();
      if (kind == 'i') integers_[name] = number<int64_t>();
      if (kind == 'f') floats_[name] = number<float>();
      if (kind == 't') texts_[name] = text();
    }
    return true;
  }
  bool has_input(int index) override { return tensors.count(index) != 0; }
  bool constant(int index, Tensor* tensor) override { return *tensor = tensors[index], true; }
  bool attribute(const char* name, int64_t* value) override { return find(integers_, name, value); }
  bool attribute(const char* name, float* value) override { return find(floats_, name, value); }
  bool attribute(const char* name, std::string* value) override { return find(texts_, name, value); }

  int op = 0, threads = 1;
  Weights weights = Weights::kInt8;
  std::map<int, Tensor> tensors;

 private:
  template <class T>
  T number() {
    T value{};
    if (fread(&value, sizeof value, 1, file_) != 1) return T{};
    return value;
  }
  std::string text() {
    std::string value(static_cast<size_t>(number<int32_t>()), ' ');
    if (fread(&value[0], 1, value.size(), file_) != value.size()) value.clear();
    return value;
  }
  template <class T>
  static bool find(const std::map<std::string, T>& all, const char* name, T* value) {
    const auto found = all.find(name);
    if (found != all.end()) *value = found->second;
    return found != all.end();
  }
  FILE* file_ = nullptr;
  std::map<std::string, int64_t> integers_;
  std::map<std::string, float> floats_;
  std::map<std::string, std::string> texts_;
  std::map<int, std::vector<uint8_t>> memory_;
};

void run_on_threads(void*, void (*work)(void*, size_t), size_t count, void* argument) {
  std::vector<std::thread> all;
  for (size_t i = 1; i < count; i++) all.emplace_back(work, argument, i);
  work(argument, 0);
  for (std::thread& t : all) t.join();
}

int fail(const std::string& why) {
  fprintf(stderr, "%s\n", why.c_str());
  return 1;
}

template <class Kernel, class Call, class Made, class Run>
int run(Case& c, const char* const* names, int inputs, Made build, Run go, const char* result) {
  const Variant* variant = variant_in_use();
  Node node(c, names);
  Kernel kernel{build(node, c.weights, layout_of(*variant, c.weights)), variant, c.threads};
  if (!kernel.made) return fail(node.error());
  std::vector<View> views(static_cast<size_t>(inputs));
  for (const auto& [index, t] : c.tensors) {
    View& v = views[static_cast<size_t>(index)];
    v.data = t.data, v.rank = t.rank, v.there = true;
    memcpy(v.dims, t.dims, sizeof v.dims);
  }
  Call call;
  View out;
  if (const char* wrong = prepare_call(kernel, views.data(), &call, &out)) return fail(wrong);
  size_t count = 1;
  for (int i = 0; i < out.rank; i++) count *= static_cast<size_t>(out.dims[i]);
  std::vector<float> y(count);
  call.y = y.data();
  call.threads = {c.threads, run_on_threads, nullptr};
  if (count && !go(variant, kernel, call)) return fail("no memory");
  FILE* file = fopen(result, "wb");
  if (!file) return fail("cannot write the result");
  const int32_t rank = out.rank;
  fwrite(&rank, 4, 1, file);
  fwrite(out.dims, 8, static_cast<size_t>(rank), file);
  fwrite(y.data(), 4, count, file);
  return fclose(file);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return fail("usage: stonnx_kernels_case CASE RESULT [VARIANT]");
  if (argc > 3 && !select_variant(argv[3])) return fail(variant_reason());
  if (!variant_in_use()) return fail(variant_reason());
  FILE* file = fopen(argv[1], "rb");
  Case c;
  if (!file || !c.read(file)) return fail("cannot read the case");
  fclose(file);
  if (c.weights != Weights::kInt8 && !variant_in_use()->bf16) return fail("the variant has no bfloat16 products");
  if (c.op == 0)
    return run<AttentionKernel, AttentionCall>(
        c, kAttentionNames, attention_input::kAll, build_attention,
        [](const Variant* v, const AttentionKernel& k, const AttentionCall& call) { return v->attention(k.made->block, call); }, argv[2]);
  return run<FeedForwardKernel, FeedForwardCall>(
      c, kFeedForwardNames, feed_forward_input::kAll, build_feed_forward,
      [](const Variant* v, const FeedForwardKernel& k, const FeedForwardCall& call) { return v->feed_forward(k.made->block, call); }, argv[2]);
}
