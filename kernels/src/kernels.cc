#include "kernels.h"

#include "inputs.h"

namespace stonnx {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 30;  // rows are counted in int32

// x of two or three dimensions and lengths, to texts of equal length `seq`.
const char* read_texts(const View& x, const View& lengths, int width, int64_t* batch, int64_t* seq) {
  if (x.rank != 2 && x.rank != 3) return "x must have two or three dimensions";
  if (x.dims[x.rank - 1] != width) return "x has another width than the weights";
  if (lengths.there && lengths.rank != 1) return "lengths must have one dimension";
  if (x.rank == 3) {
    *batch = x.dims[0];
    *seq = x.dims[1];
    if (lengths.there && lengths.dims[0] != *batch) return "lengths must have a length for each text";
  } else if (lengths.there) {
    *batch = lengths.dims[0];
    *seq = *batch ? x.dims[0] / *batch : 0;
    if (*batch * *seq != x.dims[0]) return "x must have the same number of rows for each of the texts that lengths has";
  } else {
    *batch = 1;
    *seq = x.dims[0];
  }
  return *batch * *seq < kMostRows ? nullptr : "x has too many rows";
}

const char* read_attended(const View& attended, int64_t batch, int64_t seq, const int64_t* lengths, const int64_t** to) {
  if (!attended.there) return nullptr;
  if (attended.rank != 1 || attended.dims[0] != batch) return "attended must have a number for each text";
  *to = static_cast<const int64_t*>(attended.data);
  for (int64_t i = 0; i < batch; i++)
    if ((*to)[i] < 0 || (*to)[i] > (lengths ? lengths[i] : seq)) return "attended has a value below 0 or above the length of its text";
  return nullptr;
}

const char* read_lengths(const View& lengths, int64_t batch, int64_t seq, const int64_t** to) {
  if (!lengths.there) return nullptr;
  *to = static_cast<const int64_t*>(lengths.data);
  for (int64_t i = 0; i < batch; i++)
    if ((*to)[i] < 0 || (*to)[i] > seq) return "lengths has a value below 0 or above the number of tokens";
  return nullptr;
}

}  // namespace

const char* prepare_call(const AttentionKernel& kernel, const View* inputs, AttentionCall* call, View* out) {
  using namespace attention_input;
  const AttentionBlock& b = kernel.made->block;
  AttentionCall& c = *call;
  c = AttentionCall{};
  const View &x = inputs[kX], &lengths = inputs[kLengths];
  if (x.rank == 2 && !lengths.there) return "lengths is missing, and x does not have three dimensions";
  if (const char* wrong = read_texts(x, lengths, b.shared.width, &c.batch, &c.seq)) return wrong;
  c.x = static_cast<const float*>(x.data);
  if (const char* wrong = read_lengths(lengths, c.batch, c.seq, &c.lengths)) return wrong;
  if (const char* wrong = read_attended(inputs[kAttended], c.batch, c.seq, c.lengths, &c.attended)) return wrong;
  c.out_seq = c.seq;
  if (inputs[kTokenLimit].there) {
    const View& limit = inputs[kTokenLimit];
    if (limit.rank > 1 || (limit.rank == 1 && limit.dims[0] != 1)) return "token_limit must be one number";
    const int64_t most = *static_cast<const int64_t*>(limit.data);
    if (most < 0) return "token_limit is negative";
    if (most < c.out_seq) c.out_seq = most;
  }
  if (b.rotary) {
    const View &cosines = inputs[kCos], &sines = inputs[kSin];
    if (!cosines.there || !sines.there) return "cos or sin is missing";
    for (const View* v : {&cosines, &sines}) {
      if ((v->rank != 2 && v->rank != 3) || (v->rank == 3 && v->dims[0] != 1)) return "cos and sin must have the shape [positions, columns]";
      if (v->dims[v->rank - 2] < c.seq) return "cos and sin have fewer positions than there are tokens";
      if (v->dims[v->rank - 1] != cosines.dims[cosines.rank - 1]) return "cos and sin must have the same number of columns";
    }
    const int64_t columns = cosines.dims[cosines.rank - 1];
    c.rotary_dims = b.rotary_dims;
    if (columns != c.rotary_dims && columns * 2 != c.rotary_dims) return "cos and sin must have rotary_dims columns, or half as many";
    c.rotary_columns = static_cast<int>(columns);
    c.cosines = static_cast<const float*>(cosines.data);
    c.sines = static_cast<const float*>(sines.data);
  }
  if (inputs[kPositionBias].there) {
    const View& v = inputs[kPositionBias];
    if ((v.rank != 3 && v.rank != 4) || (v.rank == 4 && v.dims[0] != 1)) return "position_bias must have the shape [1, heads, tokens, tokens]";
    const int64_t heads = v.dims[v.rank - 3], rows = v.dims[v.rank - 2], columns = v.dims[v.rank - 1];
    if (heads != 1 && heads != b.heads) return "position_bias must have one head or as many as the block";
    if (rows < c.out_seq || columns < c.seq) return "position_bias has fewer tokens than x";
    c.bias = static_cast<const float*>(v.data);
    c.bias_row = columns;
    c.bias_head = heads == 1 ? 0 : rows * columns;
  }
  out->rank = x.rank;
  out->dims[0] = x.rank == 3 ? c.batch : c.batch * c.out_seq;
  out->dims[1] = x.rank == 3 ? c.out_seq : b.shared.width;
  out->dims[2] = b.shared.width;
  return nullptr;
}

const char* prepare_call(const FeedForwardKernel& kernel, const View* inputs, FeedForwardCall* call, View* out) {
  using namespace feed_forward_input;
  const FeedForwardBlock& b = kernel.made->block;
  FeedForwardCall& c = *call;
  c = FeedForwardCall{};
  const View &x = inputs[kX], &lengths = inputs[kLengths];
  if (const char* wrong = read_texts(x, lengths, b.shared.width, &c.batch, &c.seq)) return wrong;
  c.x = static_cast<const float*>(x.data);
  if (lengths.there) {
    c.lengths = static_cast<const int64_t*>(lengths.data);
    // After the first tokens were chosen, texts may be longer than what is left of them.
    for (int64_t i = 0; i < c.batch; i++)
      if (c.lengths[i] < 0) return "lengths has a negative value";
  }
  out->rank = x.rank;
  for (int i = 0; i < x.rank; i++) out->dims[i] = x.dims[i];
  return nullptr;
}

const char* prepare_call(const VocabularyKernel& kernel, const View* inputs, VocabularyCall* call, View* out) {
  using namespace vocabulary_input;
  const VocabularyBlock& b = kernel.made->block;
  VocabularyCall& c = *call;
  c = VocabularyCall{};
  const View &x = inputs[kX], &lengths = inputs[kLengths];
  if (x.rank == 2 && !lengths.there) return "lengths is missing, and x does not have three dimensions";
  if (const char* wrong = read_texts(x, lengths, b.width, &c.batch, &c.seq)) return wrong;
  c.x = static_cast<const float*>(x.data);
  if (const char* wrong = read_lengths(lengths, c.batch, c.seq, &c.lengths)) return wrong;
  out->rank = 2;
  out->dims[0] = c.batch;
  out->dims[1] = b.product.n;
  return nullptr;
}

}  // namespace stonnx
