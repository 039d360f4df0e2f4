// What a block is and what a call of it needs: plain data that every variant reads. No functions with bodies: this header is
// compiled for many instruction sets, and one inline function would be linked from an arbitrary one of them.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace stonnx {

// How the two sides of a product lie in memory. A row of either side is cut into steps of 64 bytes.
enum class Form : int {
  kInt8,      // 64 codes of 8 bits a step; dot products of four
  kInt16,     // 32 codes of 16 bits a step, for CPUs whose 8-bit products saturate; dot products of two
  kBFloat16,  // 32 bfloat16 a step; dot products of two
};

// How weights lie: `group` bytes of a column lie together, the dot products of an instruction.
struct Layout {
  Form form;
  int group;  // 4, or 8
};

constexpr int kPanel = 32;       // columns of a panel of weights
constexpr int kStepBytes = 64;   // bytes of one row in a step
constexpr int kHeadMultiple = 32;  // heads are padded to this width

// A product with a constant matrix. Padding (rows, columns, heads) has zero weights, scales and biases.
// weights: [n_pad / 32 panels][steps][2 halves][64 / group groups of inputs][16 columns][group bytes].
struct Linear {
  int k, n;             // as computed with: inputs and outputs with padded heads, without other padding
  int k_pad, n_pad;     // to whole steps and whole panels
  int steps;
  const uint8_t* weights;
  const float* scale;   // [n_pad], of columns; 1 in bfloat16
  const float* bias;    // [n_pad]
  const float* colsum;  // [n_pad], sums of the weights' codes, for zero points; 0 in bfloat16
};

struct Norm {
  const float* gamma;  // [padded width]; null: there is no such norm
  const float* beta;   // [padded width], zeros if there is none
};

enum class Activation : int { kGelu, kGeluTanh, kRelu, kSilu };

struct Shared {
  int width;      // H
  int width_pad;  // to 64
  bool rms;       // pre, out and post norms are RMS norms
  float epsilon;
  bool bf16;      // products in bfloat16 rather than with codes
  Norm pre, out, post;
  const float* residual_scale;  // [width_pad] or null
};

struct AttentionBlock {
  Shared shared;
  int heads, kv_heads, head_size, head_pad;
  float scale;
  bool causal;
  int window;  // -1: none
  int rotary;       // 0, 1 halves, 2 neighbours
  int rotary_dims;  // of head_size
  const float *q_gamma, *k_gamma;  // [head_pad] or null
  Linear qkv, out;                 // qkv: [heads | kv_heads | kv_heads] of head_pad columns each
};

struct FeedForwardBlock {
  Shared shared;
  int inner, inner_pad;
  bool gated;  // panels of up are, in turns, 32 activated columns and the 32 that multiply them
  Activation activation;
  Linear up, down;
};

struct VocabularyBlock {
  int width, width_pad;  // to 64
  bool bf16;             // products in bfloat16 rather than with codes
  Linear product;
};

// The threads that a call may use.
struct Threads {
  int count;
  // Calls work(argument, 0) to work(argument, count - 1), each once, from any thread, and waits for them.
  void (*run)(void* self, void (*work)(void*, size_t), size_t count, void* argument);
  void* self;
};

struct AttentionCall {
  const float* x;
  float* y;
  int64_t batch, seq, out_seq;
  const int64_t* lengths;         // [batch], checked; null: all of seq
  const int64_t* attended;        // [batch], checked: the keys of each text; null: as many as its length
  const float *cosines, *sines;   // [positions][rotary_columns]
  int rotary_columns, rotary_dims;  // columns of the tables, dimensions that rotate
  const float* bias;              // scores' bias of text-independent shape, or null
  int64_t bias_head, bias_row;    // its strides
  Threads threads;
};

struct FeedForwardCall {
  const float* x;
  float* y;
  int64_t batch, seq;  // without lengths, batch may be 1
  const int64_t* lengths;
  Threads threads;
};

struct VocabularyCall {
  const float* x;
  float* y;
  int64_t batch, seq;
  const int64_t* lengths;  // [batch], checked; null: all of seq
  Threads threads;
};

// One instruction set's implementation.
struct Variant {
  const char* name;
  Form int8_form;
  int group;          // of Layout
  bool bf16;          // runs bfloat16 products
  const char* (*missing)();  // what the CPU lacks, or null
  // false: no memory
  bool (*attention)(const AttentionBlock&, const AttentionCall&);
  bool (*feed_forward)(const FeedForwardBlock&, const FeedForwardCall&);
  bool (*vocabulary)(const VocabularyBlock&, const VocabularyCall&);
};

// Working memory of the calling thread, at least `bytes`, aligned to 64; null if there is none. One at a time.
void* scratch_take(size_t bytes);
void scratch_give(void* memory);

}  // namespace stonnx
