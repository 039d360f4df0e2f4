// Both AVX-512 variants without tiles. Nothing of the standard library: what is inline there would be linked from here into code
// that runs on every CPU.
#include <immintrin.h>

#include "block.h"
#include "cpu.h"

#define HAS_INT16 0
#define SIGNED_CODES 0
#define TILE_ROWS 8
#define QUERY_ROWS 8

namespace stonnx {
namespace {
#include "simd_avx512.h"
#include "math.h"
#include "team.inl"
#include "rows.inl"
#include "gemm_avx512.h"
#include "blocks.inl"
#if HAS_BF16
#include "attention_avx512_bf16.h"
#include "attention_bf16.inl"
#else
#include "attention_avx512.h"
#include "attention.inl"
#endif
#include "block_attention.inl"
#include "block_feed_forward.inl"
#include "block_vocabulary.inl"
}  // namespace
#include "variant.inl"
}  // namespace stonnx
