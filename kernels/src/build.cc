#include "build.h"

#include <string.h>

#include <map>
#include <utility>
#include <vector>

#include "inputs.h"
#include "process_lock.h"

namespace stonnx {
namespace {

int padded(int n, int to) { return (n + to - 1) / to * to; }

std::vector<int> identity(int n) {
  std::vector<int> rows(n);
  for (int i = 0; i < n; i++) rows[i] = i;
  return rows;
}

// 128 bits over everything that a block is made of. Two blocks with the same key are the same block.
class Key {
 public:
  void add(const void* data, size_t bytes) {
    const uint8_t* p = static_cast<const uint8_t*>(data);
    uint64_t lane[4] = {a_, b_, a_ ^ 0x9e3779b97f4a7c15u, b_ + 0x2545f4914f6cdd1du};
    size_t i = 0;
    for (; i + 32 <= bytes; i += 32)
      for (int l = 0; l < 4; l++) {
        uint64_t word;
        memcpy(&word, p + i + l * 8, 8);
        lane[l] = mix(lane[l] ^ word, 0xff51afd7ed558ccdu);
      }
    for (; i < bytes; i++) lane[0] = mix(lane[0] ^ p[i], 0xc4ceb9fe1a85ec53u);
    a_ = mix(lane[0] + bytes, 0x9fb21c651e98df25u) ^ mix(lane[1], 0xbf58476d1ce4e5b9u);
    b_ = mix(lane[2] + bytes, 0x94d049bb133111ebu) ^ mix(lane[3] + a_, 0xd6e8feb86659fd93u);
  }
  template <class T>
  void add(const T& value) {
    add(&value, sizeof value);
  }
  void add(const Tensor& t) {
    add(t.rank), add(t.type), add(t.dims, sizeof t.dims);
    if (!t.data) return;
    size_t count = t.type == ort::kInt8 ? 1 : t.type == ort::kBFloat16 ? 2 : 4;
    for (int i = 0; i < t.rank; i++) count *= static_cast<size_t>(t.dims[i]);
    add(t.data, count);
  }
  std::pair<uint64_t, uint64_t> value() const { return {a_, b_}; }

