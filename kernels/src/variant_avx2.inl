// Both AVX2 variants. Nothing of the standard library: see variant_avx512.inl.
#include <immintrin.h>

#include "block.h"
#include "cpu.h"

#define HAS_BF16 0
#define SIGNED_CODES 0
#define TILE_ROWS 6
#define QUERY_ROWS 6

namespace stonnx {
namespace {
#include "simd_avx2.h"
#include "math.h"
#include "team.inl"
#include "rows.inl"
#include "gemm_avx2.h"
#include "products.inl"
#include "blocks.inl"
#include "attention_avx2.h"
#include "attention.inl"
#include "block_attention.inl"
#include "block_feed_forward.inl"
#include "block_vocabulary.inl"
}  // namespace
#include "variant.inl"
}  // namespace stonnx