 private:
  // The high half of the product carries every bit down: a plain product would only carry bits up.
  static uint64_t mix(uint64_t x, uint64_t by) {
    const unsigned __int128 product = static_cast<unsigned __int128>(x) * by;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }
  uint64_t a_ = 0x243f6a8885a308d3u, b_ = 0x13198a2e03707344u;
};

template <class Block, class Parts>
std::shared_ptr<Block> shared(const Key& key, const Parts& parts, bool (*fill)(Block&, const Parts&)) {
  static std::map<std::pair<uint64_t, uint64_t>, std::weak_ptr<Block>> known;
  const std::lock_guard<std::mutex> guard(process_lock());
  for (auto i = known.begin(); i != known.end();) i = i->second.expired() ? known.erase(i) : std::next(i);
  std::weak_ptr<Block>& place = known[key.value()];
  std::shared_ptr<Block> block = place.lock();
  if (!block) {
    block = std::make_shared<Block>();
    if (!fill(*block, parts)) return nullptr;
    place = block;
  }
  return block;
}

int weight_type(Weights weights) {
  return weights == Weights::kInt8 ? ort::kInt8 : weights == Weights::kFloat ? ort::kFloat : ort::kBFloat16;
}

Matrix matrix(Node& node, Weights weights, int weight, int scale, int bias, bool required, int64_t rows, int64_t columns) {
  Matrix m;
  m.weight = node.tensor(weight, weight_type(weights), required, rows, columns);
  if (!m.weight.data) return m;
  const int64_t n = m.weight.dims[1];
  if (weights == Weights::kInt8) m.scale = node.vector(scale, true, n);
  m.bias = node.vector(bias, false, n);
  return m;
}

struct Norms {
  Tensor pre_gamma, pre_beta, out_gamma, out_beta, post_gamma, post_beta, residual_scale;
};

Norms read_norms(Node& node, Shared& s, int width, const int (&index)[7]) {
  Norms n;
  Tensor* all[7] = {&n.pre_gamma, &n.pre_beta, &n.out_gamma, &n.out_beta, &n.residual_scale, &n.post_gamma, &n.post_beta};
  for (int i = 0; i < 7; i++) *all[i] = node.vector(index[i], false, width);
  if ((n.pre_beta.data && !n.pre_gamma.data) || (n.out_beta.data && !n.out_gamma.data) || (n.post_beta.data && !n.post_gamma.data))
    node.fail("a norm has a beta but no gamma");
  s.width = width;
  s.width_pad = padded(width, 64);
  s.rms = node.integer("norm", 0, 0, 1) == 1;
  s.epsilon = node.number("epsilon", 1e-5f);
  return n;
}

Norm pack_norm(Pool& pool, bool filling, const Tensor& gamma, const Tensor& beta, const Shared& s) {
  Norm norm{};
  if (!gamma.data) return norm;
  norm.gamma = pack_vector(pool, filling, gamma, s.width, s.width_pad);
  norm.beta = pack_vector(pool, filling, beta, s.width, s.width_pad);
  if (norm.beta) return norm;
  float* zeros = static_cast<float*>(pool.cut(s.width_pad * sizeof(float)));
  if (filling) memset(zeros, 0, s.width_pad * sizeof(float));
  norm.beta = zeros;
  return norm;
}

void pack_norms(Pool& pool, bool filling, const Norms& n, Shared& s) {
  s.pre = pack_norm(pool, filling, n.pre_gamma, n.pre_beta, s);
  s.out = pack_norm(pool, filling, n.out_gamma, n.out_beta, s);
  s.post = pack_norm(pool, filling, n.post_gamma, n.post_beta, s);
  s.residual_scale = pack_vector(pool, filling, n.residual_scale, s.width, s.width_pad);
}

void add_norms(Key& key, const Norms& n) {
  for (const Tensor* t : {&n.pre_gamma, &n.pre_beta, &n.out_gamma, &n.out_beta, &n.post_gamma, &n.post_beta, &n.residual_scale}) key.add(*t);
}

void add_matrix(Key& key, const Matrix& m) { key.add(m.weight), key.add(m.scale), key.add(m.bias); }

// Heads `count` of `size` columns from `column` of a matrix, as panels.
void add_heads(std::vector<PanelSource>& panels, const Matrix& m, int column, int count, int size, int padded_size) {
  for (int head = 0; head < count; head++)
    for (int d = 0; d < padded_size; d += kPanel) {
      const int left = size - d;
      panels.push_back({&m, column + head * size + d, left < 0 ? 0 : left < kPanel ? left : kPanel});
    }
}

void add_columns(std::vector<PanelSource>& panels, const Matrix& m, int column, int count, int first) {
  const int left = count - first;
  panels.push_back({&m, column + first, left < kPanel ? left : kPanel});
}

struct AttentionParts {
  Matrix q, k, v, out;
  Norms norms;
  Tensor q_gamma, k_gamma;
  AttentionBlock block;
  Layout layout;
};

bool fill_attention(Attention& to, const AttentionParts& parts) {
  AttentionBlock& b = to.block = parts.block;
  const int size = b.head_size, pad = b.head_pad, nq = b.heads * size, nk = b.kv_heads * size;
  std::vector<PanelSource> qkv, out;
  const bool fused = !parts.k.weight.data;
  add_heads(qkv, parts.q, 0, b.heads, size, pad);
  add_heads(qkv, fused ? parts.q : parts.k, fused ? nq : 0, b.kv_heads, size, pad);
  add_heads(qkv, fused ? parts.q : parts.v, fused ? nq + nk : 0, b.kv_heads, size, pad);
  for (int first = 0; first < b.shared.width; first += kPanel) add_columns(out, parts.out, 0, b.shared.width, first);
  std::vector<int> rows(static_cast<size_t>(b.heads) * pad, -1);
  for (int head = 0; head < b.heads; head++)
    for (int d = 0; d < size; d++) rows[head * pad + d] = head * size + d;
  for (int filling = 0; filling < 2; filling++) {
    pack_norms(to.pool, filling, parts.norms, b.shared);
    b.q_gamma = pack_vector(to.pool, filling, parts.q_gamma, size, pad);
    b.k_gamma = pack_vector(to.pool, filling, parts.k_gamma, size, pad);
    b.qkv = pack(to.pool, filling, parts.layout, qkv, identity(b.shared.width), (b.heads + 2 * b.kv_heads) * pad);
    b.out = pack(to.pool, filling, parts.layout, out, rows, b.shared.width);
    if (!filling && !to.pool.allocate()) return false;
  }
  return true;
}

struct FeedForwardParts {
  Matrix up, gate, down;
  Norms norms;
  int fused;
  FeedForwardBlock block;
  Layout layout;
};

bool fill_feed_forward(FeedForward& to, const FeedForwardParts& parts) {
  FeedForwardBlock& b = to.block = parts.block;
  std::vector<PanelSource> up, down;
  for (int first = 0; first < b.inner; first += kPanel) {
    add_columns(up, parts.up, parts.fused == 2 ? b.inner : 0, b.inner, first);
    if (b.gated) add_columns(up, parts.fused ? parts.up : parts.gate, parts.fused == 1 ? b.inner : 0, b.inner, first);
  }
  for (int first = 0; first < b.shared.width; first += kPanel) add_columns(down, parts.down, 0, b.shared.width, first);
  for (int filling = 0; filling < 2; filling++) {
    pack_norms(to.pool, filling, parts.norms, b.shared);
    b.up = pack(to.pool, filling, parts.layout, up, identity(b.shared.width), b.inner);
    b.down = pack(to.pool, filling, parts.layout, down, identity(b.inner), b.shared.width);
    if (!filling && !to.pool.allocate()) return false;
  }
  return true;
}

struct VocabularyParts {
  Matrix table;
  VocabularyBlock block;
  Layout layout;
};

bool fill_vocabulary(Vocabulary& to, const VocabularyParts& parts) {
  VocabularyBlock& b = to.block = parts.block;
  const int words = static_cast<int>(parts.table.weight.dims[0]);
  std::vector<PanelSource> panels;
  for (int first = 0; first < words; first += kPanel) add_columns(panels, parts.table, 0, words, first);
  for (int filling = 0; filling < 2; filling++) {
    b.product = pack(to.pool, filling, parts.layout, panels, identity(b.width), words);
    if (!filling && !to.pool.allocate()) return false;
  }
  return true;
}

// Sizes are multiplied as int32 in the kernels.
constexpr int64_t kWidest = 1 << 17;
constexpr int64_t kMostWords = 1 << 20;

}  // namespace

Layout layout_of(const Variant& variant, Weights weights) {
  return {weights == Weights::kInt8 ? variant.int8_form : Form::kBFloat16, variant.group};
}

std::shared_ptr<Attention> build_attention(Node& node, Weights weights, Layout layout) {
  using namespace attention_input;
  AttentionParts parts{};
  parts.layout = layout;
  AttentionBlock& b = parts.block;
  b.heads = static_cast<int>(node.integer("heads", 0, 1, 1024));
  b.kv_heads = static_cast<int>(node.integer("kv_heads", b.heads, 1, 1024));
  b.head_size = static_cast<int>(node.integer("head_size", 0, 1, 512));
  if (!node.ok()) return nullptr;
  if (b.heads % b.kv_heads) node.fail("attribute heads must be a multiple of kv_heads");
  b.head_pad = padded(b.head_size, kHeadMultiple);
  b.scale = node.number("scale", 1.f / __builtin_sqrtf(static_cast<float>(b.head_size)));
  b.causal = node.integer("causal", 0, 0, 1) == 1;
  b.window = static_cast<int>(node.integer("window", -1, -1, 1 << 24));
  b.rotary = static_cast<int>(node.integer("rotary", 0, 0, 2));
  b.rotary_dims = static_cast<int>(node.integer("rotary_dims", b.head_size, 0, b.head_size));
  if (b.rotary && b.rotary_dims % 2) node.fail("attribute rotary_dims must be even");
  b.shared.bf16 = weights != Weights::kInt8;
  const int64_t nq = static_cast<int64_t>(b.heads) * b.head_size, nk = static_cast<int64_t>(b.kv_heads) * b.head_size;
  const bool fused = !node.has(kWk) && !node.has(kWv);
  parts.q = matrix(node, weights, kWq, kSq, kBq, true, 0, fused ? nq + 2 * nk : nq);
  if (!node.ok()) return nullptr;
  const int64_t width = parts.q.weight.dims[0];
  if (width < 1 || width > kWidest) node.fail("input w_q has too many or no rows");
  if (!fused) {
    parts.k = matrix(node, weights, kWk, kSk, kBk, true, width, nk);
    parts.v = matrix(node, weights, kWv, kSv, kBv, true, width, nk);
  }
  parts.out = matrix(node, weights, kWo, kSo, kBo, true, nq, width);
  parts.q_gamma = node.vector(kQGamma, false, b.head_size);
  parts.k_gamma = node.vector(kKGamma, false, b.head_size);
  if (b.rotary && (!node.has(kCos) || !node.has(kSin))) node.fail("attribute rotary needs the inputs cos and sin");
  const int index[7] = {kPreGamma, kPreBeta, kOutGamma, kOutBeta, kResidualScale, kPostGamma, kPostBeta};
  parts.norms = read_norms(node, b.shared, static_cast<int>(width), index);
  if (!node.ok()) return nullptr;
  Key key;
  key.add(layout.form), key.add(layout.group), key.add(weights), key.add(b.heads), key.add(b.kv_heads), key.add(b.head_size), key.add(b.scale), key.add(b.causal);
  key.add(b.window), key.add(b.rotary), key.add(b.rotary_dims), key.add(b.shared.rms), key.add(b.shared.epsilon);
  add_matrix(key, parts.q), add_matrix(key, parts.k), add_matrix(key, parts.v), add_matrix(key, parts.out);
  add_norms(key, parts.norms), key.add(parts.q_gamma), key.add(parts.k_gamma);
  auto made = shared(key, parts, fill_attention);
  if (!made) node.fail("no memory for the weights");
  return made;
}

std::shared_ptr<FeedForward> build_feed_forward(Node& node, Weights weights, Layout layout) {
  using namespace feed_forward_input;
  FeedForwardParts parts{};
  parts.layout = layout;
  FeedForwardBlock& b = parts.block;
  const std::string activation = node.text("activation");
  const char* const names[] = {"gelu", "gelu_tanh", "relu", "silu"};
  int found = -1;
  for (int i = 0; i < 4; i++)
    if (activation == names[i]) found = i;
  if (found < 0) node.fail("attribute activation is '" + activation + "', but must be gelu, gelu_tanh, relu or silu");
  b.activation = static_cast<Activation>(found);
  parts.fused = static_cast<int>(node.integer("fused_gate", 0, 0, 2));
  b.shared.bf16 = weights != Weights::kInt8;
  parts.up = matrix(node, weights, kWUp, kSUp, kBUp, true, 0, 0);
  if (!node.ok()) return nullptr;
  const int64_t width = parts.up.weight.dims[0], columns = parts.up.weight.dims[1];
  if (width < 1 || width > kWidest || columns < 1 || columns > kWidest) node.fail("input w_up has too many or no rows or columns");
  if (parts.fused && (columns % 2 || node.has(kWGate))) node.fail("attribute fused_gate needs an even number of columns of w_up, and no w_gate");
  const int64_t inner = parts.fused ? columns / 2 : columns;
  parts.gate = matrix(node, weights, kWGate, kSGate, kBGate, false, width, inner);
  parts.down = matrix(node, weights, kWDown, kSDown, kBDown, true, inner, width);
  const int index[7] = {kPreGamma, kPreBeta, kOutGamma, kOutBeta, kResidualScale, kPostGamma, kPostBeta};
  parts.norms = read_norms(node, b.shared, static_cast<int>(width), index);
  if (!node.ok()) return nullptr;
  b.inner = static_cast<int>(inner);
  b.inner_pad = padded(b.inner, kPanel);
  b.gated = parts.fused || parts.gate.weight.data;
  Key key;
  key.add(layout.form), key.add(layout.group), key.add(weights), key.add(b.activation), key.add(parts.fused), key.add(b.shared.rms), key.add(b.shared.epsilon);
  add_matrix(key, parts.up), add_matrix(key, parts.gate), add_matrix(key, parts.down), add_norms(key, parts.norms);
  auto made = shared(key, parts, fill_feed_forward);
  if (!made) node.fail("no memory for the weights");
  return made;
}

std::shared_ptr<Vocabulary> build_vocabulary(Node& node, Weights weights, Layout layout) {
  using namespace vocabulary_input;
  VocabularyParts parts{};
  parts.layout = layout;
  VocabularyBlock& b = parts.block;
  b.bf16 = weights != Weights::kInt8;
  Matrix& m = parts.table;
  m.transposed = true;
  m.weight = node.tensor(kTable, weight_type(weights), true, 0, 0);
  if (!node.ok()) return nullptr;
  const int64_t words = m.weight.dims[0], width = m.weight.dims[1];
  if (words < 1 || words > kMostWords || width < 1 || width > kWidest) node.fail("input table has too many or no rows or columns");
  if (weights == Weights::kInt8) m.scale = node.tensor(kScale, ort::kFloat, true, words, 1);
  if (!node.ok()) return nullptr;
  b.width = static_cast<int>(width);
  b.width_pad = padded(b.width, 64);
  Key key;
  key.add(layout.form), key.add(layout.group), key.add(weights);
  add_matrix(key, m);
  auto made = shared(key, parts, fill_vocabulary);
  if (!made) node.fail("no memory for the weights");
  return made;
}

}  // namespace stonnx
